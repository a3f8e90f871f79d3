"""Candidate regions of an image: five default regions and a detector's, filtered, near-duplicates merged.

Boxes are (x1, y1, x2, y2) in pixels of the original upright image, x2 and y2 exclusive, as floats.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torchvision.ops import nms

from .checks import MAX_AREA, MIN_AREA, MIN_SCORE
from .geometry import Box, check_size


@dataclass(frozen=True)
class Region:
    """A part of an image that may match a sentence.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the original upright image.
        score: The detector's confidence, or 1.0 where there is none.
        label: Name of the object, or of the default region; may be empty.
        source: What proposed the region: "default", "column", or the `kind` of a detector.
    """

    box: Box
    score: float = 1.0
    label: str = ""
    source: str = "default"


@runtime_checkable
class Detector(Protocol):
    """The interface of detectors, which find objects in images.

    Attributes:
        spec: The detector's `fastgoal.processing.detectors.spec.DetectorSpec`; its `kind` becomes `Region.source`.
    """

    spec: Any

    def prepare(self, image: Image.Image, caption: str | None) -> Any | None:
        """Return the input of `detect` for an image, or None if there is nothing to look for.

        It runs on the CPU, possibly in several threads at once.
        """
        ...

    def detect(self, prepared: list[Any]) -> list[list[Region]]:
        """Return the regions of each prepared image: clipped to the image, in pixels of it, not filtered by area."""
        ...


def find_regions(
    detector: Detector, images: Sequence[Image.Image], captions: Sequence[str] | None = None
) -> list[list[Region]]:
    """Return the regions that a detector finds in each image.

    Args:
        captions: One caption per image, for a detector that looks for the objects that a caption names.
    """
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"`captions` must hold one caption per image, {len(images)}, got {len(captions)}.")
    texts: Sequence[str | None] = [None] * len(images) if captions is None else captions
    return detect_prepared(detector, [detector.prepare(image, text) for image, text in zip(images, texts, strict=True)])


def detect_prepared(detector: Detector | None, prepared: Sequence[Any | None]) -> list[list[Region]]:
    """Return the detections in images that `Detector.prepare` prepared; those prepared as None have none."""
    inputs = [item for item in prepared if item is not None]
    detections = iter(detector.detect(inputs) if detector is not None and inputs else [])
    return [[] if item is None else next(detections) for item in prepared]


def candidate_regions(
    proposed: Iterable[Region],
    image_size: tuple[int, int],
    min_score: float = MIN_SCORE,
    min_area: float = MIN_AREA,
    max_area: float = MAX_AREA,
) -> list[Region]:
    """Return the candidates of an image (FLISM, step 2): proposed regions, filtered and merged, then the defaults."""
    kept = filter_regions(proposed, image_size, min_score, min_area, max_area)
    return [*merge_regions(kept), *default_regions(image_size)]


def default_regions(image_size: tuple[int, int]) -> list[Region]:
    """Return the five regions that every image gets: its quadrants and its center (FAST-GOAL, arXiv 2605.26615).

    The quadrants tile an image of (width, height) pixels, and the center is the box (W/4, H/4, 3W/4, 3H/4). Their
    labels are `top_left`, `top_right`, `bottom_left`, `bottom_right` and `center`.
    """
    width, height = check_size(image_size)
    x, y = width / 2, height / 2
    boxes: dict[str, Box] = {
        "top_left": (0.0, 0.0, x, y),
        "top_right": (x, 0.0, width, y),
        "bottom_left": (0.0, y, x, height),
        "bottom_right": (x, y, width, height),
        "center": (width / 4, height / 4, 3 * width / 4, 3 * height / 4),
    }
    return [Region(box, 1.0, label, "default") for label, box in boxes.items()]


def filter_regions(
    regions: Iterable[Region],
    image_size: tuple[int, int],
    min_score: float = MIN_SCORE,
    min_area: float = MIN_AREA,
    max_area: float = MAX_AREA,
) -> list[Region]:
    """Return the regions of an image within the limits, which are inclusive.

    Args:
        image_size: (width, height) of the image in pixels.
        min_score: Lowest score.
        min_area: Smallest box, as a fraction of the image.
        max_area: Largest box, as a fraction of the image (GOAL keeps masks of 1 to 80 %).
    """
    width, height = check_size(image_size)
    if not 0 <= min_area <= max_area:
        raise ValueError(
            f"`min_area` and `max_area` must be fractions of the image with 0 <= min_area <= max_area, got {min_area} "
            f"and {max_area}."
        )
    tolerance = 1e-6  # for scores and boxes that were stored as float32
    kept = []
    for region in regions:
        x1, y1, x2, y2 = region.box
        area = max(x2 - x1, 0.0) * max(y2 - y1, 0.0) / (width * height)
        if region.score >= min_score - tolerance and min_area - tolerance <= area <= max_area + tolerance:
            kept.append(region)
    return kept


def merge_regions(regions: Iterable[Region], iou_threshold: float = 0.9) -> list[Region]:
    """Merge near-duplicates: of regions that overlap by `iou_threshold` or more, keep the one with the highest score.

    Of equal scores the first is kept. Labels and sources do not matter: two names for one box are one region. The
    regions that are kept stay in order. `iou_threshold` is an intersection over union, above 0 and at most 1.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"`iou_threshold` must be above 0 and at most 1, got {iou_threshold}.")
    candidates = list(regions)
    boxes = torch.tensor([region.box for region in candidates], dtype=torch.float64).reshape(-1, 4)
    scores = torch.tensor([region.score for region in candidates], dtype=torch.float64)
    kept = nms(boxes, scores, math.nextafter(iou_threshold, 0))  # drops overlaps above the number only
    return [candidates[index] for index in sorted(kept.tolist())]


def clip_box(box: Sequence[float], image_size: tuple[int, int]) -> Box | None:
    """Return the part of a box (x1, y1, x2, y2) inside an image of (width, height) pixels; None if it has no area."""
    width, height = image_size
    x1, x2 = (min(max(float(x), 0.0), float(width)) for x in (box[0], box[2]))
    y1, y2 = (min(max(float(y), 0.0), float(height)) for y in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None
