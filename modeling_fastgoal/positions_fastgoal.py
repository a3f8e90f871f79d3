"""Stretching a table of text positions so that a model reads long captions (Long-CLIP, arXiv 2403.15378)."""

import torch

from .families_fastgoal import CLIP, LONGEST, Family

KEPT_POSITIONS = 20


def stretch_positions(table: torch.Tensor, length: int = CLIP.default_length, family: Family = CLIP) -> torch.Tensor:
    """Stretch a table of text positions to `length` rows. The first 20 rows stay unchanged.

    CLIP was trained on short captions, so only the first 20 of its 77 rows are well trained. The others are
    interpolated linearly: new row `20 + j` is old row `20 + j (old - 20) / (length - 20)`. From 77 to 248 rows this is
    Long-CLIP's interpolation by 4: new row `20 + 4i + k` is `(1 - k/4) row[20+i] + (k/4) row[21+i]`. Rows after the
    last one continue its step.

    The text embedding of SigLIP is the output at the last position, so the last row stays unchanged too, and the rows
    between are interpolated: new row `20 + j` is old row `20 + j (old - 21) / (length - 21)`.

    A table may be stretched again. From 77 rows by way of 248 this gives the same rows as in one step, up to rounding,
    since the 248 rows hold all of the 77. Other lengths in between give slightly different rows.

    Args:
        table: Position embeddings, `(old, width)`: the 77 rows of a published checkpoint (SigLIP: 64), or more.
        length: Number of rows of the result, from `old` to 1,024.
        family: Family of the checkpoint.

    Returns:
        The stretched table, `(length, width)`, in the dtype of `table`.

    Raises:
        ValueError: `table` has another shape, or `length` is out of range.
    """
    if table.ndim != 2 or table.shape[0] < family.positions:
        raise ValueError(
            f"`table` must be a {family.label}'s text position table of at least {family.positions} rows, got the "
            f"shape {tuple(table.shape)}."
        )
    longest = max(len(table), LONGEST)
    if not len(table) <= length <= longest:
        raise ValueError(f"`length` must be from {len(table)} to {longest}, got {length}.")
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
        max_text_length: Number of tokens to read. By default 248 (SigLIP: 256) for a published checkpoint; one that
            was stretched before keeps its length.
        family: Family of the checkpoint.

    Raises:
        ValueError: The checkpoint cannot get this many.
    """
    default = positions if positions > family.positions else family.default_length
    length = default if max_text_length is None else max_text_length
    if positions == length:
        return positions
    if positions < family.positions:
        raise ValueError(
            f"`max_text_length` must be {positions} for this checkpoint, got {length}: only a {family.label} of at "
            f"least {family.positions} tokens can be stretched."
        )
    longest = max(positions, LONGEST)
    if not positions <= length <= longest:
        raise ValueError(
            f"`max_text_length` must be from {positions}, the text length of this {family.label}, to {longest}, got "
            f"{length}."
        )
    return length
