"""Boxes of the data: known regions, and errors that name row and box."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgoal.processing.data.boxes import column_regions, regions_from_boxes
from fastgoal.processing.regions import Region

SIZE = (100, 50)


DOCS = Path(__file__, "../../../../docs/data.md").resolve().read_text(encoding="utf-8")


def test_the_documented_forms_are_all_the_same_box() -> None:
    options = []
    for words, line in re.findall(r"^\| [^|]* (?:pixels|fractions) \| ([^|]*) \| `({.*})` \|$", DOCS, re.MULTILINE):
        given = re.findall(r"--(\S+) ([a-z]+)", words)
        options.append(given)
        chosen = {name.replace("-", "_"): value for name, value in given}
        (region,) = column_regions(json.loads(line), "boxes", SIZE, **chosen)
        assert region.box == pytest.approx((20, 10, 60, 40))
    xywh, fractions = ("box-format", "xywh"), ("box-units", "fractions")
    assert options == [[], [xywh], [fractions], [xywh, fractions]]


def test_the_documented_names_of_boxes() -> None:
    found = re.findall(r"`(\[?\{\"bbox\": .*?\}\]?)`", DOCS)
    assert len(found) == 2
    for text, score in zip(found, (0.9, 1.0), strict=True):
        regions = column_regions({"boxes": json.loads(text)}, "boxes", SIZE)
        assert regions == [Region((20, 10, 60, 40), score, "dog", "column")]


def test_boxes_become_regions() -> None:
    boxes = [[0, 0, 10, 10], [-1, -0.5, 101, 51]]
    assert regions_from_boxes(boxes, SIZE, labels=["cat", None], scores=[0.5, 1]) == [
        Region((0, 0, 10, 10), 0.5, "cat", "column"),
        Region((0, 0, 100, 50), 1.0, "", "column"),
    ]
    assert regions_from_boxes(np.array(boxes[:1], dtype=np.float32), SIZE, labels=[3], source="mine") == [
        Region((0, 0, 10, 10), 1.0, "3", "mine")
    ]
    assert regions_from_boxes(None, SIZE) == regions_from_boxes([], SIZE) == []


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0, 0, 10], "must be four numbers, got 3"),
        ([0, 0, 10, 10, 10], "must be four numbers, got 5"),
        ([0, 0, "a", 10], "must be four numbers, got"),
        (None, "must be four numbers, got None"),
        (7.0, "must be four numbers, got 7.0"),
        ([0, 0, float("nan"), 10], "must be finite"),
        ([0, 0, float("inf"), 10], "must be finite"),
        ([10, 0, 10, 10], "has no area"),
        ([10, 10, 5, 20], "has no area"),
        ([100, 0, 110, 10], "is outside the image of 100 x 50"),
        ([-5, -5, 0, 0], "is outside the image"),
        ([0, 0, 101.5, 10], "extends beyond the image"),
        ([-1.5, 0, 10, 10], "extends beyond the image"),
        ([0, 0, 10, 51.5], "extends beyond the image"),
    ],
)
def test_bad_boxes_name_row_and_index(box: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        regions_from_boxes([[0, 0, 10, 10], box], SIZE, name="row 12 (a.jpg)")
    assert str(error.value).startswith("row 12 (a.jpg): box 1 ")
    assert "(x1, y1, x2, y2) in pixels" in str(error.value)


def test_each_box_has_one_label_and_score() -> None:
    with pytest.raises(ValueError, match="row 1: `labels` must have one entry per box, got 2 for 1 boxes"):
        regions_from_boxes([[0, 0, 1, 1]], SIZE, labels=["a", "b"], name="row 1")
    with pytest.raises(ValueError, match="`scores` must have one entry per box, got 0 for 1 boxes"):
        regions_from_boxes([[0, 0, 1, 1]], SIZE, scores=[])
    with pytest.raises(ValueError, match=r"box 0 .*score, got nan"):
        regions_from_boxes([[0, 0, 1, 1]], SIZE, scores=[math.nan])


def test_fractions_are_not_taken_for_pixels():
    fractions = [[0.0, 0.25, 0.5, 1.0], [0.1, 0.1, 0.2, 0.2]]
    with pytest.raises(ValueError, match=r"row 7: the 2 boxes .*between 0 and 1.*`box_units=fractions`"):
        regions_from_boxes(fractions, (200, 80), name="row 7")
    boxes = [region.box for region in regions_from_boxes(fractions, (200, 80), box_units="fractions")]
    assert boxes == [(0.0, 20.0, 100.0, 80.0), (20.0, 8.0, 40.0, 16.0)]
    # One of a pixel beside others is a box, and so is the only pixel of an image.
    assert len(regions_from_boxes([[0, 0, 1, 1], [0, 0, 9, 9]], (200, 80))) == 2
    assert len(regions_from_boxes([[0, 0, 1, 1]], (1, 1))) == 1
    assert column_regions({"boxes": fractions}, "boxes", (200, 80), box_units="fractions")[0].box == boxes[0]


@pytest.mark.parametrize("box_units", ["pixels", "fractions"])
def test_a_corner_and_a_size(box_units):
    boxes = [[10, 20, 30, 25], [0, 0, 100, 50]]
    if box_units == "fractions":
        boxes = [[x / 100, y / 50, width / 100, height / 50] for x, y, width, height in boxes]
    regions = regions_from_boxes(boxes, SIZE, box_format="xywh", box_units=box_units)
    assert [region.box for region in regions] == [pytest.approx((10, 20, 40, 45)), pytest.approx((0, 0, 100, 50))]


@pytest.mark.parametrize(
    ("box", "box_format", "words"),
    [
        ([40, 30, 20, 10], "xyxy", "has no area.*`box_format=xywh`"),
        (
            [60, 20, 90, 45],
            "xywh",
            r"extends beyond the image of 100 x 50 .*\(x, y, width, height\).*`box_format=xyxy`",
        ),
        ([60, 20, 0, 5], "xywh", "has no area.*`box_format=xyxy`"),
    ],
)
def test_boxes_in_the_other_format_are_refused_with_a_hint(box, box_format, words):
    with pytest.raises(ValueError, match=words):
        regions_from_boxes([box], SIZE, box_format=box_format)


def test_objects_of_datasets():
    for objects in (
        {"bbox": [[10, 20, 30, 25], [0, 0, 5, 5]], "category": [3, 1], "area": [750, 25]},
        [{"bbox": [10, 20, 30, 25], "category": 3}, {"bbox": [0, 0, 5, 5], "category": 1}],
    ):
        regions = column_regions({"objects": objects}, "objects", SIZE, box_format="xywh")
        assert [(region.box, region.label) for region in regions] == [((10, 20, 40, 45), "3"), ((0, 0, 5, 5), "1")]
