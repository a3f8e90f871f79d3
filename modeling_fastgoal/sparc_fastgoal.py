"""SPARC's fine-grained loss (arXiv 2401.09865), between each caption token and the patches that are similar to it.

Pure tensor functions. The loss compares within a row, so processes need not exchange tokens: each computes the losses
of its own rows, and only the losses are gathered.
"""

import torch
import torch.nn.functional as F

# Similarities of a token that differ by less than this fraction of the largest are equal up to rounding.
_EQUAL = 4 * torch.finfo(torch.float32).eps


def group_patches(patch_embeds: torch.Tensor, token_embeds: torch.Tensor) -> torch.Tensor:
    """Return language-grouped patch embeddings: for each token, a weighted mean of the patches similar to it.

    The similarities `s[l, p] = token_l . patch_p` of each token are scaled to 0..1, set to 0 below `1 / patches`, and
    divided by their sum; these are the weights. A token with equal similarities to all patches gets their plain mean.

    Args:
        patch_embeds: `(batch, patches, dim)`, projected, not normalized.
        token_embeds: `(batch, tokens, dim)`, projected, not normalized.

    Returns:
        `(batch, tokens, dim)`, not normalized.
    """
    similarity = token_embeds @ patch_embeds.transpose(1, 2)  # (batch, tokens, patches)
    low = similarity.amin(dim=-1, keepdim=True)
    span = similarity.amax(dim=-1, keepdim=True) - low
    flat = span <= _EQUAL * similarity.abs().amax(dim=-1, keepdim=True)
    # Flat rows are replaced before the division: 0/0 would leave NaN in the gradient even if it were replaced later.
    scaled = (similarity - low) / torch.where(flat, torch.ones_like(span), span)
    scaled = torch.where(flat, torch.ones_like(scaled), scaled)
    scaled = torch.where(scaled < 1 / patch_embeds.shape[1], torch.zeros_like(scaled), scaled)
    weights = scaled / scaled.sum(dim=-1, keepdim=True)  # the largest is 1, so the sum is not 0
    return weights @ patch_embeds


def sparc_losses(
    patch_embeds: torch.Tensor, token_embeds: torch.Tensor, token_mask: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """Return SPARC's fine-grained loss of each row: InfoNCE between tokens and grouped patches, in both directions.

    With tokens `t_l`, grouped patches `c_l` from `group_patches`, the logit scale `k` and n words:
    `L_fine = -1/(2n) sum_l (log softmax_m(k cos(t_l, c_m))[l] + log softmax_m(k cos(c_l, t_m))[l])`.

    Args:
        patch_embeds: `(batch, patches, dim)`, each patch after the tower's final norm and projection.
        token_embeds: `(batch, tokens, dim)`, each text token after the tower's final norm and projection.
        token_mask: `(batch, tokens)`, non-zero for words (see `towers_fastgoal.word_mask`).
        logit_scale: The factor of the logits, a scalar (not its logarithm).

    Returns:
        `(batch,)`: the mean over the words of each row; 0 for a row without words.

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
    # A finite value: a row without words would be all -inf, and its gradient NaN.
    lowest = torch.finfo(logits.dtype).min
    diagonal = logits.diagonal(dim1=1, dim2=2)
    to_patches = logits.masked_fill(~words[:, None, :], lowest).logsumexp(dim=2) - diagonal
    to_tokens = logits.masked_fill(~words[:, :, None], lowest).logsumexp(dim=1) - diagonal
    per_token = torch.where(words, (to_patches + to_tokens) / 2, torch.zeros_like(diagonal))
    return per_token.sum(dim=1) / words.sum(dim=1).clamp(min=1)
