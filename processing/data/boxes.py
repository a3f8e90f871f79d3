"""Boxes that came with the data, checked and made regions."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastgoal.processing.geometry import Box, check_size
from fastgoal.processing.regions import Region, clip_box

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

    Returns:
        One region a box, in order, inside the image.

    Raises:
        ValueError: naming the row and the index of the box, if a box has not four finite numbers, has no area, lies
            outside the image or sticks out by more than one pixel, or if labels or scores are not one a box.
    """
    width, height = check_size(image_size)
    where = f"{name}: " if name else ""
    rows = [] if boxes is None else list(boxes)
    for argument, values in (("labels", labels), ("scores", scores)):
        if values is not None and len(values) != len(rows):
            raise ValueError(f"{where}`{argument}` must be one a box, got {len(values)} for {len(rows)} boxes.")
    regions = []
    for index, row in enumerate(rows):
        what = f"{where}box {index}"
        x1, y1, x2, y2 = _check_box(row, what)
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            raise ValueError(
                f"{what} {(x1, y1, x2, y2)} lies outside the image of {width} x {height} pixels. {_FORMAT}"
            )
        if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
            raise ValueError(
                f"{what} {(x1, y1, x2, y2)} sticks out of the image of {width} x {height} pixels by more than one "
                f"pixel. {_FORMAT}"
            )
        box = clip_box((x1, y1, x2, y2), (width, height))
        if box is None:
            raise ValueError(f"{what} {(x1, y1, x2, y2)} has no area in the image. {_FORMAT}")
        score = 1.0 if scores is None else float(scores[index])
        if not math.isfinite(score):
            raise ValueError(f"{what} has the score {score}: scores must be finite numbers.")
        label = "" if labels is None or labels[index] is None else str(labels[index])
        regions.append(Region(box, score, label, source))
    return regions


def _check_box(row: Any, what: str) -> Box:
    try:
        values = [float(value) for value in row]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be four numbers, got {row!r}. {_FORMAT}") from error
    if len(values) != 4:
        raise ValueError(f"{what} must be four numbers, got {len(values)}: {values}. {_FORMAT}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{what} must be finite, got {values}. {_FORMAT}")
    x1, y1, x2, y2 = values
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"{what} {(x1, y1, x2, y2)} has no area. {_FORMAT}")
    return x1, y1, x2, y2
