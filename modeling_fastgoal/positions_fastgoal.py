"""Stretching a table of text positions so that a model reads long captions (Long-CLIP, arXiv 2403.15378)."""

import torch
from transformers.utils import logging

from .families_fastgoal import CLIP, Family

logger = logging.get_logger(__name__)

KEPT_POSITIONS = 20


def stretch_positions(table: torch.Tensor, length: int = CLIP.longest, family: Family = CLIP) -> torch.Tensor:
    """Stretch a table of 77 text positions (SigLIP: 64) to `length` rows. The first 20 rows stay unchanged.

    CLIP was trained on short captions, so only its first 20 rows are well trained. The other 57 are interpolated
    linearly. With 248 rows this is Long-CLIP's interpolation by 4: new row `20 + 4i + k` is
    `(1 - k/4) row[20+i] + (k/4) row[21+i]`. Rows after the last one continue its step.

    The text embedding of SigLIP is the output at the last position, so the last row stays unchanged too, and the rows
    between are interpolated: new row `20 + j` is the old row `20 + 43 j / (length - 21)`.

    Args:
        table: Position embeddings, `(77, width)`, or `(64, width)` for SigLIP.
        length: Number of rows of the result, from 77 to 248, or from 64 to 256 for SigLIP.
        family: Family of the checkpoint.

    Returns:
        The stretched table, `(length, width)`, in the dtype of `table`.

    Raises:
        ValueError: `table` has another shape, or `length` is out of range.
    """
    if table.ndim != 2 or table.shape[0] != family.positions:
        raise ValueError(
            f"`table` must be a {family.label}'s text position table of shape ({family.positions}, width), got "
            f"{tuple(table.shape)}."
        )
    if not family.positions <= length <= family.longest:
        raise ValueError(f"`length` must be from {family.positions} to {family.longest}, got {length}.")
    kept, tail = table[:KEPT_POSITIONS], table[KEPT_POSITIONS:].double()
    # One more row along the last step, so that the last row of the table has a successor to be interpolated with.
    tail = torch.cat([tail, 2 * tail[-1:] - tail[-2:-1]])
    new_rows = length - KEPT_POSITIONS
    rows, steps = (len(tail) - 2, new_rows - 1) if family.pools_last else (len(tail) - 1, new_rows)
    # Integer arithmetic, so that rows of the table that stay are equal to the bit.
    numerator = torch.arange(new_rows, device=table.device) * rows
    lower = numerator // steps
    fraction = ((numerator % steps).double() / steps).unsqueeze(1)
    stretched = torch.lerp(tail[lower], tail[lower + 1], fraction)
    return torch.cat([kept, stretched.to(table.dtype)])


def target_length(positions: int, max_text_length: int | None, family: Family = CLIP) -> int:
    """Return the number of text positions that a model gets.

    Args:
        positions: Number of text positions of the checkpoint.
        max_text_length: Number of tokens to read; None for the most that the family allows.
        family: Family of the checkpoint.

    Raises:
        ValueError: The checkpoint cannot get this many.
    """
    length = family.longest if max_text_length is None else max_text_length
    if positions == length:
        return positions
    if not family.positions <= length <= family.longest:
        raise ValueError(
            f"`max_text_length` must be from {family.positions} to {family.longest} for a {family.label}, got {length}."
        )
    if positions == family.positions:
        return length
    if positions < length:
        raise ValueError(
            f"`max_text_length` must be {positions} for this checkpoint, got {length}: only a {family.label} of "
            f"{family.positions} tokens can be stretched."
        )
    logger.info(f"The checkpoint already reads {positions} tokens, more than {length}; its positions stay unchanged.")
    return positions
