"""The losses as pure tensor functions, and the only lists of them: `LossWeights` and `TERMS`.

There is no model, process group or state here. Embeddings need not be normalized. With several processes each one
computes the losses of its own rows, the contrastive ones against the rows of all (`WholeBatch`). To add a loss, add a
function, a weight and a term: configurations, outputs, training arguments, objectives, the log and the model card
derive from these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from .sparc_fastgoal import sparc_losses

GROUPS = "image_groups"
LOGITS_AT_ONCE = 2**22
"""Maximum number of logits in memory. Larger matrices are computed in parts, and again in the backward pass."""


@dataclass(frozen=True)
class WholeBatch:
    """The rows of all processes, which a process contrasts its own rows with.

    Attributes:
        rows: Rows by the names of `loss_rows`: the embeddings that are contrasted, `(all rows, dim)`, and masks.
        first: Index of this process's first row; its other rows follow.
    """

    rows: Mapping[str, torch.Tensor]
    first: int

    def count(self, mask: str) -> torch.Tensor | int:
        """Return the number of rows that a mask marks as valid; all rows without the mask."""
        return self.rows[mask].sum() if mask in self.rows else len(next(iter(self.rows.values())))


def clip_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    all_images: torch.Tensor | None = None,
    all_texts: torch.Tensor | None = None,
    first: int = 0,
    groups: torch.Tensor | None = None,
    all_groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute CLIP's symmetric InfoNCE (arXiv 2103.00020), where row i of the images matches row i of the texts.

    Args:
        image_embeds: `(batch, dim)`.
        text_embeds: `(batch, dim)`.
        logit_scale: The scale itself (`model.logit_scale.exp()`), scalar.
        all_images: Images of all processes, `(rows, dim)`; `image_embeds` are its rows from `first` on.
        all_texts: Texts of all processes, `(rows, dim)`; `text_embeds` are its rows from `first` on.
        first: Index of this process's first row in them.
        groups: The image of each row, `(batch, 2)`; see `image_groups`. Rows of one image are no negatives of each
            other.
        all_groups: The same of all processes, `(rows, 2)`.

    Returns:
        Scalar; `log(batch)` if all embeddings are equal, 0 without rows. With the rows of all processes, this process's
        share; the shares add up to the loss.
    """
    images, texts = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    every_image = images if all_images is None else F.normalize(all_images, dim=-1)
    every_text = texts if all_texts is None else F.normalize(all_texts, dim=-1)
    same = (groups, groups if all_groups is None else all_groups)
    to_texts = _sum_in_parts(_cross_entropy, images, every_text, first, logit_scale, groups=same)
    to_images = _sum_in_parts(_cross_entropy, texts, every_image, first, logit_scale, groups=same)
    return (to_texts + to_images) / (2 * max(1, len(every_text)))


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    all_texts: torch.Tensor | None = None,
    first: int = 0,
    groups: torch.Tensor | None = None,
    all_groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute SigLIP's sigmoid loss (arXiv 2303.15343, equation 1): classify each image and text as a pair or not.

    Args:
        image_embeds: `(batch, dim)`.
        text_embeds: `(batch, dim)`; row i matches row i of the images.
        logit_scale: The scale itself (`model.logit_scale.exp()`), scalar.
        logit_bias: Bias of the logits, scalar.
        all_texts: Texts of all processes, `(rows, dim)`; `text_embeds` are its rows from `first` on.
        first: Index of this process's first row in it.
        groups: The image of each row, `(batch, 2)`, as for `clip_loss`.
        all_groups: The same of all processes, `(rows, 2)`.

    Returns:
        Scalar, the mean over rows of `sum_j softplus(-z_ij logit_ij)`, where `z` is 1 for a pair and -1 otherwise; 0
        without rows. With the texts of all processes, this process's share; the shares add up to the loss.
    """
    images = F.normalize(image_embeds, dim=-1)
    every_text = F.normalize(text_embeds if all_texts is None else all_texts, dim=-1)
    same = (groups, groups if all_groups is None else all_groups)
    loss = _sum_in_parts(_binary_cross_entropy, images, every_text, first, logit_scale, logit_bias, groups=same)
    return loss / max(1, len(every_text))


def _cross_entropy(
    some: torch.Tensor, among: torch.Tensor, start: int, ignored: torch.Tensor | None, scale: torch.Tensor
) -> torch.Tensor:
    """Sum the cross-entropy over rows, where row i matches row `start` + i of `among`, without `ignored` pairs."""
    labels = torch.arange(start, start + len(some), device=some.device)
    logits = (scale * some @ among.T).float()
    if ignored is not None:
        logits = logits.masked_fill(ignored, -torch.inf)
    return F.cross_entropy(logits, labels, reduction="sum")


def _binary_cross_entropy(
    some: torch.Tensor,
    among: torch.Tensor,
    start: int,
    ignored: torch.Tensor | None,
    scale: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """Sum the binary cross-entropy over pairs that are not `ignored`; row i matches row `start` + i of `among`."""
    logits = (scale * some @ among.T + bias).float()
    losses = F.softplus(logits)
    if ignored is not None:
        losses = losses.masked_fill(ignored, 0)
    return losses.sum() - logits.diagonal(start).sum()


def _ignored(groups: torch.Tensor | None, all_groups: torch.Tensor | None, start: int) -> torch.Tensor | None:
    """Return which pairs of rows show one image and do not match, `(rows, all rows)`; None without groups."""
    if groups is None or all_groups is None:
        return None
    same = (groups[:, None] == all_groups[None]).all(dim=2) & (groups[:, None, 0] >= 0)
    same.diagonal(start)[:] = False
    return same


def _sum_in_parts(
    part: Callable[..., torch.Tensor],
    rows: torch.Tensor,
    among: torch.Tensor,
    first: int,
    *logits: torch.Tensor,
    groups: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
) -> torch.Tensor:
    """Sum `part` over rows, as many at a time as `LOGITS_AT_ONCE` allows. `groups` are those of `rows` and `among`."""
    size = max(1, LOGITS_AT_ONCE // max(1, len(among)))
    own, every = groups
    if len(rows) <= size:
        return part(rows, among, first, _ignored(own, every, first), *logits)
    parts = []
    for start in range(0, len(rows), size):
        ignored = _ignored(None if own is None else own[start : start + size], every, first + start)
        some = (rows[start : start + size], among, first + start, ignored)
        parts.append(checkpoint(part, *some, *logits, use_reentrant=False, preserve_rng_state=False))
    return torch.stack(parts).sum()


def token_similarity_loss(
    token_embeds: torch.Tensor,
    target_embeds: torch.Tensor,
    valid: torch.Tensor | None = None,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Compute one half of FAST-GOAL's token similarity learning (arXiv 2605.26615): `mean((cos(token, target) - 1)^2)`.

    There are no negatives, and gradients flow into both arguments, as in the paper.

    Args:
        token_embeds: Projected mean of the patches or tokens of each row's region or sentence, `(batch, dim)`.
        target_embeds: Embeddings of the region's crop or of the sentence by itself, `(batch, dim)`.
        valid: `(batch,)` bool; False for rows whose region or sentence has no tokens.
        count: Number of valid rows of all processes, as in `mean_of_rows`.

    Returns:
        Scalar; 0 (with a gradient of 0) if no row is valid.
    """
    cosine = F.cosine_similarity(token_embeds.float(), target_embeds.float(), dim=-1)
    return mean_of_rows((cosine - 1) ** 2, valid, count)


