"""SPARC's fine-grained loss (arXiv 2401.09865): every token of a caption against the patches that it looks at.

Pure tensor functions. The loss stays within a sample, so processes need not exchange tokens: each computes the losses
of its own rows, and only those are gathered.
"""

import torch
import torch.nn.functional as F

# Similarities of one token that differ by less than this share of the largest are equal but for rounding.
_EQUAL = 4 * torch.finfo(torch.float32).eps


def group_patches(patch_embeds: torch.Tensor, token_embeds: torch.Tensor) -> torch.Tensor:
    """Language-grouped patch embeddings: for each token the mean of the patches that are like it.

    `s[l, p] = token_l . patch_p`, brought to 0..1 over the patches of each token, 0 where below `1 / patches`, and
    divided by its sum: these are the weights of the mean. A token that is equally like all patches has no minimum and
    maximum to speak of; it gets the plain mean of all patches.

    Args:
        patch_embeds: `(batch, patches, dim)`, projected, not normalized.
        token_embeds: `(batch, tokens, dim)`, likewise.

    Returns:
        `(batch, tokens, dim)`, not normalized.
    """
    similarity = token_embeds @ patch_embeds.transpose(1, 2)  # (batch, tokens, patches)
    low = similarity.amin(dim=-1, keepdim=True)
    span = similarity.amax(dim=-1, keepdim=True) - low
    flat = span <= _EQUAL * similarity.abs().amax(dim=-1, keepdim=True)
    # The flat rows are taken out before the division: a 0/0 would leave NaN in the gradient even if replaced later.
    scaled = (similarity - low) / torch.where(flat, torch.ones_like(span), span)
    scaled = torch.where(flat, torch.ones_like(scaled), scaled)
    scaled = torch.where(scaled < 1 / patch_embeds.shape[1], torch.zeros_like(scaled), scaled)
    weights = scaled / scaled.sum(dim=-1, keepdim=True)  # the largest is 1: the sum is not 0
    return weights @ patch_embeds


def sparc_losses(
    patch_embeds: torch.Tensor, token_embeds: torch.Tensor, token_mask: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """SPARC's fine-grained loss of each row: InfoNCE between its tokens and their grouped patches, both ways.

    With `t_l` the tokens, `c_l` the grouped patches of `group_patches`, `k` the logit scale and n the number of words:
    `L_fine = -1/(2n) sum_l (log softmax_m(k cos(t_l, c_m))[l] + log softmax_m(k cos(c_l, t_m))[l])`.

    Args:
        patch_embeds: `(batch, patches, dim)`, each patch token through the tower's final norm and projection.
        token_embeds: `(batch, tokens, dim)`, each text token likewise.
        token_mask: `(batch, tokens)`, non-zero for the tokens that count (see `towers_fastgoal.word_mask`).
        logit_scale: The factor itself, a scalar.

    Returns:
        `(batch,)`: a row's mean over its words; 0 for a row without words.

    Raises:
        ValueError: `token_mask` does not have one entry per token.
    """
    if token_mask.shape != token_embeds.shape[:2]:
        raise ValueError(
            f"`token_mask` must have one entry per token, {tuple(token_embeds.shape[:2])} (batch, tokens), "
            f"got {tuple(token_mask.shape)}."
        )
    words = token_mask.bool()
    grouped = F.normalize(group_patches(patch_embeds, token_embeds), dim=-1)
    tokens = F.normalize(token_embeds, dim=-1)
    logits = (logit_scale * tokens @ grouped.transpose(1, 2)).float()  # (batch, tokens, tokens), row l: token l
    # A finite filling: a row without words would be all -inf, and its gradient NaN.
    lowest = torch.finfo(logits.dtype).min
    diagonal = logits.diagonal(dim1=1, dim2=2)
    to_patches = logits.masked_fill(~words[:, None, :], lowest).logsumexp(dim=2) - diagonal
    to_tokens = logits.masked_fill(~words[:, :, None], lowest).logsumexp(dim=1) - diagonal
    per_token = torch.where(words, (to_patches + to_tokens) / 2, torch.zeros_like(diagonal))
    return per_token.sum(dim=1) / words.sum(dim=1).clamp(min=1)
