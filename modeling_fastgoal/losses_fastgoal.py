"""The losses as pure tensor functions, and the one list of them: `LossWeights`, `TERMS` and `FastGoalLosses`.

No model, no process group, no state. Embeddings may come normalized or not. In a run of several processes each one
computes the losses of its own rows, the contrastive ones against the rows of all (`WholeBatch`). A new loss is a
function, a weight, a term and a field of `FastGoalLosses`; configuration, objectives, log, model card and trainer go by
these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from .sparc_fastgoal import sparc_losses

LOGITS_AT_ONCE = 2**22
"""A matrix of more logits is never whole in memory: a part of so many is computed, and again for the backward pass."""


@dataclass(frozen=True)
class WholeBatch:
    """The rows of all processes, some of which are this one's: what its share of a loss is computed against.

    Attributes:
        rows: As `loss_rows` names them: the embeddings that are contrasted, `(all rows, dim)`, and masks of valid rows.
        first: Number among them of this process's first row; its others follow.
    """

    rows: Mapping[str, torch.Tensor]
    first: int

    def count(self, mask: str) -> torch.Tensor | int:
        """How many rows are valid, by the mask of this name; all where there is none."""
        return self.rows[mask].sum() if mask in self.rows else len(next(iter(self.rows.values())))


def clip_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    all_images: torch.Tensor | None = None,
    all_texts: torch.Tensor | None = None,
    first: int = 0,
) -> torch.Tensor:
    """Symmetric InfoNCE of CLIP: row i of the images belongs to row i of the texts.

    Used for the global loss over (image, caption) and for the local one over (region crop, sentence).

    Args:
        image_embeds: `(batch, dim)`.
        text_embeds: `(batch, dim)`.
        logit_scale: The factor itself (`model.logit_scale.exp()`), a scalar.
        all_images: Images of all processes, `(rows, dim)`, where `image_embeds` are those from `first` on.
        all_texts: Their texts, likewise.
        first: See `all_images`.

    Returns:
        Scalar. When all embeddings are alike it is `log(batch)`; of no rows it is 0. With the rows of all processes it
        is this one's share: the shares add up to the loss.
    """
    images, texts = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    every_image = images if all_images is None else F.normalize(all_images, dim=-1)
    every_text = texts if all_texts is None else F.normalize(all_texts, dim=-1)
    to_texts = _sum_in_parts(_cross_entropy, images, every_text, first, logit_scale)
    to_images = _sum_in_parts(_cross_entropy, texts, every_image, first, logit_scale)
    return (to_texts + to_images) / (2 * max(1, len(every_text)))


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    all_texts: torch.Tensor | None = None,
    first: int = 0,
) -> torch.Tensor:
    """SigLIP's loss (arXiv 2303.15343, equation 1): each image and each text by themselves, a pair or none.

    Args:
        image_embeds: `(batch, dim)`.
        text_embeds: `(batch, dim)`; row i belongs to row i of the images.
        logit_scale: The factor itself, a scalar.
        logit_bias: Is added to the scaled cosines, a scalar.
        all_texts: Texts of all processes, `(rows, dim)`, where `text_embeds` are those from `first` on.
        first: See `all_texts`.

    Returns:
        Scalar, the mean over the rows of `sum_j softplus(-z_ij logit_ij)`, where `z` is 1 for a pair and -1 for others;
        of no rows it is 0. With the texts of all processes it is this one's share: the shares add up to the loss.
    """
    images = F.normalize(image_embeds, dim=-1)
    every_text = F.normalize(text_embeds if all_texts is None else all_texts, dim=-1)
    loss = _sum_in_parts(_binary_cross_entropy, images, every_text, first, logit_scale, logit_bias)
    return loss / max(1, len(every_text))


def _cross_entropy(some: torch.Tensor, among: torch.Tensor, start: int, scale: torch.Tensor) -> torch.Tensor:
    """Sum over some rows of the cross-entropy of finding a row's own one, number `start` + i, `among` all."""
    labels = torch.arange(start, start + len(some), device=some.device)
    return F.cross_entropy((scale * some @ among.T).float(), labels, reduction="sum")


