"""Count, without the whole similarity matrix, the candidates that rank before an answer.

Every rank, recall and average precision of this package is such a count.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Cosines in float64 that differ by less than this are equal: only the order of summation differs.
TIE = 1e-9


@torch.no_grad()
def count_at_least(
    rows: Tensor,
    columns: Tensor,
    row_thresholds: Tensor,
    column_thresholds: Tensor,
    excluded: Tensor,
    chunk_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Count, in each row and each column of `rows @ columns.T`, the entries that are at least its thresholds.

    Similarities are computed in float64, in tiles of `chunk_size` x `chunk_size`, so memory grows with the tile and
    not with the matrix. An entry within `TIE` of a threshold counts as equal to it.

    Args:
        rows: `(rows, width)`, float64, of about unit length (see `unit_rows`).
        columns: `(columns, width)`, float64, of about unit length, on the same device.
        row_thresholds: `(rows, m)` float64. A threshold of +inf counts nothing.
        column_thresholds: `(columns, n)` float64.
        excluded: `(pairs, 2)` int64, the (row, column) of entries that do not count.
        chunk_size: Rows and columns of a tile.

    Returns:
        Counts `(rows, m)` and `(columns, n)`, int64.
    """
    row_counts = torch.zeros_like(row_thresholds, dtype=torch.long)
    column_counts = torch.zeros_like(column_thresholds, dtype=torch.long)
    row_thresholds, column_thresholds = row_thresholds - TIE, column_thresholds - TIE
    excluded_tiles = excluded // chunk_size
    with torch.autocast(rows.device.type, enabled=False):
        for i, top in enumerate(range(0, len(rows), chunk_size)):
            band = slice(top, top + chunk_size)
            in_band = excluded_tiles[:, 0] == i
            band_excluded, band_tiles = excluded[in_band], excluded_tiles[in_band, 1]
            for j, left in enumerate(range(0, len(columns), chunk_size)):
                part = slice(left, left + chunk_size)
                tile = rows[band] @ columns[part].T
                hidden = band_excluded[band_tiles == j]
                tile[hidden[:, 0] - top, hidden[:, 1] - left] = -torch.inf
                for m, threshold in enumerate(row_thresholds[band].T):
                    row_counts[band, m] += (tile >= threshold[:, None]).sum(1)
                for n, threshold in enumerate(column_thresholds[part].T):
                    column_counts[part, n] += (tile >= threshold).sum(0)
    return row_counts, column_counts


def unit_rows(embeds: Tensor, name: str) -> Tensor:
    """Return `embeds` in float64 with rows of unit length, on its device (on the CPU if the device lacks float64).

    Raises:
        ValueError: `embeds`, which the message calls `name`, is not a matrix, is empty or is not finite.
    """
    embeds = torch.as_tensor(embeds).detach()
    if embeds.ndim != 2 or embeds.numel() == 0:
        raise ValueError(f"`{name}` must be a non-empty matrix (rows, width), got shape {tuple(embeds.shape)}.")
    if embeds.device.type == "mps":
        embeds = embeds.cpu()
    # A sum is finite only if all values are: one pass, and the rows are inspected only if something is wrong.
    if not embeds.sum(dtype=torch.float64).isfinite() and not embeds.isfinite().all():
        broken = (~embeds.isfinite().all(dim=1)).nonzero().flatten()
        raise ValueError(
            f"`{name}` must be finite, got NaN or infinite values in {len(broken)} of {len(embeds)} rows, first in row"
            f" {int(broken[0])}. The model has diverged or overflowed: evaluate an earlier checkpoint, or use float32."
        )
    return normalize(embeds.double(), dim=-1)
