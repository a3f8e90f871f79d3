"""Stretching a table of text positions so that a model reads long captions (Long-CLIP, arXiv 2403.15378)."""

import torch
from transformers.utils import logging

from .families_fastgoal import FAMILIES, Family

logger = logging.get_logger(__name__)

CLIP_POSITIONS = FAMILIES["clip"].positions
LONGEST = FAMILIES["clip"].longest
KEPT_POSITIONS = 20


def stretch_positions(table: torch.Tensor, length: int = LONGEST, family: Family = FAMILIES["clip"]) -> torch.Tensor:
    """Stretch a table of 77 text positions (SigLIP: 64) to `length` rows, keeping the first 20 as they are.

    CLIP saw short captions only, so its first 20 rows are the well-trained ones; the other 57 are
    interpolated linearly. At 248 rows this is Long-CLIP's interpolation by 4: new row `20 + 4i + k` is
    `(1 - k/4) row[20+i] + (k/4) row[21+i]`. Rows past the last one continue its step.

    SigLIP's text embedding is what stands at the last position. There the last row stays what it was, and those
    between are spread over the other 43: new row `20 + j` is the old one at `20 + 43 j / (length - 21)`.

    Args:
        table: Position embeddings, `(77, width)`, or `(64, width)` of SigLIP.
        length: Rows wanted, from 77 to 248, or from 64 to 256.
        family: Of the checkpoint.

    Returns:
        The stretched table, `(length, width)`, in the dtype of `table`.

    Raises:
        ValueError: `table` or `length` is not of these sizes.
    """
    if table.ndim != 2 or table.shape[0] != family.positions:
        raise ValueError(
            f"`table` must be {family.label}'s text position table of shape ({family.positions}, width), got "
            f"{tuple(table.shape)}."
        )
    if not family.positions <= length <= family.longest:
        raise ValueError(f"`length` must be from {family.positions} to {family.longest}, got {length}.")
    kept, tail = table[:KEPT_POSITIONS], table[KEPT_POSITIONS:].double()
    # One row more than the table has, along its last step: the last rows are interpolated like the others, and the
    # last one has one behind it.
    tail = torch.cat([tail, 2 * tail[-1:] - tail[-2:-1]])
    new_rows = length - KEPT_POSITIONS
    rows, steps = (len(tail) - 2, new_rows - 1) if family.pools_last else (len(tail) - 1, new_rows)
    # Integer arithmetic, so that a row that is kept is kept to the bit.
    numerator = torch.arange(new_rows, device=table.device) * rows
    lower = numerator // steps
    fraction = ((numerator % steps).double() / steps).unsqueeze(1)
    stretched = torch.lerp(tail[lower], tail[lower + 1], fraction)
    return torch.cat([kept, stretched.to(table.dtype)])


def target_length(positions: int, wanted: int, family: Family = FAMILIES["clip"]) -> int:
    """Text positions the model shall have, or a `ValueError` that says why it cannot have them."""
    if positions == wanted:
        return positions
    if not family.positions <= wanted <= family.longest:
        raise ValueError(
            f"`max_text_length` must be from {family.positions} to {family.longest} tokens for a {family.label}, got "
            f"{wanted}."
        )
    if positions == family.positions:
        return wanted
    if positions < wanted:
        raise ValueError(
            f"The checkpoint reads {positions} tokens and cannot be stretched to {wanted}: only {family.label}'s "
            f"{family.positions} can be, and what was stretched not again. Pass `max_text_length={positions}` to keep "
            f"it as it is, or start from a checkpoint of {family.positions} tokens."
        )
    logger.info(f"The checkpoint reads {positions} tokens already, more than the {wanted} asked for; left as it is.")
    return positions
