"""The stretched position table against Long-CLIP's published formula and numpy's interpolation."""

import numpy as np
import pytest
import torch

from fastgoal.modeling_fastgoal import stretch_positions
from fastgoal.modeling_fastgoal.families_fastgoal import CLIP, SIGLIP
from fastgoal.modeling_fastgoal.positions_fastgoal import target_length


def random_table(rows, width=6):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


def long_clip(table):
    """Long-CLIP's table of 248 rows (arXiv 2403.15378), computed in float64: four rows from each of the last 57."""
    old = table.double()
    rows = [*old[:20]]
    for i in range(20, 77):
        step = old[i + 1] - old[i] if i < 76 else old[76] - old[75]
        rows += [old[i] + quarter / 4 * step for quarter in range(4)]
    return torch.stack(rows).to(table.dtype)


def interpolated(table, length, keeps_last=False):
    """The rows by `numpy.interp`, one column at a time."""
    old = table.double().numpy()
    if not keeps_last:
        old = np.concatenate([old, [2 * old[-1] - old[-2]]])
    places = np.linspace(20, len(old) - 1, length - 20, endpoint=keeps_last)
    rows = np.stack([np.interp(places, np.arange(len(old)), column) for column in old.T], axis=1)
    return torch.cat([table[:20], torch.tensor(rows, dtype=table.dtype)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_248_rows_equal_long_clip_to_the_bit(dtype):
    table = random_table(77, 512).to(dtype)
    stretched = stretch_positions(table, 248)
    assert (stretched.shape, stretched.dtype) == ((248, 512), dtype)
    assert torch.equal(stretched, long_clip(table))


@pytest.mark.parametrize("rows", [77, 248, 512, 1024])
def test_a_table_of_the_same_length_stays_unchanged(rows):
    assert torch.equal(stretch_positions(random_table(rows), rows), random_table(rows))
    assert torch.equal(stretch_positions(random_table(rows), rows, SIGLIP), random_table(rows))


@pytest.mark.parametrize(("rows", "length"), [(77, 78), (77, 247), (77, 512), (77, 1024), (248, 512), (100, 999)])
def test_other_lengths_equal_numpys_interpolation(rows, length):
    table = random_table(rows)
    stretched = stretch_positions(table, length)
    assert stretched.shape == (length, 6)
    assert torch.equal(stretched[:21], table[:21])
    torch.testing.assert_close(stretched, interpolated(table, length), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rows", [77, 248])
def test_a_straight_line_stays_straight(rows):
    stretched = stretch_positions(torch.arange(float(rows)).unsqueeze(1), 512)[:, 0]
    steps = stretched[20:].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, (rows - 20) / 492))


@pytest.mark.parametrize(("rows", "length"), [(64, 65), (64, 256), (64, 512), (256, 512), (256, 1024)])
def test_the_last_row_of_siglip_stays_last(rows, length):
    table = random_table(rows)
    stretched = stretch_positions(table, length, SIGLIP)
    assert stretched.shape == (length, 6)
    assert torch.equal(stretched[:21], table[:21])
    assert torch.equal(stretched[-1], table[-1])
    torch.testing.assert_close(stretched, interpolated(table, length, keeps_last=True), atol=1e-6, rtol=1e-6)


def test_two_steps_equal_one_only_if_the_rows_between_hold_the_old_ones():
    def by_way_of(rows, between, family=CLIP):
        table = random_table(rows)
        return stretch_positions(stretch_positions(table, between, family), 512, family), stretch_positions(
            table, 512, family
        )

    torch.testing.assert_close(*by_way_of(77, 248), atol=1e-6, rtol=1e-6)
    for twice, once in (by_way_of(77, 300), by_way_of(64, 256, SIGLIP)):
        assert (twice - once).abs().max() > 0.1


@pytest.mark.parametrize(("rows", "length"), [(77, 76), (77, 1025), (77, 0), (77, -1), (248, 247), (248, 77)])
def test_other_lengths_are_refused(rows, length):
    with pytest.raises(ValueError, match=f"`length` .*from {rows} to 1024, got {length}"):
        stretch_positions(random_table(rows), length)


def test_other_tables_are_refused():
    with pytest.raises(ValueError, match=r"`table`.* CLIP.*77.*\(64, 6\)"):
        stretch_positions(torch.zeros(64, 6), 248)
    with pytest.raises(ValueError, match=r"`table`.*\(77,\)"):
        stretch_positions(torch.zeros(77), 248)
    assert stretch_positions(torch.zeros(77, 6), 256, SIGLIP).shape == (256, 6)  # from one of another length


@pytest.mark.parametrize(
    ("positions", "wanted", "expected"),
    [
        *((77, None, 248), (77, 77, 77), (77, 1024, 1024), (248, None, 248), (100, None, 100), (100, 248, 248)),
        *((512, None, 512), (2000, None, 2000), (2000, 2000, 2000), (60, 60, 60)),
    ],
)
def test_the_length_that_a_checkpoint_gets(positions, wanted, expected):
    assert target_length(positions, wanted) == expected


@pytest.mark.parametrize(
    ("positions", "wanted", "message"),
    [
        (77, 76, "from 77, .* to 1024, got 76"),
        (248, 128, "from 248, .* to 1024, got 128"),
        (77, 1025, "from 77, .* to 1024, got 1025"),
        (2000, 1024, "from 2000, .* to 2000, got 1024"),
        (64, 248, "64 .* got 248: .*at least 77"),
        (64, None, "64 .* got 248"),
    ],
)
def test_lengths_that_a_checkpoint_cannot_get(positions, wanted, message):
    with pytest.raises(ValueError, match=f"`max_text_length` must be {message}"):
        target_length(positions, wanted)