def _binary_cross_entropy(
    some: torch.Tensor, among: torch.Tensor, start: int, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Sum over all pairs of some rows and all others of the cross-entropy of telling whether they belong together."""
    logits = (scale * some @ among.T + bias).float()
    return F.softplus(logits).sum() - logits.diagonal(start).sum()


def _sum_in_parts(
    part: Callable[..., torch.Tensor], rows: torch.Tensor, among: torch.Tensor, first: int, *logits: torch.Tensor
) -> torch.Tensor:
    """A sum over rows, of `part` of as many of them as `LOGITS_AT_ONCE` allows; a scalar."""
    size = max(1, LOGITS_AT_ONCE // max(1, len(among)))
    if len(rows) <= size:
        return part(rows, among, first, *logits)
    parts = [
        checkpoint(part, some, among, first + i * size, *logits, use_reentrant=False, preserve_rng_state=False)
        for i, some in enumerate(rows.split(size))
    ]
    return torch.stack(parts).sum()


def token_similarity_loss(
    token_embeds: torch.Tensor,
    target_embeds: torch.Tensor,
    valid: torch.Tensor | None = None,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """One half of token similarity learning (FAST-GOAL's L_TSL): `mean((cos(token, target) - 1) ** 2)`.

    Only matching rows count, and gradients flow into both arguments, as in the paper.

    Args:
        token_embeds: Projected mean of the global tokens of each row's region or sentence, `(batch, dim)`.
        target_embeds: Embeddings of the region's crop or of the sentence by itself, `(batch, dim)`.
        valid: `(batch,)` bool; False leaves a row out (its region or sentence has no tokens).
        count: As for `mean_of_rows`.

    Returns:
        Scalar; 0 (with a gradient of 0) when no row is valid.
    """
    cosine = F.cosine_similarity(token_embeds.float(), target_embeds.float(), dim=-1)
    return mean_of_rows((cosine - 1) ** 2, valid, count)


def mean_of_rows(
    values: torch.Tensor, valid: torch.Tensor | None = None, count: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean over the valid rows, scalar; 0 (with a gradient of 0) when there are none.

    With `count`, the number of valid rows of all processes, it is this process's share of the mean over all.
    """
    # `where` rather than a product: a row without tokens may hold anything, and NaN * 0 is NaN.
    kept = values if valid is None else torch.where(valid, values, torch.zeros_like(values))
    if count is None:
        count = len(values) if valid is None else valid.sum()
    return kept.sum() / (count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1))


def _weight(default: float, label: str, text: str) -> Any:
    return field(default=default, metadata={"label": label, "help": text})


@dataclass
class LossWeights:
    """Weights of the losses in the sum. A loss of weight 0 is not trained; it is reported if it costs nothing.

    The defaults are the objective of FAST-GOAL and GOAL. A configuration of a model is a `LossWeights` too, and the
    training arguments have the same names. `label` is the name on model cards, `help` describes the loss.
    """

    global_weight: float | int = _weight(1.0, "global", "the contrastive loss of images and captions")
    local_weight: float | int = _weight(0.5, "local", "the contrastive loss of region crops and sentences")
    tsl_weight: float | int = _weight(1.0, "TSL", "token similarity learning, the sum of its image and its text part")
    sparc_weight: float | int = _weight(0.0, "SPARC", "SPARC's fine-grained loss of patches and words")
    token_weight: float | int = _weight(
        0.0,
        "token contrast",
        "the contrastive loss of a region's patches and the crops, and of a sentence's tokens and the sentences (token "
        "similarity learning with negatives)",
    )
    short_weight: float | int = _weight(
        0.0, "short captions", "the contrastive loss of images and short captions (column short_captions)"
    )


@dataclass(frozen=True)
class LossTerm:
    """A part of the loss, a scalar, of rows that count by themselves or are held each against all others."""

    name: str  # field of `FastGoalLosses`, and column of the log
    weight: str  # field of `LossWeights`
    needs: tuple[str, ...]  # among the rows of `loss_rows`; without them it is left out
    compute: Callable[..., torch.Tensor]
    valid: str | None = None  # the mask of the rows that count, which the rows may not have
    contrasts: bool = False
    is_extra: bool = False  # not reported where it has no weight, as it would cost something

    def is_computed(self, rows: Mapping[str, torch.Tensor], weights: "LossWeights") -> bool:
        """Whether the rows allow it, and it is asked for."""
        return all(name in rows for name in self.needs) and bool(not self.is_extra or getattr(weights, self.weight))

    def share(
        self,
        rows: Mapping[str, torch.Tensor],
        logit_scale: torch.Tensor,
        whole: WholeBatch | None,
        logit_bias: torch.Tensor | None,
    ) -> Any:
        """The loss of the rows or, with the whole batch, their share of it."""
        own, valid = [rows[name] for name in self.needs], rows.get(self.valid or "")
        if not self.contrasts:
            return self.compute(*own, valid, *(() if whole is None else (whole.count(self.valid or ""),)))
        if valid is not None:
            own = [value[valid] for value in own]
        every, first = own, 0
        if whole is not None:
            every, first = [whole.rows[name] for name in self.needs], whole.first
            if valid is not None:
                kept = whole.rows[self.valid or ""]
                every, first = [value[kept] for value in every], int(kept[:first].sum())
        return self.compute(*own, logit_scale, logit_bias, *every, first)


def _contrast(
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None,
    all_images: torch.Tensor,
    all_texts: torch.Tensor,
    first: int,
) -> torch.Tensor:
    """The contrastive loss: SigLIP's where there is a bias, else CLIP's."""
    if logit_bias is None:
        return clip_loss(images, texts, logit_scale, all_images, all_texts, first)
    return sigmoid_loss(images, texts, logit_scale, logit_bias, all_texts, first)


def _contrast_of(name: str, weight: str, needs: tuple[str, str], **more: Any) -> LossTerm:
    return LossTerm(name, weight, needs, _contrast, contrasts=True, **more)


_REGIONS, _SENTENCES = ("region_embeds", "local_image_embeds"), ("sentence_embeds", "local_text_embeds")
TERMS = (
    _contrast_of("loss_global", "global_weight", ("image_embeds", "text_embeds")),
    _contrast_of("loss_local", "local_weight", ("local_image_embeds", "local_text_embeds")),
    LossTerm("loss_tsl_image", "tsl_weight", _REGIONS, token_similarity_loss, "region_valid"),
    LossTerm("loss_tsl_text", "tsl_weight", _SENTENCES, token_similarity_loss, "sentence_valid"),
    LossTerm("loss_sparc", "sparc_weight", ("sparc_rows",), mean_of_rows, "sparc_valid"),
    _contrast_of("loss_token_image", "token_weight", _REGIONS, valid="region_valid", is_extra=True),
    _contrast_of("loss_token_text", "token_weight", _SENTENCES, valid="sentence_valid", is_extra=True),
    _contrast_of("loss_short", "short_weight", ("image_embeds", "short_text_embeds"), is_extra=True),
)
"""All there are, in the order in which they are summed and logged."""


def contrasted(weights: LossWeights) -> set[str]:
    """The rows that every process needs of all others."""
    terms = [term for term in TERMS if term.contrasts and (not term.is_extra or getattr(weights, term.weight))]
    return {name for term in terms for name in term.needs}


FastGoalLosses: Any = make_dataclass(
    "FastGoalLosses",
    [(name, torch.Tensor | None, None) for name in ("loss", *(term.name for term in TERMS))],
    bases=(ModelOutput,),
    namespace={"__module__": __name__},
)
"""The losses of a batch, scalars: `loss`, the weighted sum, and the unweighted parts by the names of `TERMS`; None for
those that the batch does not allow."""


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
    rows: Mapping[str, torch.Tensor],
    logit_scale: torch.Tensor,
    weights: LossWeights | None = None,
    whole: WholeBatch | None = None,
    logit_bias: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The weighted sum of the losses, `w_global L_global + w_local L_local + w_tsl L_TSL`, and of those of `TERMS`.

    Args:
        rows: As `loss_rows` gives them. A missing one leaves out the terms that need it; without a mask all are valid.
        logit_scale: The factor itself, a scalar.
        weights: FAST-GOAL's by default.
        whole: The rows of all processes, where `rows` are only those of one.
        logit_bias: SigLIP's bias, a scalar: the contrastive losses are then `sigmoid_loss`, else `clip_loss`.

    Returns:
        `loss` (the weighted sum) and the unweighted parts that could be computed, by the names of `TERMS`; scalars.
        With `whole` they are this process's shares, which add up over the processes.

    Raises:
        ValueError: There is nothing that a loss could be made of.
    """
    weights = weights or LossWeights()
    parts, weighted = {}, []
    for term in TERMS:
        if not term.is_computed(rows, weights):
            continue
        part = parts[term.name] = term.share(rows, logit_scale, whole, logit_bias)
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
