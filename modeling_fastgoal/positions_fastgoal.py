"""Stretching CLIP's text position table so that it reads long captions (Long-CLIP, arXiv 2403.15378)."""

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

CLIP_POSITIONS = 77
KEPT_POSITIONS = 20
LONGEST = KEPT_POSITIONS + 4 * (CLIP_POSITIONS - KEPT_POSITIONS)  # 248


def stretch_positions(table: torch.Tensor, length: int = LONGEST) -> torch.Tensor:
    """Stretch a table of 77 text positions to `length` rows, keeping the first 20 as they are.

    CLIP saw short captions only, so its first 20 rows are the well-trained ones; the other 57 are
    interpolated linearly. At 248 rows this is Long-CLIP's interpolation by 4: new row `20 + 4i + k` is
    `(1 - k/4) row[20+i] + (k/4) row[21+i]`. Rows past the last one continue its step.

    Args:
        table: Position embeddings, `(77, width)`.
        length: Rows wanted, from 77 to 248.

    Returns:
        The stretched table, `(length, width)`, in the dtype of `table`.

    Raises:
        ValueError: `table` does not have 77 rows, or `length` is not within 77..248.
    """
    if table.ndim != 2 or table.shape[0] != CLIP_POSITIONS:
        raise ValueError(
            f"`table` must be CLIP's text position table of shape ({CLIP_POSITIONS}, width), got {tuple(table.shape)}."
        )
    if not CLIP_POSITIONS <= length <= LONGEST:
        raise ValueError(f"`length` must be from {CLIP_POSITIONS} to {LONGEST}, got {length}.")
    kept, tail = table[:KEPT_POSITIONS], table[KEPT_POSITIONS:].double()
    # One row more than the table has, along its last step, so that the last rows are interpolated like the others.
    tail = torch.cat([tail, 2 * tail[-1:] - tail[-2:-1]])
    rows = len(tail) - 1
    new_rows = length - KEPT_POSITIONS
    # Integer arithmetic, so that a row that is kept is kept to the bit.
    numerator = torch.arange(new_rows, device=table.device) * rows
    lower = numerator // new_rows
    fraction = ((numerator % new_rows).double() / new_rows).unsqueeze(1)
    stretched = torch.lerp(tail[lower], tail[lower + 1], fraction)
    return torch.cat([kept, stretched.to(table.dtype)])


def target_length(positions: int, wanted: int) -> int:
    """Text positions the model shall have, or a `ValueError` that says why it cannot have them."""
    if positions == wanted:
        return positions
    if not CLIP_POSITIONS <= wanted <= LONGEST:
        raise ValueError(f"`max_text_length` must be from {CLIP_POSITIONS} to {LONGEST} tokens, got {wanted}.")
    if positions == CLIP_POSITIONS:
        return wanted
    if positions < wanted:
        raise ValueError(
            f"The checkpoint reads {positions} tokens and cannot be stretched to {wanted}: only CLIP's "
            f"{CLIP_POSITIONS} can be, and what was stretched not again. Pass `max_text_length={positions}` to keep it "
            f"as it is, or start from a checkpoint of {CLIP_POSITIONS} tokens."
        )
    logger.info(f"The checkpoint reads {positions} tokens already, more than the {wanted} asked for; left as it is.")
    return positions
