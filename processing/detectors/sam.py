"""GOAL's candidate regions (LISM, arXiv 2503.17782): the boxes of all masks that SAM finds in an image."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fastgoal.processing.images import load_image
from fastgoal.processing.regions import Region, clip_box

# GOAL: images beyond the first size are shrunk to fit the second before SAM sees them.
LARGE = (4000, 3000)
SHRUNK = (2048, 1536)


class SamRegions:
    """Proposes the bounding box of every mask of a SAM, its background kept; a `Detector`.

    Masks are made by transformers' mask generation with its usual thresholds and a grid of 32 x 32 points.

    Args:
        name: Folder or Hub id of a SAM checkpoint (`facebook/sam-vit-huge`).
        device: Where it runs; None takes a GPU if there is one.
        min_area: Least share of the image that a mask covers.
        max_area: Greatest share. The areas are those of the masks: the box of a mask may be larger.
        points_per_batch: Points of the grid in one forward.

    Raises:
        ValueError: The checkpoint is not a SAM, or the areas are not shares in order.
    """

    source = "sam"

    def __init__(
        self,
        name: str | os.PathLike[str],
        device: str | torch.device | None = None,
        min_area: float = 0.01,
        max_area: float = 0.80,
        points_per_batch: int = 128,
    ) -> None:
        from transformers import AutoConfig, pipeline
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES

        if not 0 <= min_area <= max_area <= 1:
            raise ValueError(
                f"`min_area` and `max_area` are shares of the image with 0 <= min_area <= max_area <= 1, got "
                f"{min_area} and {max_area}: for 1 to 80 % give 0.01 and 0.80."
            )
        kind = AutoConfig.from_pretrained(name).model_type
        if kind not in MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
            raise ValueError(
                f"`name` must be a SAM checkpoint such as facebook/sam-vit-base, got {os.fspath(name)!r} of model type "
                f"{kind!r}. Object detectors propose regions without `--regions sam`."
            )
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = Path(name).name if Path(name).is_dir() else os.fspath(name)
        self.min_area, self.max_area = min_area, max_area
        self.points_per_batch = points_per_batch
        self.generator: Any = pipeline("mask-generation", model=os.fspath(name), device=torch.device(device))

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Region]]:
        """Regions of each image, in pixels of the upright image; `score` is SAM's estimate of the mask's quality."""
        return [self._regions(load_image(image)) for image in images]

    def _regions(self, image: Image.Image) -> list[Region]:
        seen = shrink(image)
        with torch.no_grad():
            found = self.generator(seen, points_per_batch=self.points_per_batch)
        across, down = image.width / seen.width, image.height / seen.height
        regions = []
        for mask, score in zip(found["masks"], found["scores"], strict=True):
            pixels = torch.as_tensor(mask).bool()
            area = pixels.sum().item() / pixels.numel()
            if not pixels.any() or not self.min_area - 1e-6 <= area <= self.max_area + 1e-6:
                continue
            rows, columns = pixels.any(dim=1).nonzero().flatten(), pixels.any(dim=0).nonzero().flatten()
            box = (
                columns[0].item() * across,
                rows[0].item() * down,
                (columns[-1].item() + 1) * across,
                (rows[-1].item() + 1) * down,
            )
            clipped = clip_box(box, image.size)
            if clipped is not None:
                # A score of the model's own head: an estimate of an overlap that may come out just above 1.
                regions.append(Region(clipped, min(max(float(score), 0.0), 1.0), "", self.source))
        return regions


def shrink(image: Image.Image) -> Image.Image:
    """An image larger than 4000 x 3000 (either way up), made to fit 2048 x 1536; any other as it is."""
    long, short = max(image.size), min(image.size)
    if long <= LARGE[0] and short <= LARGE[1]:
        return image
    factor = min(SHRUNK[0] / long, SHRUNK[1] / short)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)
