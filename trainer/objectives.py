"""Training objectives by name: the weights of the losses that they add up, and the data that they need.

All are `L = w_global L_global + w_local L_local + w_tsl L_TSL + w_sparc L_fine` with

- `L_global`: symmetric InfoNCE of images and captions,
- `L_local`: symmetric InfoNCE of region crops and sentences,
- `L_TSL = mean (cos(P, v) - 1)^2 + mean (cos(S, t) - 1)^2`: a region's patches in the image against its crop, a
  sentence's tokens in the caption against the sentence by itself,
- `L_fine`: within each sample, InfoNCE of the caption's words and the patches grouped by each word.
"""

from dataclasses import asdict, dataclass, fields, replace

from fastgoal.modeling_fastgoal.losses_fastgoal import TERMS, LossWeights

WEIGHTS = tuple(weight.name for weight in fields(LossWeights))
"""Names of the loss weights, which are training arguments too."""


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses; a weight of 0 leaves a loss out.

    Attributes:
        name: One of `OBJECTIVES`.
        weights: The weight of each loss.
    """

    name: str
    weights: LossWeights

    @property
    def needs_pairs(self) -> bool:
        """Whether rows need local pairs, as `fastgoal pairs` writes them."""
        return any(name.startswith("local_") for name in self._needs())

    @property
    def needs_short_captions(self) -> bool:
        """Whether each image needs a short caption in addition to its long one."""
        return "short_text_embeds" in self._needs()

    @property
    def needs_global(self) -> bool:
        """Whether whole images and captions go through the towers, not only region crops and sentences."""
        return any(not name.startswith("local_") for name in self._needs())

    @property
    def needs_tokens(self) -> bool:
        """Whether the loss needs the embedding of every patch and token."""
        return "sparc_rows" in self._needs()

    @property
    def labeled_weights(self) -> dict[str, float]:
        """The weights that are not 0, by the labels of model cards."""
        weights = {weight.metadata["label"]: getattr(self.weights, weight.name) for weight in fields(LossWeights)}
        return {label: weight for label, weight in weights.items() if weight}

    def _needs(self) -> set[str]:
        """Names of the rows that the losses in use are computed from."""
        return {name for term in TERMS if getattr(self.weights, term.weight) for name in term.needs}


_GOAL = LossWeights()
_NONE = LossWeights(**dict.fromkeys(WEIGHTS, 0.0))

OBJECTIVES = {
    name: Objective(name, weights)
    for name, weights in {
        # FAST-GOAL (arXiv 2605.26615): `L = L_global + 0.5 L_local + L_TSL`.
        # Data: local pairs, as `fastgoal pairs` writes them with any object detector (or none).
        "fast_goal": _GOAL,
        # GOAL (arXiv 2503.17782, CVPR 2025): the same sum; only the data differ.
        # Data: local pairs whose regions are boxes of SAM masks, as `fastgoal pairs --regions sam` writes them.
        "goal": _GOAL,
        # SPARC (arXiv 2401.09865): `L = 0.5 L_global + L_fine`. The paper tries 0.5, 1, 5 and 10 as the weight of
        # `L_fine` and does not state the final one.
        # Data: images with captions; no local pairs.
        "sparc": replace(_NONE, global_weight=0.5, sparc_weight=1.0),
        # Plain fine-tuning on long captions: `L = L_global`.
        # Data: images with captions; no local pairs.
        "global": replace(_NONE, global_weight=1.0),
        # Region crops and sentences only: `L = L_local`; whole images and captions do not go through the towers.
        # Data: local pairs.
        "local": replace(_NONE, local_weight=1.0),
        # FAST-GOAL without token similarity learning: `L = L_global + 0.5 L_local`.
        # Data: local pairs.
        "global_local": replace(_GOAL, tsl_weight=0.0),
    }.items()
}


def resolve_objective(name: str, **weights: float | None) -> Objective:
    """Return the objective called `name`, with the given weights in place of its own.

    Args:
        name: One of `OBJECTIVES`.
        **weights: Weights by the names of `LossWeights`; None keeps the objective's own.

    Raises:
        ValueError: The objective is unknown, a weight is negative, or all weights are 0.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}, got {name!r}.")
    given = {key: value for key, value in weights.items() if value is not None}
    for key, value in given.items():
        if value < 0:
            raise ValueError(f"`{key}` must not be negative, got {value}.")
    objective = Objective(name, replace(OBJECTIVES[name].weights, **given))
    if not any(asdict(objective.weights).values()):
        raise ValueError(f"At least one of {', '.join(f'`{key}`' for key in WEIGHTS)} must be above 0.")
    return objective
