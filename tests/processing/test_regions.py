"""Regions: known answers for the default boxes, filters, merging and checks, and properties over random boxes."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastgoal.processing.regions import (
    Region,
    clip_box,
    default_regions,
    filter_regions,
    find_regions,
    merge_regions,
)

SIZE = (100, 50)
sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@st.composite
def _regions(draw: st.DrawFn) -> Region:
    x1, y1 = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    x2, y2 = x1 + draw(st.integers(1, 20)), y1 + draw(st.integers(1, 20))
    return Region((x1, y1, x2, y2), draw(st.sampled_from([0.1, 0.25, 0.5, 0.9])))


def _slow_iou(a: Region, b: Region) -> float:
    """Counts unit squares; boxes have integer corners."""
    squares = []
    for region in (a, b):
        x1, y1, x2, y2 = map(int, region.box)
        squares.append({(x, y) for x in range(x1, x2) for y in range(y1, y2)})
    return len(squares[0] & squares[1]) / len(squares[0] | squares[1])


def test_default_regions_of_a_known_size() -> None:
    assert default_regions(SIZE) == [
        Region((0, 0, 50, 25), 1.0, "top_left", "default"),
        Region((50, 0, 100, 25), 1.0, "top_right", "default"),
        Region((0, 25, 50, 50), 1.0, "bottom_left", "default"),
        Region((50, 25, 100, 50), 1.0, "bottom_right", "default"),
        Region((25, 12.5, 75, 37.5), 1.0, "center", "default"),
    ]


@given(sizes, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_quadrants_tile_the_image(size: tuple[int, int], u: float, v: float) -> None:
    *quadrants, center = (region.box for region in default_regions(size))
    x, y = u * size[0], v * size[1]
    assert sum(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in quadrants) == 1
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in quadrants]
    assert math.isclose(sum(areas), size[0] * size[1])
    assert center == (size[0] / 4, size[1] / 4, size[0] * 3 / 4, size[1] * 3 / 4)
    assert filter_regions(default_regions(size), size) == merge_regions(default_regions(size)) == default_regions(size)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5,), None, (1, 2, 3)])
def test_bad_image_size(size: Any) -> None:
    with pytest.raises(ValueError, match=r"`image_size`"):
        default_regions(size)


@pytest.mark.parametrize(
    ("box", "score", "stays"),
    [
        ((0, 0, 10, 5), 0.25, True),  # exactly 1 % and exactly the smallest score
        ((0, 0, 10, 4.9), 0.9, False),
        ((0, 0, 80, 50), 0.9, True),  # exactly 80 %
        ((0, 0, 81, 50), 0.9, False),
        ((0, 0, 50, 50), 0.24, False),
        ((0, 0, 50, 50), 1.0, True),
    ],
)
def test_filter_limits_are_inclusive(box: tuple[float, float, float, float], score: float, stays: bool) -> None:
    assert len(filter_regions([Region(box, score)], SIZE)) == stays


def test_filter_limits_hold_for_float32() -> None:
    score = float(np.float32(0.3) - np.float32(1e-8))
    assert filter_regions([Region((0, 0, 50, 50), float(np.float32(0.7)))], SIZE, min_score=0.7)
    assert filter_regions([Region((0, 0, 50, 50), score)], SIZE, min_score=0.3)


def test_filter_refuses_limits_in_percent() -> None:
    with pytest.raises(ValueError, match=r"got 0\.9 and 0\.8"):
        filter_regions([], SIZE, min_area=0.9)


@given(st.lists(_regions(), max_size=12), st.floats(0, 1), st.floats(0, 0.5), st.floats(0.5, 1))
@settings(deadline=None)
def test_filter_keeps_order_and_is_idempotent(regions: list[Region], score: float, low: float, high: float) -> None:
    kept = filter_regions(regions, (40, 40), score, low, high)
    assert filter_regions(kept, (40, 40), score, low, high) == kept
    positions = iter(regions)
    assert all(any(region is candidate for candidate in positions) for region in kept)


def test_merge_keeps_the_highest_score_in_place() -> None:
    first, second = Region((0, 0, 10, 10), 0.5, "cat"), Region((0, 0, 10, 9.5), 0.8, "dog")
    third = Region((0, 0, 5, 5), 0.9)
    assert merge_regions([first, third, second]) == [third, second]
    assert merge_regions([first, second], iou_threshold=0.96) == [first, second]
    assert merge_regions([first, second], iou_threshold=0.95) == [second]  # the threshold itself merges
    assert merge_regions([Region((0, 0, 1, 1), 0.5, "a"), Region((0, 0, 1, 1), 0.5, "b")]) == [
        Region((0, 0, 1, 1), 0.5, "a")
    ]
    assert merge_regions([]) == []


@given(st.lists(_regions(), max_size=14), st.sampled_from([0.1, 0.3, 0.5, 0.75, 0.9, 1.0]))
@settings(deadline=None)
def test_merge_leaves_no_pair_and_loses_nothing_alone(regions: list[Region], threshold: float) -> None:
    kept = merge_regions(regions, threshold)
    assert all(_slow_iou(a, b) < threshold for i, a in enumerate(kept) for b in kept[:i])
    for region in regions:  # whatever was dropped has a better or equal duplicate that stayed
        assert any(
            other is region or (_slow_iou(region, other) >= threshold and other.score >= region.score) for other in kept
        )
    positions = iter(regions)
    assert all(any(region is candidate for candidate in positions) for region in kept)
    assert merge_regions(kept, threshold) == kept


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, 90])
def test_merge_threshold_is_checked(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"`iou_threshold`"):
        merge_regions([], threshold)


finite = st.floats(-200, 200)


@given(st.tuples(finite, finite, finite, finite))
def test_clipping(box: tuple[float, float, float, float]) -> None:
    clipped = clip_box(box, SIZE)
    inside_x = max(box[0], 0) < min(box[2], SIZE[0])
    inside_y = max(box[1], 0) < min(box[3], SIZE[1])
    if not (inside_x and inside_y):
        assert clipped is None
    else:
        assert clipped == (max(box[0], 0), max(box[1], 0), min(box[2], SIZE[0]), min(box[3], SIZE[1]))


class Named:
    """Finds a caption's words, each once; a caption of one word is nothing to look for."""

    spec = None

    def prepare(self, image: Image.Image, caption: str | None) -> list[str] | None:
        words = (caption or "").split()
        return words if len(words) > 1 else None

    def detect(self, prepared: list[list[str]]) -> list[list[Region]]:
        return [[Region((0, 0, 1, 1), label=word) for word in words] for words in prepared]


def test_an_image_with_nothing_to_detect_has_no_regions() -> None:
    images = [Image.new("RGB", (4, 4))] * 3
    found = find_regions(Named(), images, ["a cat", "dog", "a red cup"])
    assert [[region.label for region in regions] for regions in found] == [["a", "cat"], [], ["a", "red", "cup"]]
    assert find_regions(Named(), images) == [[], [], []]
    with pytest.raises(ValueError, match=r"`captions`.* 3, got 1"):
        find_regions(Named(), images, ["a cat"])
