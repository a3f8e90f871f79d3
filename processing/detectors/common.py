"""What the detectors share: which inputs share a forward pass, and regions inside the image."""

import math
from collections.abc import Hashable, Sequence

import torch

from fastgoal.processing.regions import Region, clip_box


def batches_of_one_shape(shapes: Sequence[Hashable], device: torch.device) -> list[list[int]]:
    """Return the indices of the inputs of each forward pass: those of one shape, or one at a time on a CPU.

    On a CPU, YOLO is not faster in batches, and buffers of changing sizes fragment the heap: memory grows by hundreds
    of megabytes over some hundred photographs.
    """
    if device.type == "cpu":
        return [[index] for index in range(len(shapes))]
    groups: dict[Hashable, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return list(groups.values())


def regions_inside(
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float],
    labels: Sequence[str],
    image_size: tuple[int, int],
    source: str,
) -> list[Region]:
    """Return the regions of one image, clipped to it; boxes with a NaN or without an area inside it are dropped."""
    regions = []
    for box, score, label in zip(boxes, scores, labels, strict=True):
        clipped = clip_box(box, image_size) if all(map(math.isfinite, box)) else None
        if clipped is not None:
            regions.append(Region(clipped, score, label, source))
    return regions
