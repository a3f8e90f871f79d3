"""Object-detection models of transformers, such as YOLOS (the paper's), DETR or RT-DETR."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from fastgoal.processing.images import load_image
from fastgoal.processing.regions import Region

from .common import forwards, load_checkpoint, regions_inside
from .spec import DetectorSpec


class TransformersDetector:
    """Any object-detection model of transformers; a `Detector`.

    Args:
        model: From `AutoModelForObjectDetection`, in eval mode and on its device.
        processor: Its image processor.
        spec: Its description; `min_score` is the smallest confidence of a region.

    Raises:
        ValueError: The processor is none of an object detector.
    """

    def __init__(self, model: Any, processor: Any, spec: DetectorSpec) -> None:
        if not hasattr(processor, "post_process_object_detection"):
            raise ValueError(
                f"`processor` must have post_process_object_detection, got {type(processor).__name__}: give the image "
                "processor of the detector."
            )
        self.model, self.processor, self.spec = model, processor, spec

    @classmethod
    def load(cls, name: str, spec: DetectorSpec, device: torch.device) -> "TransformersDetector":
        """The detector of a folder or Hub id."""
        return cls(*load_checkpoint(AutoModelForObjectDetection, AutoImageProcessor, name, device), spec)

    def prepare(self, image: Image.Image, caption: str | None = None) -> tuple[Any, tuple[int, int]]:
        """The model's inputs for one image, and the image's (width, height); see `Detector`."""
        upright = load_image(image)
        return self.processor(images=upright, return_tensors="pt"), upright.size

    def detect(self, prepared: Sequence[tuple[Any, tuple[int, int]]]) -> list[list[Region]]:
        """See `Detector`."""
        names = getattr(self.model.config, "id2label", None) or {}
        regions: list[list[Region]] = [[] for _ in prepared]
        for group, outputs in forwards(self.model, [inputs for inputs, _ in prepared]):
            sizes = [prepared[index][1] for index in group]
            found = self.processor.post_process_object_detection(
                outputs, threshold=self.spec.min_score, target_sizes=[(height, width) for width, height in sizes]
            )
            for index, size, result in zip(group, sizes, found, strict=True):
                labels = [str(names.get(label, label)) for label in result["labels"].tolist()]
                regions[index] = regions_inside(
                    result["boxes"].tolist(), result["scores"].tolist(), labels, size, self.spec.kind
                )
        return regions