def mean_of_rows(
    values: torch.Tensor, valid: torch.Tensor | None = None, count: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the mean over the valid rows, scalar; 0 (with a gradient of 0) if there are none.

    With `count`, the number of valid rows of all processes, it is this process's share of the mean over all.
    """
    # Not a product: a row without tokens may be NaN, and NaN * 0 is NaN.
    kept = values if valid is None else torch.where(valid, values, torch.zeros_like(values))
    if count is None:
        count = len(values) if valid is None else valid.sum()
    return kept.sum() / (count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1))


def _weight(default: float, label: str, text: str) -> Any:
    return field(default=default, metadata={"label": label, "help": text})


@dataclass
class LossWeights:
    """Weights of the losses in the sum. A loss with weight 0 is not trained, but is reported if it costs nothing.

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
    """A part of the loss.

    Attributes:
        name: Name in outputs and in the log.
        weight: Name of its weight in `LossWeights`; two terms may share one.
        needs: Names of the rows of `loss_rows` that it is computed from. Without them the term is left out.
        compute: Function of these rows.
        valid: Name of the mask of valid rows, if there may be one.
        contrasts: Whether each row is contrasted with the rows of all processes.
        is_extra: Whether it costs time to compute. If so, it is only reported if it has a weight.
    """

    name: str
    weight: str
    needs: tuple[str, ...]
    compute: Callable[..., torch.Tensor]
    valid: str | None = None
    contrasts: bool = False
    is_extra: bool = False

    def is_computed(self, rows: Mapping[str, torch.Tensor], weights: LossWeights) -> bool:
        """Return whether the rows allow it and it is wanted."""
        return all(name in rows for name in self.needs) and bool(not self.is_extra or getattr(weights, self.weight))

    def share(
        self,
        rows: Mapping[str, torch.Tensor],
        logit_scale: torch.Tensor,
        whole: WholeBatch | None,
        logit_bias: torch.Tensor | None,
        dims: Sequence[int] = (),
    ) -> Any:
        """Compute the loss of the rows, or with `whole` their share of the loss of all processes.

        A term that contrasts is the mean of the losses of the full embeddings and of their first `dims` dimensions.
        """
        own, valid = [rows[name] for name in self.needs], rows.get(self.valid or "")
        if not self.contrasts:
            return self.compute(*own, valid, *(() if whole is None else (whole.count(self.valid or ""),)))
        names = [*self.needs, *([GROUPS] if GROUPS in rows else [])]
        own = [rows[name] for name in names]
        if valid is not None:
            own = [value[valid] for value in own]
        every, first = own, 0
        if whole is not None:
            every, first = [whole.rows[name] for name in names], whole.first
            if valid is not None:
                kept = whole.rows[self.valid or ""]
                every, first = [value[kept] for value in every], int(kept[:first].sum())
        (images, texts, *groups), (all_images, all_texts, *all_groups) = own, every
        full = images.shape[-1]
        losses = [
            self.compute(
                *_cut((images, texts), width),
                logit_scale,
                logit_bias,
                *_cut((all_images, all_texts), width),
                first,
                *groups,
                *all_groups,
            )
            for width in (full, *(width for width in dims if width != full))
        ]
        return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


def _cut(embeds: Sequence[torch.Tensor], width: int) -> Sequence[torch.Tensor]:
    """Return the first dimensions of embeddings, normalized again."""
    if width == embeds[0].shape[-1]:
        return embeds
    return [F.normalize(rows[..., :width], dim=-1) for rows in embeds]


def _contrast(
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None,
    all_images: torch.Tensor,
    all_texts: torch.Tensor,
    first: int,
    *groups: torch.Tensor,
) -> torch.Tensor:
    """Compute SigLIP's contrastive loss if there is a bias, else CLIP's."""
    if logit_bias is None:
        return clip_loss(images, texts, logit_scale, all_images, all_texts, first, *groups)
    return sigmoid_loss(images, texts, logit_scale, logit_bias, all_texts, first, *groups)


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
"""All terms, in the order in which they are added and logged."""


def contrasted(weights: LossWeights) -> set[str]:
    """Return the names of the rows that processes need from each other."""
    terms = [term for term in TERMS if term.contrasts and (not term.is_extra or getattr(weights, term.weight))]
    return {GROUPS, *(name for term in terms for name in term.needs)}


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
    image_groups: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Return the inputs of the losses: tensors with one row per sample, which can be gathered or concatenated.

    Args:
        embeds: Embeddings by the names of `FastGoalOutput`; can be a `FastGoalOutput`.
        logit_scale: The scale itself, scalar.
        region_mask: `(batch, patches)`, as the model takes it.
        sentence_mask: `(batch, tokens)`, as the model takes it.
        image_groups: `(batch,)`, as the model takes it.

    Returns:
        The embeddings that terms need; `image_groups`, `(batch, 2)`, in two parts that float32 holds exactly;
        `region_valid` and `sentence_valid`, False for empty masks; and computed from patches and tokens, `sparc_rows`,
        SPARC's loss of each row, and `sparc_valid`, False for rows without words.
    """
    rows = {name: embeds.get(name) for term in TERMS for name in term.needs}
    for side, mask in (("region", region_mask), ("sentence", sentence_mask)):
        if mask is not None and rows[f"{side}_embeds"] is not None:
            rows[f"{side}_valid"] = mask.bool().any(dim=1)
    patches, tokens, words = (embeds.get(name) for name in ("patch_embeds", "token_embeds", "word_mask"))
    if patches is not None and tokens is not None and words is not None:
        rows["sparc_rows"] = sparc_losses(patches, tokens, words, logit_scale)
        rows["sparc_valid"] = words.any(dim=1)
    if image_groups is not None:
        high = torch.div(image_groups, 2**20, rounding_mode="floor")
        rows[GROUPS] = torch.stack([high, image_groups % 2**20], dim=1).float()
    return {name: value for name, value in rows.items() if value is not None}


def fast_goal_loss(
    rows: Mapping[str, torch.Tensor],
    logit_scale: torch.Tensor,
    weights: LossWeights | None = None,
    whole: WholeBatch | None = None,
    logit_bias: torch.Tensor | None = None,
    dims: Sequence[int] = (),
) -> dict[str, torch.Tensor]:
    """Compute the weighted sum of all losses of `TERMS` that the rows allow, and its parts.

    >>> rows = {"image_embeds": torch.ones(4, 8), "text_embeds": torch.ones(4, 8)}
    >>> round(fast_goal_loss(rows, torch.tensor(100.0))["loss_global"].item(), 4)  # log(4)
    1.3863

    Args:
        rows: Rows as `loss_rows` returns them. Terms with missing rows are left out; without a mask all rows are valid.
        logit_scale: The scale itself (`model.logit_scale.exp()`), scalar.
        weights: Weights of the losses, FAST-GOAL's by default.
        whole: The rows of all processes, if there are several.
        logit_bias: SigLIP's bias, scalar. With it, the contrastive losses are `sigmoid_loss`, otherwise `clip_loss`.
        dims: Each contrastive loss is the mean of the losses of the full embeddings and of their first `dims`
            dimensions, normalized again (Matryoshka representation learning, arXiv 2205.13147).

    Returns:
        `loss`, the weighted sum, and the unweighted parts by the names of `TERMS`; scalars. With `whole`, this
        process's shares, which add up over the processes.

    Raises:
        ValueError: No loss can be computed from the rows.
    """
    weights = weights or LossWeights()
    parts, weighted = {}, []
    for term in TERMS:
        if not term.is_computed(rows, weights):
            continue
        part = parts[term.name] = term.share(rows, logit_scale, whole, logit_bias, dims)
        # A term of weight 0 is left out of the sum and costs no backward pass.
        if weight := getattr(weights, term.weight):
            weighted.append(weight * part)
    if not parts:
        raise ValueError(
            "`rows` must have at least `image_embeds` and `text_embeds`, or `local_image_embeds` and "
            f"`local_text_embeds`, got {sorted(rows)}."
        )
    loss = torch.stack(weighted).sum() if weighted else 0.0 * next(iter(parts.values()))
    return {"loss": loss, **parts}
