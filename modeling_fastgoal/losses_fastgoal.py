"""The losses as pure tensor functions: no model, no process group, no state.

Embeddings may come normalised or not. In a run of several processes, gather them first: each function
sees the whole batch.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F


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
    return _mean((cosine - 1) ** 2, valid)


def _mean(values: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Mean over the valid rows; 0 when there are none."""
    if valid is None:
        return values.mean()
    # `where` rather than a product: a row without tokens may hold anything, and NaN * 0 is NaN.
    values = torch.where(valid, values, torch.zeros_like(values))
    return values.sum() / valid.sum().clamp(min=1)


def fast_goal_loss(
    embeds: Mapping[str, torch.Tensor | None],
    logit_scale: torch.Tensor,
    region_valid: torch.Tensor | None = None,
    sentence_valid: torch.Tensor | None = None,
    global_weight: float = 1.0,
    local_weight: float = 0.5,
    tsl_weight: float = 1.0,
    sparc_weight: float = 0.0,
    sparc_rows: torch.Tensor | None = None,
    sparc_valid: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The weighted sum of the losses: `w_global L_global + w_local L_local + w_tsl L_TSL + w_sparc L_fine`.

    With the weights 1, 0.5, 1 and 0 this is FAST-GOAL's and GOAL's objective; 0.5, 0, 0 and 1 make SPARC's.

    Args:
        embeds: Tensors `(batch, dim)` under the names of `FastGoalOutput`: `image_embeds` and `text_embeds`,
            and where there are local pairs `local_image_embeds`, `local_text_embeds`, `region_embeds`,
            `sentence_embeds`. A missing one (or None) leaves out the terms that need it.
        logit_scale: The factor itself (`model.logit_scale.exp()`), a scalar.
        region_valid: `(batch,)` bool, False where the region covers no patch.
        sentence_valid: `(batch,)` bool, False where the sentence has no token in the caption.
        global_weight: Weight of the global loss; with 0 it is reported and does not train.
        local_weight: Weight of the local loss, likewise.
        tsl_weight: Weight of both parts of token similarity learning, likewise.
        sparc_weight: Weight of SPARC's fine-grained loss, likewise.
        sparc_rows: `(batch,)`, the fine-grained loss of each row from `sparc_losses`; None leaves the term out.
        sparc_valid: `(batch,)` bool, False where a caption has no words.

    Returns:
        `loss` (the weighted sum) and the unweighted parts that could be computed among `loss_global`,
        `loss_local`, `loss_tsl_image`, `loss_tsl_text`, `loss_sparc`; scalars all.

    Raises:
        ValueError: There is nothing that a loss could be made of.
    """

    def have(*names: str) -> bool:
        return all(embeds.get(name) is not None for name in names)

    parts: dict[str, torch.Tensor] = {}
    weights: dict[str, float] = {}
    if have("image_embeds", "text_embeds"):
        parts["loss_global"] = clip_loss(embeds["image_embeds"], embeds["text_embeds"], logit_scale)  # type: ignore[arg-type]
        weights["loss_global"] = global_weight
    if have("local_image_embeds", "local_text_embeds"):
        parts["loss_local"] = clip_loss(embeds["local_image_embeds"], embeds["local_text_embeds"], logit_scale)  # type: ignore[arg-type]
        weights["loss_local"] = local_weight
    if have("region_embeds", "local_image_embeds"):
        parts["loss_tsl_image"] = token_similarity_loss(
            embeds["region_embeds"],  # type: ignore[arg-type]
            embeds["local_image_embeds"],  # type: ignore[arg-type]
            region_valid,
        )
        weights["loss_tsl_image"] = tsl_weight
    if have("sentence_embeds", "local_text_embeds"):
        parts["loss_tsl_text"] = token_similarity_loss(
            embeds["sentence_embeds"],  # type: ignore[arg-type]
            embeds["local_text_embeds"],  # type: ignore[arg-type]
            sentence_valid,
        )
        weights["loss_tsl_text"] = tsl_weight
    if sparc_rows is not None:
        parts["loss_sparc"] = _mean(sparc_rows, sparc_valid)
        weights["loss_sparc"] = sparc_weight
    if not parts:
        raise ValueError(
            "`embeds` must hold at least `image_embeds` and `text_embeds` (or their local counterparts), "
            f"got {sorted(name for name in embeds if embeds[name] is not None)}."
        )
    # A term of weight 0 is left out rather than multiplied: it then costs no backward pass.
    terms = [weights[name] * part for name, part in parts.items() if weights[name]]
    loss = torch.stack(terms).sum() if terms else 0.0 * next(iter(parts.values()))
    return {"loss": loss, **parts}
