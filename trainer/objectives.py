"""Training objectives by name: which losses they sum, with which weights, and what data they need."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses; a weight of 0 leaves a term out and does none of its work.

    Attributes:
        name: As `--objective` takes it.
        global_weight: Weight of the contrastive loss of (image, caption).
        local_weight: Weight of the contrastive loss of (region crop, sentence).
        tsl_weight: Weight of token similarity learning, image and text part together.
    """

    name: str
    global_weight: float
    local_weight: float
    tsl_weight: float

    @property
    def needs_pairs(self) -> bool:
        """Whether the data set must hold local pairs, as `fastgoal pairs` writes them."""
        return self.local_weight != 0 or self.tsl_weight != 0


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("fast_goal", 1.0, 0.5, 1.0),  # L_global + 0.5 L_local + L_TSL
        Objective("global_local", 1.0, 0.5, 0.0),  # the same without TSL
        Objective("global", 1.0, 0.0, 0.0),  # plain fine-tuning on long captions
        Objective("local", 0.0, 1.0, 0.0),  # region crops and sentences only
    )
}


def resolve_objective(
    name: str,
    global_weight: float | None = None,
    local_weight: float | None = None,
    tsl_weight: float | None = None,
) -> Objective:
    """The objective called `name`, its weights replaced by those that are given.

    Raises:
        ValueError: There is no such objective, a weight is negative, or all weights are 0.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}, got {name!r}.")
    given = {"global_weight": global_weight, "local_weight": local_weight, "tsl_weight": tsl_weight}
    weights: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    for key, value in weights.items():
        if value < 0:
            raise ValueError(f"`{key}` must not be negative, got {value}.")
    objective = replace(OBJECTIVES[name], **weights)
    if not (objective.global_weight or objective.local_weight or objective.tsl_weight):
        raise ValueError("At least one of `global_weight`, `local_weight`, `tsl_weight` must be above 0.")
    return objective
