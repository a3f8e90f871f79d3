"""Candidate regions of an image: the five default ones, boxes from the data, filters and merging of near-duplicates.

Boxes are (x1, y1, x2, y2) in pixels of the original upright image, x2 and y2 exclusive, as floats.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Region:
    """A part of an image that may match a sentence.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the original upright image.
        score: confidence of whoever proposed it, 1.0 where there is none.
        label: name of the object or of the place; may be empty.
        source: who proposed it: "default", "column", or a detector's `source`.
    """

    box: Box
    score: float = 1.0
    label: str = ""
    source: str = "default"


@runtime_checkable
class Detector(Protocol):
    """Finds objects in images.

    A detector may also have `prepare(image)`, which does what no GPU is needed for and may be called in threads, and
    `detect(prepared)`, which takes a list of what `prepare` gave; then `detector(images)` is one after the other.

    One whose attribute `needs_captions` is true looks for what captions name. It has both steps, and is called as
    `detector(images, captions)` and `prepare(image, caption)`; where `prepare` gives None, because the caption names
    nothing, the image is not given to `detect`.

    Attributes:
        name: which weights, for cards and logs: the file name, folder or Hub id.
        source: what `Region.source` says of the regions found.
    """

    name: str
    source: str

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Region]]:
        """Finds the objects in each image.

        Args:
            images: PIL images of any sizes; all of them go through the model in one call.

        Returns:
            The regions of each image, clipped to it, in pixels of the upright image, not filtered by area.
        """
        ...


def needs_captions(detector: Detector | None) -> bool:
    """Whether a detector looks for what the captions name."""
    return bool(getattr(detector, "needs_captions", False))


def default_regions(image_size: tuple[int, int]) -> list[Region]:
    """The five regions that every image gets: its quadrants and its centre (FAST-GOAL, arXiv 2605.26615).

    Args:
        image_size: (width, height) of the image in pixels.

    Returns:
        The quadrants, which tile the image, and the centre box (W/4, H/4, 3W/4, 3H/4), labelled `top_left`,
        `top_right`, `bottom_left`, `bottom_right` and `centre`.
    """
    width, height = _check_size(image_size)
    x, y = width / 2, height / 2
    boxes: dict[str, Box] = {
        "top_left": (0.0, 0.0, x, y),
        "top_right": (x, 0.0, width, y),
        "bottom_left": (0.0, y, x, height),
        "bottom_right": (x, y, width, height),
        "centre": (width / 4, height / 4, 3 * width / 4, 3 * height / 4),
    }
    return [Region(box, 1.0, label, "default") for label, box in boxes.items()]


def filter_regions(
    regions: Iterable[Region],
    image_size: tuple[int, int],
    min_score: float = 0.25,
    min_area: float = 0.01,
    max_area: float = 0.80,
) -> list[Region]:
    """Leaves out unsure, tiny and nearly image-wide regions.

    Args:
        regions: regions of one image.
        image_size: (width, height) of the image in pixels.
        min_score: smallest score that stays.
        min_area: smallest box area that stays, as a fraction of the image's area.
        max_area: largest box area that stays, as a fraction of the image's area (GOAL keeps masks of 1-80 %).

    Returns:
        The regions within all three limits, the limits included, in their order.
    """
    width, height = _check_size(image_size)
    if not 0 <= min_area <= max_area:
        raise ValueError(
            f"`min_area` and `max_area` are fractions of the image with 0 <= min_area <= max_area, got {min_area} and "
            f"{max_area}: for 1 to 80 % give 0.01 and 0.80."
        )
    tolerance = 1e-6  # scores and boxes may have been stored as float32
    kept = []
    for region in regions:
        area = _area(region.box) / (width * height)
        if region.score >= min_score - tolerance and min_area - tolerance <= area <= max_area + tolerance:
            kept.append(region)
    return kept


def merge_regions(regions: Iterable[Region], iou_threshold: float = 0.9) -> list[Region]:
    """Merges near-duplicates: of boxes that overlap by `iou_threshold` or more, the one with the highest score stays.

    Labels and sources play no part: two names for one box are one region. Of equal scores the earlier region stays.

    Args:
        regions: regions of one image.
        iou_threshold: intersection over union, above 0 and at most 1, from which on two boxes are duplicates.

    Returns:
        The regions that stay, in their order; no two of them reach the threshold.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"`iou_threshold` must be above 0 and at most 1, got {iou_threshold}: the default is 0.9.")
    candidates = list(regions)
    if len(candidates) < 2:
        return candidates
    boxes = np.array([region.box for region in candidates], dtype=np.float64)
    scores = np.array([region.score for region in candidates], dtype=np.float64)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not kept or (_iou(boxes[index], boxes[kept]) < iou_threshold).all():
            kept.append(int(index))
    return [candidates[index] for index in sorted(kept)]


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
    width, height = _check_size(image_size)
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


def clip_box(box: Sequence[float], image_size: tuple[int, int]) -> Box | None:
    """The part of a box that lies inside the image, or None if that has no area.

    Args:
        box: (x1, y1, x2, y2) in pixels.
        image_size: (width, height) of the image in pixels.
    """
    width, height = image_size
    x1, x2 = (min(max(float(x), 0.0), float(width)) for x in (box[0], box[2]))
    y1, y2 = (min(max(float(y), 0.0), float(height)) for y in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


_FORMAT = (
    "Boxes are (x1, y1, x2, y2) in pixels of the upright image: convert (x, y, width, height) boxes and fractions, and "
    "remove boxes that have no area."
)


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


def _check_size(image_size: tuple[int, int]) -> tuple[int, int]:
    try:
        width, height = image_size
        valid = width > 0 and height > 0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"`image_size` must be the (width, height) of the image, both positive, got {image_size!r}: PIL's "
            "`image.size` is that pair."
        )
    return width, height


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box (4,) with boxes (n, 4); 0 where neither has an area."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    intersection = np.prod(np.clip(sides, 0.0, None), axis=1)
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None), axis=1)
    union = areas + np.prod(np.clip(box[2:] - box[:2], 0.0, None)) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
