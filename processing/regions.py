"""Candidate regions of an image: the five default ones, a detector's, filters and merging of near-duplicates.

Boxes are (x1, y1, x2, y2) in pixels of the original upright image, x2 and y2 exclusive, as floats.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torchvision.ops import nms

from .geometry import Box, check_size

# Of the boxes that stay, where no detector has limits of its own.
LIMITS = {"min_score": 0.25, "min_area": 0.01, "max_area": 0.80}
MIN_SCORE, MIN_AREA, MAX_AREA = LIMITS.values()


@dataclass(frozen=True)
class Region:
    """A part of an image that may match a sentence.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the original upright image.
        score: confidence of whoever proposed it, 1.0 where there is none.
        label: name of the object or of the place; may be empty.
        source: who proposed it: "default", "column", or the kind of a detector.
    """

    box: Box
    score: float = 1.0
    label: str = ""
    source: str = "default"


@runtime_checkable
class Detector(Protocol):
    """Finds objects in images; any object with these three will do.

    Attributes:
        spec: what it is, a `fastgoal.processing.detectors.spec.DetectorSpec`; its `kind` is `Region.source`.
    """

    spec: Any

    def prepare(self, image: Image.Image, caption: str | None) -> Any | None:
        """An image as `detect` wants it, None if there is nothing to look for. Needs no GPU, may run in threads."""
        ...

    def detect(self, prepared: list[Any]) -> list[list[Region]]:
        """The regions of each prepared image, clipped to it, in pixels of the upright image, not filtered by area."""
        ...


def find_regions(
    detector: Detector, images: Sequence[Image.Image], captions: Sequence[str] | None = None
) -> list[list[Region]]:
    """What a detector finds in each image; `captions`, one an image, are for one that looks for what they name."""
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"`captions` must be one per image, {len(images)}, got {len(captions)}.")
    texts: Sequence[str | None] = [None] * len(images) if captions is None else captions
    prepared = [detector.prepare(image, text) for image, text in zip(images, texts, strict=True)]
    found = iter(detector.detect([item for item in prepared if item is not None]))
    return [[] if item is None else next(found) for item in prepared]


def default_regions(image_size: tuple[int, int]) -> list[Region]:
    """The five regions that every image gets: its quadrants and its center (FAST-GOAL, arXiv 2605.26615).

    Of an image of (width, height) pixels: the quadrants, which tile it, and the center box (W/4, H/4, 3W/4, 3H/4),
    labeled `top_left`, `top_right`, `bottom_left`, `bottom_right` and `center`.
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
    min_score: float = LIMITS["min_score"],
    min_area: float = LIMITS["min_area"],
    max_area: float = LIMITS["max_area"],
) -> list[Region]:
    """Leaves out unsure, tiny and nearly image-wide regions of an image; the limits themselves stay.

    Args:
        image_size: (width, height) of the image in pixels.
        min_score: smallest score that stays.
        min_area: smallest box that stays, as a share of the image.
        max_area: largest box that stays, as a share of the image (GOAL keeps masks of 1-80 %).
    """
    width, height = check_size(image_size)
    if not 0 <= min_area <= max_area:
        raise ValueError(
            f"`min_area` and `max_area` are fractions of the image with 0 <= min_area <= max_area, got {min_area} and "
            f"{max_area}: for 1 to 80 % give 0.01 and 0.80."
        )
    tolerance = 1e-6  # scores and boxes may have been stored as float32
    kept = []
    for region in regions:
        x1, y1, x2, y2 = region.box
        area = max(x2 - x1, 0.0) * max(y2 - y1, 0.0) / (width * height)
        if region.score >= min_score - tolerance and min_area - tolerance <= area <= max_area + tolerance:
            kept.append(region)
    return kept


def merge_regions(regions: Iterable[Region], iou_threshold: float = 0.9) -> list[Region]:
    """Merges near-duplicates: of boxes that overlap by `iou_threshold` or more, the one with the highest score stays.

    Labels and sources play no part: two names for one box are one region. Of equal scores the earlier region stays.
    `iou_threshold` is an intersection over union, above 0 and at most 1. What stays keeps its order.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"`iou_threshold` must be above 0 and at most 1, got {iou_threshold}: the default is 0.9.")
    candidates = list(regions)
    boxes = torch.tensor([region.box for region in candidates], dtype=torch.float64).reshape(-1, 4)
    scores = torch.tensor([region.score for region in candidates], dtype=torch.float64)
    kept = nms(boxes, scores, math.nextafter(iou_threshold, 0))  # which drops what is above the number
    return [candidates[index] for index in sorted(kept.tolist())]


def clip_box(box: Sequence[float], image_size: tuple[int, int]) -> Box | None:
    """The part of a box (x1, y1, x2, y2) inside an image of (width, height) pixels, None if that has no area."""
    width, height = image_size
    x1, x2 = (min(max(float(x), 0.0), float(width)) for x in (box[0], box[2]))
    y1, y2 = (min(max(float(y), 0.0), float(height)) for y in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None
