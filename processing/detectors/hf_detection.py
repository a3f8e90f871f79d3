"""Object-detection models of transformers, such as YOLOS (used by the paper), DETR or RT-DETR."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from fastgoal.modeling_fastgoal.loading_fastgoal import load_whole
from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import check_image_processor, refuse_not_finite
from fastgoal.processing.images import load_image
from fastgoal.processing.regions import Region

from .common import batches_of_one_shape, regions_inside
from .spec import DetectorSpec

Prepared = tuple[Mapping[str, torch.Tensor], tuple[int, int], Mapping[int, str]]
"""Inputs of the model for an image, the (width, height) of the image, and the names of the model's labels."""


def load_parts(name: str, model_class: Any, processor_class: Any) -> tuple[Any, Any]:
    """Load the model of a detector, in eval mode, and its processor.

    Raises:
        ValueError: The files are damaged, or weights are missing, NaN or infinite, or the image processor fails.
    """
    label = f"`detector={name}`"
    with loading(label, name):
        model = load_whole(model_class, name, trust_remote_code=False).eval()
        processor = processor_class.from_pretrained(name, trust_remote_code=False)
    check_image_processor(getattr(processor, "image_processor", processor), label)
    refuse_not_finite(model.named_parameters(), label)
    return model, processor


class TransformersDetector:
    """A `Detector` that runs an object-detection model of transformers.

    Args:
        model: An `AutoModelForObjectDetection` in eval mode, on its device.
        processor: Its image processor.
        spec: Its description.

    Raises:
        ValueError: The processor does not belong to such a detector.
    """

    classes: tuple[Any, Any] = (AutoModelForObjectDetection, AutoImageProcessor)
    post_process = "post_process_object_detection"

    def __init__(self, model: Any, processor: Any, spec: DetectorSpec) -> None:
        if not hasattr(processor, self.post_process):
            raise ValueError(
                f"`processor` must have the method {self.post_process}, got a {type(processor).__name__}. Use the "
                "processor of the detector."
            )
        self.model, self.processor, self.spec = model, processor, spec

    @classmethod
    def load(cls, name: str, spec: DetectorSpec, device: torch.device) -> "TransformersDetector":
        """Load the detector of a folder or Hub id. Raise `ValueError` if it cannot be loaded."""
        model, processor = load_parts(name, *cls.classes)
        return cls(model.to(device), processor, spec)

    def prepare(self, image: Image.Image, caption: str | None = None) -> Prepared | None:
        """Prepare an image; see `Detector`."""
        upright = load_image(image)
        names = getattr(self.model.config, "id2label", None) or {}
        return self.processor(images=upright, return_tensors="pt"), upright.size, names

    @torch.no_grad()
    def detect(self, prepared: Sequence[Prepared]) -> list[list[Region]]:
        """Detect regions; see `Detector`. Images with inputs of the same shapes may share a forward pass.

        Nothing is padded: YOLOS has no mask for padding, and the regions of an image would depend on the others.
        """
        regions: list[list[Region]] = [[] for _ in prepared]
        shapes = [tuple((key, value.shape) for key, value in inputs.items()) for inputs, _, _ in prepared]
        for indices in batches_of_one_shape(shapes, self.model.device):
            items = [prepared[index] for index in indices]
            batch = {
                key: torch.cat([inputs[key] for inputs, _, _ in items]).to(self.model.device) for key in items[0][0]
            }
            batch["pixel_values"] = batch["pixel_values"].to(self.model.dtype)
            for index, of_image in zip(indices, self._regions(self.model(**batch), items), strict=True):
                regions[index] = of_image
        return regions

    def _regions(self, outputs: Any, prepared: Sequence[Prepared]) -> list[list[Region]]:
        """Return the regions of each image from the outputs of a forward pass."""
        sizes = [(height, width) for _, (width, height), _ in prepared]
        post_process = getattr(self.processor, self.post_process)
        results = post_process(outputs, threshold=self.spec.min_score, target_sizes=sizes)
        regions = []
        for result, (_, size, names) in zip(results, prepared, strict=True):
            labels = [str(names.get(label, label)) for label in result["labels"].tolist()]
            regions.append(self._inside(result["boxes"].tolist(), result["scores"].tolist(), labels, size))
        return regions

    def _inside(
        self, boxes: list[list[float]], scores: list[float], labels: list[str], image_size: tuple[int, int]
    ) -> list[Region]:
        return regions_inside(boxes, scores, labels, image_size, self.spec.kind)
