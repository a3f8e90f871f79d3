"""The stretched position table against its formula, row by row."""

import pytest
import torch

from fastgoal.modeling_fastgoal import stretch_positions
from fastgoal.modeling_fastgoal.families_fastgoal import FAMILIES


@pytest.fixture
def table():
    torch.manual_seed(0)
    return torch.randn(77, 6)


def test_248_rows_equal_long_clip(table):
    stretched = stretch_positions(table, 248)
    assert stretched.shape == (248, 6)
    assert torch.equal(stretched[:20], table[:20])
    for i in range(56):
        for k in range(4):
            expected = (1 - k / 4) * table[20 + i] + (k / 4) * table[21 + i]
            torch.testing.assert_close(stretched[20 + 4 * i + k], expected)
    for k in range(4):
        torch.testing.assert_close(stretched[244 + k], table[76] + (k / 4) * (table[76] - table[75]))


def test_77_rows_stay_unchanged(table):
    assert torch.equal(stretch_positions(table, 77), table)


@pytest.mark.parametrize("length", [78, 100, 128, 134, 247])
def test_a_straight_line_stays_straight(length):
    table = torch.arange(77.0).unsqueeze(1)
    stretched = stretch_positions(table, length)[:, 0]
    assert torch.equal(stretched[:20], table[:20, 0])
    steps = stretched[20:].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 57 / (length - 20)))
    assert stretched[20] == 20


def test_dtype_is_kept(table):
    assert stretch_positions(table.half(), 248).dtype == torch.float16


@pytest.mark.parametrize("length", [76, 249, 0, -1])
def test_other_lengths_are_refused(table, length):
    with pytest.raises(ValueError, match="from 77 to 248"):
        stretch_positions(table, length)


@pytest.mark.parametrize("length", [64, 65, 128, 256])
def test_the_last_row_of_siglip_stays_last(length):
    table = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    stretched = stretch_positions(table, length, FAMILIES["siglip"])
    assert stretched.shape == (length, 6)
    assert torch.equal(stretched[:21], table[:21])
    assert torch.equal(stretched[-1], table[-1])
    for j in range(length - 20):
        place = 20 + 43 * j / (length - 21)
        low = min(int(place + 1e-9), 62)
        expected = torch.lerp(table[low], table[low + 1], place - low)
        torch.testing.assert_close(stretched[20 + j], expected, atol=1e-5, rtol=1e-5)


def test_other_sizes_of_siglip_are_refused():
    with pytest.raises(ValueError, match="from 64 to 256, got 257"):
        stretch_positions(torch.zeros(64, 6), 257, FAMILIES["siglip"])
    with pytest.raises(ValueError, match=r"SigLIP's text position table of shape \(64, width\), got \(77, 6\)"):
        stretch_positions(torch.zeros(77, 6), 256, FAMILIES["siglip"])


def test_other_tables_are_refused():
    with pytest.raises(ValueError, match=r"\(64, 6\)"):
        stretch_positions(torch.zeros(64, 6), 248)
