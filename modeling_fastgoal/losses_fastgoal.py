"""The losses as pure tensor functions, and the one list of them: `LossWeights`, `TERMS` and `FastGoalLosses`.

No model, no process group, no state. Embeddings may come normalised or not. In a run of several processes, gather
them first: each function sees the whole batch. A new loss is a function, a weight, a term and a field of
`FastGoalLosses`; configuration, objectives, log, model card and trainer go by these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from transformers.utils import ModelOutput

from .sparc_fastgoal import sparc_losses


def clip_loss(image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE of CLIP: row i of the images belongs to row i of the texts.

    Used for the global loss over (image, caption) and for the local one over (region crop, sentence).

    Args:
        image_embeds: `(batch, dim)`.
        text_embeds: `(batch, dim)`.
        logit_scale: The factor itself (`model.logit_scale.exp()`), a scalar.

    Returns:
        Scalar. When all embeddings are alike it is `log(batch)`.
    """
    images = F.normalize(image_embeds, dim=-1)
    texts = F.normalize(text_embeds, dim=-1)
    logits = (logit_scale * images @ texts.T).float()
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def token_similarity_loss(
    token_embeds: torch.Tensor, target_embeds: torch.Tensor, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """One half of token similarity learning (FAST-GOAL's L_TSL): `mean((cos(token, target) - 1) ** 2)`.

    Only matching rows count, and gradients flow into both arguments, as in the paper.

    Args:
        token_embeds: Projected mean of the global tokens of each row's region or sentence, `(batch, dim)`.
        target_embeds: Embeddings of the region's crop or of the sentence by itself, `(batch, dim)`.
        valid: `(batch,)` bool; False leaves a row out (its region or sentence has no tokens).

    Returns:
        Scalar; 0 (with a gradient of 0) when no row is valid.
    """
    cosine = F.cosine_similarity(token_embeds.float(), target_embeds.float(), dim=-1)
    return mean_of_rows((cosine - 1) ** 2, valid)


def mean_of_rows(values: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the valid rows, scalar; 0 (with a gradient of 0) when there are none."""
    if valid is None:
        return values.mean()
    # `where` rather than a product: a row without tokens may hold anything, and NaN * 0 is NaN.
    values = torch.where(valid, values, torch.zeros_like(values))
    return values.sum() / valid.sum().clamp(min=1)


@dataclass(frozen=True)
class LossWeights:
    """Weight of each loss in the sum; a loss of weight 0 is reported where it can be, and does not train.

    The defaults are FAST-GOAL's and GOAL's objective. The configuration, the objectives and the training arguments
    call the weights as they are called here; `label` is the model card's word.

    Attributes:
        global_weight: Weight of the contrastive loss of (image, caption).
        local_weight: Weight of the contrastive loss of (region crop, sentence).
        tsl_weight: Weight of token similarity learning, image and text part together.
        sparc_weight: Weight of SPARC's fine-grained loss of patches and words.
    """

    global_weight: float = field(default=1.0, metadata={"label": "global"})
    local_weight: float = field(default=0.5, metadata={"label": "local"})
    tsl_weight: float = field(default=1.0, metadata={"label": "TSL"})
    sparc_weight: float = field(default=0.0, metadata={"label": "SPARC"})

    @classmethod
    def of(cls, settings: object) -> "LossWeights":
        """The weights that a configuration has under these names; the defaults of those that it does not know."""
        return cls(**{weight.name: getattr(settings, weight.name, getattr(cls, weight.name)) for weight in fields(cls)})


@dataclass(frozen=True)
class LossTerm:
    """A part of the loss, a scalar: `compute(*needs, last)`."""

    name: str  # field of `FastGoalLosses`, and column of the log
    weight: str  # field of `LossWeights`
    needs: tuple[str, ...]  # among the rows of `loss_rows`; without them it is left out
    compute: Callable[..., torch.Tensor]
    last: str  # `logit_scale`, or the mask of the valid rows, None where the rows have it not


TERMS = (
    LossTerm("loss_global", "global_weight", ("image_embeds", "text_embeds"), clip_loss, "logit_scale"),
    LossTerm("loss_local", "local_weight", ("local_image_embeds", "local_text_embeds"), clip_loss, "logit_scale"),
    LossTerm(
        "loss_tsl_image", "tsl_weight", ("region_embeds", "local_image_embeds"), token_similarity_loss, "region_valid"
    ),
    LossTerm(
        "loss_tsl_text", "tsl_weight", ("sentence_embeds", "local_text_embeds"), token_similarity_loss, "sentence_valid"
    ),
    LossTerm("loss_sparc", "sparc_weight", ("sparc_rows",), mean_of_rows, "sparc_valid"),
)
"""All there are, in the order in which they are summed and logged."""


@dataclass
class FastGoalLosses(ModelOutput):
    """The losses of a batch, scalars: `loss`, the weighted sum, and the unweighted parts, whose `TERMS` say of what
    they are made. None where the batch did not allow to compute one.
    """

    loss: torch.Tensor | None = None
    loss_global: torch.Tensor | None = None
    loss_local: torch.Tensor | None = None
    loss_tsl_image: torch.Tensor | None = None
    loss_tsl_text: torch.Tensor | None = None
    loss_sparc: torch.Tensor | None = None


def loss_rows(
    embeds: Mapping[str, torch.Tensor | None],
    logit_scale: torch.Tensor,
    region_mask: torch.Tensor | None = None,
    sentence_mask: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """What the losses need of a batch, one row per sample: to be gathered over processes, or put together of pieces.

    Args:
        embeds: Embeddings under the names of `FastGoalOutput`, which may be one.
        logit_scale: The factor itself, a scalar.
        region_mask: `(batch, patches)`, as the model takes it.
        sentence_mask: `(batch, tokens)`, likewise.

    Returns:
        The embeddings that some term needs; `region_valid` and `sentence_valid`, False where the mask is empty; of the
        embeddings of patches and tokens `sparc_rows`, each row's loss, and `sparc_valid`, False where there is no word.
    """
    rows = {name: embeds.get(name) for term in TERMS for name in term.needs}
    for side, mask in (("region", region_mask), ("sentence", sentence_mask)):
        if mask is not None and rows[f"{side}_embeds"] is not None:
            rows[f"{side}_valid"] = mask.bool().any(dim=1)
    patches, tokens, words = (embeds.get(name) for name in ("patch_embeds", "token_embeds", "word_mask"))
    if patches is not None and tokens is not None and words is not None:
        rows["sparc_rows"] = sparc_losses(patches, tokens, words, logit_scale)
        rows["sparc_valid"] = words.any(dim=1)
    return {name: value for name, value in rows.items() if value is not None}


def fast_goal_loss(
    rows: Mapping[str, torch.Tensor], logit_scale: torch.Tensor, weights: LossWeights | None = None
) -> dict[str, torch.Tensor]:
    """The weighted sum of the losses: `w_global L_global + w_local L_local + w_tsl L_TSL + w_sparc L_fine`.

    Args:
        rows: As `loss_rows` gives them. A missing one leaves out the terms that need it; without a mask all are valid.
        logit_scale: The factor itself, a scalar.
        weights: FAST-GOAL's by default.

    Returns:
        `loss` (the weighted sum) and the unweighted parts that could be computed, by the names of `TERMS`; scalars.

    Raises:
        ValueError: There is nothing that a loss could be made of.
    """
    weights = weights or LossWeights()
    given = {**rows, "logit_scale": logit_scale}
    parts, weighted = {}, []
    for term in TERMS:
        if not all(name in rows for name in term.needs):
            continue
        part = parts[term.name] = term.compute(*(rows[name] for name in term.needs), given.get(term.last))
        # A term of weight 0 is left out rather than multiplied: it then costs no backward pass.
        if weight := getattr(weights, term.weight):
            weighted.append(weight * part)
    if not parts:
        raise ValueError(
            "`rows` must hold at least `image_embeds` and `text_embeds` (or their local counterparts), got "
            f"{sorted(rows)}."
        )
    loss = torch.stack(weighted).sum() if weighted else 0.0 * next(iter(parts.values()))
    return {"loss": loss, **parts}
