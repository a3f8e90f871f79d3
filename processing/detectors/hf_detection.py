"""Object-detection models of transformers, such as YOLOS (the paper's), DETR or RT-DETR."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from fastgoal.modeling_fastgoal.loading_fastgoal import load_whole
from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import refuse_not_finite
from fastgoal.processing.images import load_image
from fastgoal.processing.regions import Region

from .common import batches_of_one_shape, regions_inside
from .spec import DetectorSpec

Prepared = tuple[Mapping[str, torch.Tensor], tuple[int, int], Mapping[int, str]]
"""The model's inputs for an image, its (width, height), and names by the labels that the model gives."""


def load_parts(name: str, model_kind: Any, processor_kind: Any) -> tuple[Any, Any]:
    """A detector's model, in eval mode, and its processor; a `ValueError` of a line for files that are not in order."""
    with loading(f"--detector {name}", name):
        model = load_whole(model_kind, name, trust_remote_code=False).eval()
        processor = processor_kind.from_pretrained(name, trust_remote_code=False)
    refuse_not_finite(model.named_parameters(), f"--detector {name}")
    return model, processor


class TransformersDetector:
    """Any object-detection model of transformers; a `Detector`.

    Args:
        model: From `AutoModelForObjectDetection`, in eval mode and on its device.
        processor: Its image processor.
        spec: Its description; `min_score` is the smallest confidence of a region.

    Raises:
        ValueError: The processor is none of such a detector.
    """

    classes: tuple[Any, Any] = (AutoModelForObjectDetection, AutoImageProcessor)
    post_process = "post_process_object_detection"

    def __init__(self, model: Any, processor: Any, spec: DetectorSpec) -> None:
        if not hasattr(processor, self.post_process):
            raise ValueError(
                f"`processor` must have {self.post_process}, got {type(processor).__name__}: give the processor of the "
                "detector."
            )
        self.model, self.processor, self.spec = model, processor, spec

    @classmethod
    def load(cls, name: str, spec: DetectorSpec, device: torch.device) -> "TransformersDetector":
        """The detector of a folder or Hub id; a `ValueError` if it cannot be loaded."""
        model, processor = load_parts(name, *cls.classes)
        return cls(model.to(device), processor, spec)

    def prepare(self, image: Image.Image, caption: str | None = None) -> Prepared | None:
        """See `Detector`."""
        upright = load_image(image)
        names = getattr(self.model.config, "id2label", None) or {}
        return self.processor(images=upright, return_tensors="pt"), upright.size, names

    @torch.no_grad()
    def detect(self, prepared: Sequence[Prepared]) -> list[list[Region]]:
        """See `Detector`; images whose inputs have the same shapes may share a forward.

        Nothing is padded: YOLOS has no mask for it, and the regions of an image would depend on the others.
        """
        regions: list[list[Region]] = [[] for _ in prepared]
        shapes = [tuple((key, value.shape) for key, value in inputs.items()) for inputs, _, _ in prepared]
        for group in batches_of_one_shape(shapes, self.model.device):
            alike = [prepared[index] for index in group]
            batch = {
                key: torch.cat([inputs[key] for inputs, _, _ in alike]).to(self.model.device) for key in alike[0][0]
            }
            batch["pixel_values"] = batch["pixel_values"].to(self.model.dtype)
            for index, found in zip(group, self._regions(self.model(**batch), alike), strict=True):
                regions[index] = found
        return regions

    def _regions(self, outputs: Any, prepared: Sequence[Prepared]) -> list[list[Region]]:
        """The regions of each image in the outputs of a forward."""
        found = getattr(self.processor, self.post_process)(
            outputs, threshold=self.spec.min_score, target_sizes=[(height, width) for _, (width, height), _ in prepared]
        )
        regions = []
        for result, (_, size, names) in zip(found, prepared, strict=True):
            labels = [str(names.get(label, label)) for label in result["labels"].tolist()]
            regions.append(self._inside(result["boxes"].tolist(), result["scores"].tolist(), labels, size))
        return regions

    def _inside(
        self, boxes: list[list[float]], scores: list[float], labels: list[str], image_size: tuple[int, int]
    ) -> list[Region]:
        return regions_inside(boxes, scores, labels, image_size, self.spec.kind)
