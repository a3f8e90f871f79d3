"""Boxes that came with the data, checked and made regions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from fastgoal.processing.geometry import Box, check_size
from fastgoal.processing.regions import Region, clip_box

_COLUMN = "a list of [x1, y1, x2, y2], or a list of dicts with 'bbox' and perhaps 'label' and 'score'"
BOX_FORMS = ("pixels", "normalized")
_FORMAT = (
    "Boxes are (x1, y1, x2, y2) in pixels of the upright image: convert (x, y, width, height) boxes and fractions, and "
    "remove boxes that have no area."
)


def regions_from_boxes(
    boxes: Iterable[Sequence[float]] | np.ndarray | None,
    image_size: tuple[int, int],
    labels: Sequence[Any] | None = None,
    scores: Sequence[float] | None = None,
    source: str = "column",
    name: str | None = None,
    form: str = "pixels",
) -> list[Region]:
    """Checks boxes that came with the data and makes regions of them.

    A box may stick out of the image by up to one pixel, which annotations often do by rounding, and is then clipped.

    Args:
        boxes: (x1, y1, x2, y2) each, in pixels of the upright image; None means no boxes.
        image_size: (width, height) of the image in pixels.
        labels: a name for each box.
        scores: a finite number for each box.
        source: `source` of the regions.
        name: the row or file, for the error.
        form: `pixels`, or `normalized` for fractions of the image's width and height.

    Raises:
        ValueError: naming the row and the index of the box, if a box has not four finite numbers, has no area, lies
            outside the image or sticks out by more than one pixel, if all boxes in pixels are fractions, or if labels
            or scores are not one a box.
    """
    width, height = check_size(image_size)
    where = f"{name}: " if name else ""
    rows = [] if boxes is None else list(boxes)
    for argument, values in (("labels", labels), ("scores", scores)):
        if values is not None and len(values) != len(rows):
            raise ValueError(f"{where}`{argument}` must be one a box, got {len(values)} for {len(rows)} boxes.")
    regions = []
    largest = 0.0
    image = f"the image of {width} x {height} pixels"
    for index, row in enumerate(rows):
        what, wrong = f"{where}box {index}", ""
        x1, y1, x2, y2 = _four_numbers(row, what)
        if form == "normalized":
            x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
        given = x1, y1, x2, y2
        largest = max(largest, x2, y2)
        box = clip_box(given, (width, height))
        if x2 <= x1 or y2 <= y1:
            wrong = "has no area"
        elif box is None:
            wrong = f"lies outside {image}"
        elif min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
            wrong = f"sticks out of {image} by more than one pixel"
        if box is None or wrong:
            raise ValueError(f"{what} {given} {wrong}. {_FORMAT}")
        score: Any = 1.0 if scores is None else scores[index]
        if not isinstance(score, Real) or not math.isfinite(score):
            raise ValueError(f"{what} has the score {score!r}: scores must be finite numbers.")
        label = "" if labels is None or labels[index] is None else str(labels[index])
        regions.append(Region(box, float(score), label, source))
    if rows and largest <= 1 < min(width, height):
        raise ValueError(
            f"{where}all {len(rows)} boxes lie between 0 and 1, which are fractions, where pixels are expected: "
            "give --boxes normalized (form='normalized')."
        )
    return regions


def column_regions(
    columns: Mapping[str, Any], column: str, image_size: tuple[int, int], form: str = "pixels"
) -> list[Region]:
    """Boxes that came with a row: lists of four numbers (labels in the column `labels`) or dicts with `bbox`.

    Raises:
        ValueError: as `regions_from_boxes`, or the column is not there or holds something else.
    """
    if column not in columns:
        raise ValueError(f"there is no column '{column}' with boxes; the row has {sorted(columns)}.")
    boxes, labels, scores = columns[column] or [], columns.get("labels"), None
    if not isinstance(boxes, list):
        raise ValueError(f"the column '{column}' is a {type(boxes).__name__}; expected {_COLUMN}.")
    if any(isinstance(box, dict) for box in boxes):
        for number, box in enumerate(boxes):
            if not isinstance(box, dict) or "bbox" not in box:
                raise ValueError(f"box {number} of the column '{column}' is {box!r}; expected {_COLUMN}.")
        scores = [1.0 if box.get("score") is None else box["score"] for box in boxes]
        labels = [box.get("label") for box in boxes]
        boxes = [box["bbox"] for box in boxes]
    elif labels is not None and not isinstance(labels, list):
        raise ValueError(f"the column 'labels' is {labels!r}; expected a list with a label for each box.")
    return regions_from_boxes(boxes, image_size, labels, scores, form=form)


def _four_numbers(row: Any, what: str) -> Box:
    try:
        values = [float(value) for value in row]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be four numbers, got {row!r}. {_FORMAT}") from error
    if len(values) != 4:
        raise ValueError(f"{what} must be four numbers, got {len(values)}: {values}. {_FORMAT}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{what} must be finite, got {values}. {_FORMAT}")
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2
