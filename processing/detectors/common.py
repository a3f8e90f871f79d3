"""What the kinds of detectors share: which inputs go together, and regions inside the image."""

import math
from collections.abc import Hashable, Sequence

import torch

from fastgoal.processing.regions import Region, clip_box


def batches_of_one_shape(shapes: Sequence[Hashable], device: torch.device) -> list[list[int]]:
    """The numbers of the inputs of each forward: those of one shape, and on a CPU each goes alone.

    There YOLO is no faster in batches, but their buffers are of other sizes each time: the heap gets full of holes that
    are never given back, hundreds of megabytes after some hundred photographs.
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
    """Regions of one image, clipped to it; boxes with no area inside or with a NaN are left out."""
    regions = []
    for box, score, label in zip(boxes, scores, labels, strict=True):
        clipped = clip_box(box, image_size) if all(map(math.isfinite, box)) else None
        if clipped is not None:
            regions.append(Region(clipped, score, label, source))
    return regions
