"""Counts of a matrix that is never held whole, compared with counts of the whole matrix."""

import math

import pytest
import torch

from fastgoal.trainer.evaluation.measures.ranks import count_at_least, unit_rows

EXCLUDED = torch.tensor([[3, 4], [0, 0], [3, 40], [89, 89]])


@pytest.mark.parametrize("chunk_size", [7, 32, 1024])
@pytest.mark.parametrize("spread", [0.0, 1e-8, 1e-4, 1.0])
def test_counts_are_those_of_the_whole_matrix(spread, chunk_size):
    """With ties (0), similarities that float32 cannot tell apart (1e-8, 1e-4), and any others (1)."""
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(1, 64, generator=generator, dtype=torch.float64)
    rows, columns = (
        unit_rows(center + spread * torch.randn(90, 64, generator=generator, dtype=torch.float64), "rows")
        for _ in range(2)
    )
    matrix = rows @ columns.T
    by_row, by_column = matrix[:, :2].contiguous(), matrix[:3].T.contiguous()
    by_row[5, 1] = math.inf
    matrix = matrix.index_put(tuple(EXCLUDED.T), torch.tensor(-math.inf, dtype=torch.float64))
    row_counts, column_counts = count_at_least(rows, columns, by_row, by_column, EXCLUDED, chunk_size)
    assert torch.equal(row_counts, (matrix[:, :, None] >= by_row[:, None] - 1e-9).sum(1))
    assert torch.equal(column_counts, (matrix.T[:, :, None] >= by_column[:, None] - 1e-9).sum(1))


def test_a_tie_is_what_differs_by_less_than_the_tolerance():
    rows, columns = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()
    nothing = torch.empty(0, 2, dtype=torch.long)
    for above, count in ((0.9e-9, 2), (1.1e-9, 0)):
        thresholds = torch.full((1, 1), 1 + above, dtype=torch.float64)
        counts, _ = count_at_least(rows, columns, thresholds, torch.zeros(2, 0, dtype=torch.float64), nothing)
        assert counts.item() == count


def test_autocast_does_not_round():
    generator = torch.Generator().manual_seed(0)
    rows = unit_rows(torch.randn(50, 8, generator=generator), "rows")
    own = torch.ones(50, 1, dtype=torch.float64)
    diagonal = torch.arange(50)[:, None].expand(-1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        counts, _ = count_at_least(rows, rows, own, own, diagonal)
    assert not counts.any()


def test_unit_rows():
    embeds = torch.tensor([[3.0, 4.0], [0.0, 0.5]], dtype=torch.bfloat16)
    assert unit_rows(embeds, "embeds").flatten().tolist() == pytest.approx([0.6, 0.8, 0.0, 1.0])
    with pytest.raises(ValueError, match=r"`embeds` .* 1 of 2 rows.* row 1"):
        unit_rows(torch.tensor([[1.0], [math.nan]]), "embeds")
