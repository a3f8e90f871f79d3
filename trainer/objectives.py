"""Training objectives by name: which losses they sum, with which weights, and what data they need.

All are `L = w_global L_global + w_local L_local + w_tsl L_TSL + w_sparc L_fine` with

- `L_global`: symmetric InfoNCE of images and captions,
- `L_local`: symmetric InfoNCE of region crops and sentences,
- `L_TSL = mean (cos(P, v) - 1)^2 + mean (cos(S, t) - 1)^2`: a region's patches in the image against its crop, a
  sentence's tokens in the caption against the sentence by itself,
- `L_fine`: within each sample, InfoNCE of the caption's words and the patches grouped by each word.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

WEIGHTS = ("global_weight", "local_weight", "tsl_weight", "sparc_weight")


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses; a weight of 0 leaves a term out.

    Attributes:
        name: As `--objective` takes it.
        global_weight: Weight of the contrastive loss of (image, caption).
        local_weight: Weight of the contrastive loss of (region crop, sentence).
        tsl_weight: Weight of token similarity learning, image and text part together.
        sparc_weight: Weight of SPARC's fine-grained loss of patches and words.
    """

    name: str
    global_weight: float
    local_weight: float
    tsl_weight: float
    sparc_weight: float = 0.0

    @property
    def needs_pairs(self) -> bool:
        """Whether the data set must hold local pairs, as `fastgoal pairs` writes them."""
        return self.local_weight != 0 or self.tsl_weight != 0

    @property
    def needs_global(self) -> bool:
        """Whether whole images and captions go through the towers; else region crops and sentences alone."""
        return self.global_weight != 0 or self.tsl_weight != 0 or self.sparc_weight != 0

    @property
    def needs_tokens(self) -> bool:
        """Whether the loss looks at the embedding of every patch and token."""
        return self.sparc_weight != 0

    def weights(self) -> dict[str, float]:
        """The weights by the names that `fast_goal_loss` has for them."""
        return {name: getattr(self, name) for name in WEIGHTS}


def fast_goal() -> Objective:
    """FAST-GOAL (arXiv 2605.26615): `L = L_global + 0.5 L_local + L_TSL`.

    Data: local pairs, as `fastgoal pairs` writes them with any object detector (or none).
    """
    return Objective("fast_goal", 1.0, 0.5, 1.0)


def goal() -> Objective:
    """GOAL (arXiv 2503.17782, CVPR 2025): `L = L_global + 0.5 L_local + L_TSL`, as FAST-GOAL.

    Data: local pairs whose regions are boxes of SAM masks, as `fastgoal pairs --regions sam` writes them. The two
    objectives differ in their data alone.
    """
    return Objective("goal", 1.0, 0.5, 1.0)


def sparc() -> Objective:
    """SPARC (arXiv 2401.09865): `L = 0.5 L_global + L_fine`.

    Data: images with captions; no local pairs. The paper takes 0.5, 1, 5 or 10 for the weight of `L_fine` and does
    not print which.
    """
    return Objective("sparc", 0.5, 0.0, 0.0, 1.0)


def global_only() -> Objective:
    """Plain fine-tuning on long captions: `L = L_global`.

    Data: images with captions; no local pairs.
    """
    return Objective("global", 1.0, 0.0, 0.0)


def local_only() -> Objective:
    """Region crops and sentences only: `L = L_local`; whole images and captions do not go through the towers.

    Data: local pairs.
    """
    return Objective("local", 0.0, 1.0, 0.0)


def global_local() -> Objective:
    """FAST-GOAL without token similarity learning: `L = L_global + 0.5 L_local`.

    Data: local pairs.
    """
    return Objective("global_local", 1.0, 0.5, 0.0)


OBJECTIVES = {
    objective.name: objective
    for objective in (fast_goal(), goal(), sparc(), global_only(), local_only(), global_local())
}


def resolve_objective(
    name: str,
    global_weight: float | None = None,
    local_weight: float | None = None,
    tsl_weight: float | None = None,
    sparc_weight: float | None = None,
) -> Objective:
    """The objective called `name`, its weights replaced by those that are given.

    Raises:
        ValueError: There is no such objective, a weight is negative, or all weights are 0.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}, got {name!r}.")
    given: Mapping[str, float | None] = dict(
        zip(WEIGHTS, (global_weight, local_weight, tsl_weight, sparc_weight), strict=True)
    )
    weights = {key: value for key, value in given.items() if value is not None}
    for key, value in weights.items():
        if value < 0:
            raise ValueError(f"`{key}` must not be negative, got {value}.")
    objective = replace(OBJECTIVES[name], **weights)  # type: ignore[arg-type]
    if not any(objective.weights().values()):
        raise ValueError(f"At least one of {', '.join(f'`{key}`' for key in WEIGHTS)} must be above 0.")
    return objective
