"""Checking boxes that come with the data, and making regions of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from fastgoal.processing.geometry import Box, check_size
from fastgoal.processing.regions import Region, clip_box

BOX_FORMATS = ("xyxy", "xywh")
BOX_UNITS = ("pixels", "fractions")
_COLUMN = (
    "a list of boxes of four numbers, a list of dicts with 'bbox' and optionally 'label' or 'category' and 'score', or "
    "a dict of lists 'bbox' and 'category'"
)
_MEANING = {"xyxy": "(x1, y1, x2, y2)", "xywh": "(x, y, width, height)"}


def check_box_options(box_format: str, box_units: str) -> None:
    """Raise `ValueError` for a format or a unit of boxes that does not exist."""
    for name, value, choices in (("box_format", box_format, BOX_FORMATS), ("box_units", box_units, BOX_UNITS)):
        if value not in choices:
            raise ValueError(f"`{name}` must be {' or '.join(choices)}, got {value!r}.")


def regions_from_boxes(
    boxes: Iterable[Sequence[float]] | np.ndarray | None,
    image_size: tuple[int, int],
    labels: Sequence[Any] | None = None,
    scores: Sequence[float] | None = None,
    source: str = "column",
    name: str | None = None,
    box_format: str = "xyxy",
    box_units: str = "pixels",
) -> list[Region]:
    """Check boxes that come with the data, and make regions of them.

    A box may extend beyond the image by up to one pixel, as rounded annotations do, and is clipped.

    Args:
        boxes: Four numbers each, in the upright image; None for no boxes.
        image_size: (width, height) of the image in pixels.
        labels: A name for each box.
        scores: A finite number for each box.
        source: `source` of the regions.
        name: Name of the row, for messages.
        box_format: `xyxy` for (x1, y1, x2, y2), `xywh` for (x1, y1, width, height).
        box_units: `pixels`, or `fractions` of the width and height of the image.

    Raises:
        ValueError: A box is not four finite numbers, has no area, or is outside the image or extends beyond it by more
            than one pixel; all boxes in pixels look like fractions; or there is not one label or score per box.
    """
    width, height = check_size(image_size)
    prefix = f"{name}: " if name else ""
    rows = [] if boxes is None else list(boxes)
    for argument, values in (("labels", labels), ("scores", scores)):
        if values is not None and len(values) != len(rows):
            raise ValueError(
                f"{prefix}`{argument}` must have one entry per box, got {len(values)} for {len(rows)} boxes."
            )
    expected = (
        f"Boxes must be {_MEANING[box_format]} in {box_units} of the upright image. If they are in another form, set "
        f"`box_format={_other(BOX_FORMATS, box_format)}` or `box_units={_other(BOX_UNITS, box_units)}`."
    )
    regions = []
    largest = 0.0
    image = f"the image of {width} x {height} pixels"
    for index, row in enumerate(rows):
        label, wrong = f"{prefix}box {index}", ""
        x1, y1, x2, y2 = _four_numbers(row, label, expected)
        if box_format == "xywh":
            x2, y2 = x1 + x2, y1 + y2
        if box_units == "fractions":
            x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
        given = x1, y1, x2, y2
        largest = max(largest, x2, y2)
        box = clip_box(given, (width, height))
        if x2 <= x1 or y2 <= y1:
            wrong = "has no area"
        elif box is None:
            wrong = f"is outside {image}"
        elif min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
            wrong = f"extends beyond {image} by more than one pixel"
        if box is None or wrong:
            raise ValueError(f"{label} {given} {wrong}. {expected}")
        score: Any = 1.0 if scores is None else scores[index]
        if not isinstance(score, Real) or not math.isfinite(score):
            raise ValueError(f"{label} must have a finite number as its score, got {score!r}.")
        name_of_box = "" if labels is None or labels[index] is None else str(labels[index])
        regions.append(Region(box, float(score), name_of_box, source))
    if rows and box_units == "pixels" and largest <= 1 < min(width, height):
        raise ValueError(
            f"{prefix}the {len(rows)} boxes must be in pixels, and all of them lie between 0 and 1. If they are "
            "fractions of the image, use `box_units=fractions`."
        )
    return regions


def column_regions(
    columns: Mapping[str, Any],
    column: str,
    image_size: tuple[int, int],
    box_format: str = "xyxy",
    box_units: str = "pixels",
) -> list[Region]:
    """Make regions of the boxes in a column of a row.

    Args:
        columns: Values of the row by column.
        column: Column with a list of boxes (and then their labels in the column `labels`), with a list of dicts with
            `bbox`, or with a dict of lists `bbox` and `category`, as object detection datasets have them.
        image_size: (width, height) of the image in pixels.
        box_format: As for `regions_from_boxes`.
        box_units: As for `regions_from_boxes`.

    Raises:
        ValueError: The column does not exist or has other values, or a box is wrong as for `regions_from_boxes`.
    """
    if column not in columns:
        raise ValueError(f"there is no column '{column}' with boxes, only {sorted(columns)}.")
    boxes, labels, scores = columns[column] or [], columns.get("labels"), None
    if isinstance(boxes, dict) and isinstance(boxes.get("bbox"), list):
        labels, boxes = boxes.get("category"), boxes["bbox"]
    if not isinstance(boxes, list):
        raise ValueError(f"the column '{column}' must be {_COLUMN}, got a {type(boxes).__name__}.")
    if any(isinstance(box, dict) for box in boxes):
        for number, box in enumerate(boxes):
            if not isinstance(box, dict) or "bbox" not in box:
                raise ValueError(f"the column '{column}' must be {_COLUMN}, got {box!r} as box {number}.")
        scores = [1.0 if box.get("score") is None else box["score"] for box in boxes]
        labels = [box.get("label", box.get("category")) for box in boxes]
        boxes = [box["bbox"] for box in boxes]
    elif labels is not None and not isinstance(labels, list):
        raise ValueError(f"the column 'labels' must be a list with one label per box, got {labels!r}.")
    return regions_from_boxes(boxes, image_size, labels, scores, box_format=box_format, box_units=box_units)


def _other(choices: tuple[str, str], choice: str) -> str:
    return choices[1 - choices.index(choice)]


def _four_numbers(row: Any, label: str, expected: str) -> Box:
    try:
        values = [float(value) for value in row]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label} must be four numbers, got {row!r}. {expected}") from error
    if len(values) != 4:
        raise ValueError(f"{label} must be four numbers, got {len(values)}: {values}. {expected}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{label} must be finite, got {values}. {expected}")
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2
