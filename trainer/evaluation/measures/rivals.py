"""Counting rivals: how many entries of a similarity matrix reach given thresholds, exactly and without that matrix.

Every rank, recall and average precision of this package is such a count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Cosines in float64: what differs by less than this is the same number, summed in another order.
TIE = 1e-9

_PAIRS = 1 << 16  # pairs that are looked at again together


@dataclass(frozen=True)
class _Screen:
    """The matrices in a format that multiplies fast, and how far its products of unit vectors may be off.

    A coarse screen is worth its while only where few entries come near a threshold.
    """

    rows: Tensor
    columns: Tensor
    error: float
    coarse: bool


@torch.no_grad()
def count_rivals(
    rows: Tensor,
    columns: Tensor,
    row_thresholds: Tensor,
    column_thresholds: Tensor,
    excluded: Tensor,
    chunk_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Count in each row and each column of `rows @ columns.T` the entries that reach that row's or column's thresholds.

    Similarities are computed in tiles of `chunk_size` x `chunk_size`, in float32, or in bfloat16 on devices that
    multiply it fast; whatever lies so near to a threshold that this cannot tell is computed again in float64. So the
    counts are those of float64, in a fraction of the time. Memory grows with the tile, never with the matrix.

    Args:
        rows: `(rows, width)`, float64, of length 1 (`unit_rows`).
        columns: `(columns, width)`, likewise, on the same device.
        row_thresholds: `(rows, m)` float64. An entry counts when it is not less than the threshold, equal to within
            `TIE` included. A threshold of +inf counts nothing.
        column_thresholds: `(columns, n)`, likewise.
        excluded: `(pairs, 2)` int64, the (row, column) of entries that count for nobody.
        chunk_size: Rows and columns of a tile.

    Returns:
        Counts `(rows, m)` and `(columns, n)`, int64.
    """
    device = rows.device
    row_counts = torch.zeros(row_thresholds.shape, dtype=torch.long, device=device)
    column_counts = torch.zeros(column_thresholds.shape, dtype=torch.long, device=device)
    excluded = excluded[excluded[:, 0].argsort()]
    starts = torch.arange(0, len(rows) + chunk_size, chunk_size, device=device)
    bounds = torch.searchsorted(excluded[:, 0].contiguous(), starts).tolist()
    screens = _screens(rows, columns)
    with torch.autocast(device.type, enabled=False):
        for number, top in enumerate(range(0, len(rows), chunk_size)):
            band = slice(top, top + chunk_size)
            band_excluded = excluded[bounds[number] : bounds[number + 1]]
            for left in range(0, len(columns), chunk_size):
                part = slice(left, left + chunk_size)
                here = (band_excluded[:, 1] >= left) & (band_excluded[:, 1] < left + chunk_size)
                hidden = band_excluded[here]
                place = (hidden[:, 0] - top, hidden[:, 1] - left)
                by_row, by_column = row_thresholds[band].T, column_thresholds[part].T
                counts = None
                while screens and counts is None:
                    screen = screens[-1]
                    tile = (screen.rows[band] @ screen.columns[part].T).float()
                    tile[place] = -torch.inf
                    counts = _screened(tile, rows[band], columns[part], by_row, by_column, screen)
                    if counts is None and screen.coarse:
                        screens.pop()  # the next tiles will not be clearer
                    elif counts is None:
                        break
                if counts is not None:
                    row_counts[band] += counts[0]
                    column_counts[part] += counts[1]
                    continue
                tile = rows[band] @ columns[part].T
                tile[place] = -torch.inf
                for m, threshold in enumerate(by_row):
                    row_counts[band, m] += (tile >= threshold[:, None] - TIE).sum(1)
                for n, threshold in enumerate(by_column):
                    column_counts[part, n] += (tile >= threshold - TIE).sum(0)
    return row_counts, column_counts


def unit_rows(embeds: Tensor, name: str) -> Tensor:
    """`embeds` as a float64 matrix with rows of length 1, on its device (on the CPU for a device without float64).

    Raises:
        ValueError: It is no matrix, is empty, or has values that are not finite; the message calls it `name`.
    """
    embeds = torch.as_tensor(embeds).detach()
    if embeds.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(embeds.shape)}; it must be (rows, width).")
    if embeds.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(embeds.shape)}; there is nothing to retrieve.")
    if embeds.device.type == "mps":
        embeds = embeds.cpu()
    # A sum is finite only where all values are: one pass, and the rows are asked only if there is something wrong.
    if not embeds.sum(dtype=torch.float64).isfinite() and not embeds.isfinite().all():
        broken = (~embeds.isfinite().all(dim=1)).nonzero().flatten()
        raise ValueError(
            f"{name} has NaN or infinite values in {len(broken)} of {len(embeds)} rows, first in row {int(broken[0])};"
            " the model has diverged or overflowed. Evaluate an earlier checkpoint, or in float32."
        )
    return normalize(embeds.double(), dim=-1)


def _screens(rows: Tensor, columns: Tensor) -> list[_Screen]:
    """What to try tiles in, the last first; nothing where float32 products are allowed to be inexact."""
    if torch.get_float32_matmul_precision() != "highest":
        return []
    # Rounding of `width` products and sums, and of the factors themselves, of vectors of length 1.
    summing = (rows.shape[1] + 8) * 2.0**-24 + TIE
    screens = [_Screen(rows.float(), columns.float(), summing, coarse=False)]
    if _multiplies_bfloat16(rows.device):
        # Two factors rounded to 8 bits, then the product, then the threshold that it is compared with.
        error = 4.1 * 2.0**-9 + summing
        screens.append(_Screen(rows.bfloat16(), columns.bfloat16(), error, coarse=True))
    return screens


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrices multiply faster than float32 ones there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Without these instructions a CPU converts every number; there is no public question for them.
    return any(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("avx512_bf16", "amx_tile"))


def _screened(
    tile: Tensor, rows: Tensor, columns: Tensor, by_row: Tensor, by_column: Tensor, screen: _Screen
) -> tuple[Tensor, Tensor] | None:
    """Counts of a screen's tile, its doubtful entries decided in float64; None where too many of them are doubtful."""
    error = screen.error
    counts = []
    for dim, thresholds in ((1, by_row), (0, by_column)):
        count = torch.zeros_like(thresholds, dtype=torch.long)
        counts.append(count)
        if not len(thresholds):
            continue
        likely = tile >= (thresholds.amin(0) - error).float().unsqueeze(dim)
        # Rivals of a good model are few: then only they are looked at.
        few = int(likely.count_nonzero()) <= tile.numel() // 32
        if screen.coarse and not few:
            return None
        places = likely.nonzero() if few else None
        for threshold, result in zip(thresholds, count, strict=True):
            low, high = (threshold - error).float(), (threshold + error).float()
            if places is None:
                sure = tile >= high.unsqueeze(dim)
                result += sure.sum(dim)
                doubtful = ((tile >= low.unsqueeze(dim)) ^ sure).nonzero()
            else:
                values, asked = tile[places[:, 0], places[:, 1]], places[:, 1 - dim]
                certain = values >= high[asked]
                result.index_add_(0, asked, certain.long())
                doubtful = places[(values >= low[asked]) & ~certain]
            if len(doubtful) > tile.numel() // (256 if screen.coarse else 16):
                return None
            for pairs in doubtful.split(_PAIRS):
                exact = (rows[pairs[:, 0]] * columns[pairs[:, 1]]).sum(-1)
                asked = pairs[:, 1 - dim]
                result.index_add_(0, asked, (exact >= threshold[asked] - TIE).long())
    return counts[0].T, counts[1].T
