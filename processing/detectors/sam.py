"""The candidate regions of GOAL (LISM, arXiv 2503.17782): the boxes of all masks that SAM finds in an image."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForMaskGeneration, pipeline

from fastgoal.processing.images import load_image
from fastgoal.processing.regions import Region

from .common import regions_inside
from .hf_detection import load_parts
from .spec import DetectorSpec

# GOAL shrinks images larger than the first size to fit the second.
LARGE = (4000, 3000)
SHRUNK = (2048, 1536)
# Points of the grid in a forward pass.
POINTS_PER_BATCH = 128


class SamDetector:
    """A `Detector` that proposes the bounding box of every mask of a SAM. The crops keep their background.

    The masks come from the mask-generation pipeline of transformers, with its default thresholds and a grid of 32 x 32
    points.

    Args:
        name: Folder or Hub id of a SAM checkpoint (`facebook/sam-vit-huge`).
        spec: Its description; the limits of areas apply to masks, and their boxes may be larger.
        device: Device of the model.
    """

    def __init__(self, name: str, spec: DetectorSpec, device: torch.device) -> None:
        self.spec = spec
        model, processor = load_parts(name, AutoModelForMaskGeneration, AutoImageProcessor)
        self.generator: Any = pipeline("mask-generation", model=model, image_processor=processor, device=device)

    def prepare(self, image: Image.Image, caption: str | None = None) -> tuple[Image.Image, tuple[int, int]]:
        """Return the image that SAM is given, and the (width, height) of the original; see `Detector`."""
        upright = load_image(image)
        size = upright.size
        shrink(upright)
        return upright, size

    def detect(self, prepared: Sequence[tuple[Image.Image, tuple[int, int]]]) -> list[list[Region]]:
        """Detect regions; see `Detector`. The `score` is SAM's estimate of the quality of the mask."""
        return [self._regions(image, size) for image, size in prepared]

    @torch.no_grad()
    def _regions(self, image: Image.Image, size: tuple[int, int]) -> list[Region]:
        outputs = self.generator(image, points_per_batch=POINTS_PER_BATCH)
        x_scale, y_scale = size[0] / image.width, size[1] / image.height
        boxes, scores = [], []
        for mask, score in zip(outputs["masks"], outputs["scores"], strict=True):
            pixels = torch.as_tensor(mask).bool()
            area = pixels.sum().item() / pixels.numel()
            if not pixels.any() or not self.spec.min_area - 1e-6 <= area <= self.spec.max_area + 1e-6:
                continue
            rows, columns = pixels.any(dim=1).nonzero().flatten(), pixels.any(dim=0).nonzero().flatten()
            left, top, right, bottom = columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1
            boxes.append((left * x_scale, top * y_scale, right * x_scale, bottom * y_scale))
            # The score is the model's estimate of an overlap, which may be slightly above 1.
            scores.append(min(max(float(score), 0.0), 1.0))
        return regions_inside(boxes, scores, [""] * len(boxes), size, self.spec.kind)


def shrink(image: Image.Image) -> None:
    """Shrink an image larger than 4000 x 3000 (in either orientation) in place, so that it fits 2048 x 1536."""
    if max(image.size) > LARGE[0] or min(image.size) > LARGE[1]:
        image.thumbnail(SHRUNK if image.width >= image.height else SHRUNK[::-1], Image.Resampling.LANCZOS, None)
