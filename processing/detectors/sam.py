"""GOAL's candidate regions (LISM, arXiv 2503.17782): the boxes of all masks that SAM finds in an image."""

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

# GOAL: images beyond the first size are shrunk to fit the second before SAM sees them.
LARGE = (4000, 3000)
SHRUNK = (2048, 1536)
# Points of the grid in one forward.
POINTS_PER_BATCH = 128


class SamDetector:
    """Proposes the bounding box of every mask of a SAM, its background kept; a `Detector`.

    Masks are made by transformers' mask generation with its usual thresholds and a grid of 32 x 32 points.

    Args:
        name: Folder or Hub id of a SAM checkpoint (`facebook/sam-vit-huge`).
        spec: Its description; the areas are those of the masks, whose boxes may be larger.
        device: Where it runs.
    """

    def __init__(self, name: str, spec: DetectorSpec, device: torch.device) -> None:
        self.spec = spec
        model, processor = load_parts(name, AutoModelForMaskGeneration, AutoImageProcessor)
        self.generator: Any = pipeline("mask-generation", model=model, image_processor=processor, device=device)

    def prepare(self, image: Image.Image, caption: str | None = None) -> tuple[Image.Image, tuple[int, int]]:
        """The image as SAM sees it, and the (width, height) of the given one; see `Detector`."""
        upright = load_image(image)
        size = upright.size
        shrink(upright)
        return upright, size

    def detect(self, prepared: Sequence[tuple[Image.Image, tuple[int, int]]]) -> list[list[Region]]:
        """See `Detector`; `score` is SAM's estimate of the mask's quality."""
        return [self._regions(seen, size) for seen, size in prepared]

    @torch.no_grad()
    def _regions(self, seen: Image.Image, size: tuple[int, int]) -> list[Region]:
        found = self.generator(seen, points_per_batch=POINTS_PER_BATCH)
        across, down = size[0] / seen.width, size[1] / seen.height
        boxes, scores = [], []
        for mask, score in zip(found["masks"], found["scores"], strict=True):
            pixels = torch.as_tensor(mask).bool()
            area = pixels.sum().item() / pixels.numel()
            if not pixels.any() or not self.spec.min_area - 1e-6 <= area <= self.spec.max_area + 1e-6:
                continue
            rows, columns = pixels.any(dim=1).nonzero().flatten(), pixels.any(dim=0).nonzero().flatten()
            left, top, right, bottom = columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1
            boxes.append((left * across, top * down, right * across, bottom * down))
            # A score of the model's own head: an estimate of an overlap that may come out just above 1.
            scores.append(min(max(float(score), 0.0), 1.0))
        return regions_inside(boxes, scores, [""] * len(boxes), size, self.spec.kind)


def shrink(image: Image.Image) -> None:
    """Makes an image larger than 4000 x 3000 (either way up) fit 2048 x 1536, in its place; leaves any other."""
    if max(image.size) > LARGE[0] or min(image.size) > LARGE[1]:
        image.thumbnail(SHRUNK if image.width >= image.height else SHRUNK[::-1], Image.Resampling.LANCZOS, None)
