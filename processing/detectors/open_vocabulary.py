"""Regions from open-vocabulary detection: boxes of what the caption names, by a zero-shot detector of transformers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from fastgoal.processing.images import load_image
from fastgoal.processing.regions import Region, merge_regions

from .common import forwards, load_checkpoint, regions_inside
from .phrases import MAX_PHRASES, noun_phrases
from .spec import DetectorSpec

# The lowest score by default; OWL's scores are low, and 0.1 is the threshold that transformers has for it.
MIN_SCORES = {"owlvit": 0.1, "owlv2": 0.1, "grounding-dino": 0.25, "mm-grounding-dino": 0.25}
# OWL gives a box for every patch of the image: those of one phrase that overlap by more are one object.
SAME_OBJECT_IOU = 0.5

Prepared = tuple[Mapping[str, torch.Tensor], tuple[int, int], list[str]]
"""The model's inputs for an image, its (width, height) and the phrases of its caption."""


class OpenVocabularyDetector:
    """Looks for the noun phrases of an image's caption (`noun_phrases`); a `Detector`.

    A region's label is the phrase, and its score the model's for that phrase. Images whose inputs have the same sizes,
    with them the number of phrases or of their tokens, may share a forward.

    Args:
        model: An OWL-ViT, OWLv2 or (MM) Grounding DINO, in eval mode and on its device.
        processor: Its processor.
        spec: Its description, with the least score of a region and the phrases of a caption that are looked for.
    """

    def __init__(self, model: Any, processor: Any, spec: DetectorSpec) -> None:
        self.model, self.processor, self.spec = model, processor, spec
        by_token = "grounding-dino" in model.config.model_type
        self._regions = self._regions_of_tokens if by_token else self._regions_of_queries

    @classmethod
    def load(cls, name: str, spec: DetectorSpec, device: torch.device) -> "OpenVocabularyDetector":
        """The detector of a folder or Hub id."""
        return cls(*load_checkpoint(AutoModelForZeroShotObjectDetection, AutoProcessor, name, device), spec)

    def prepare(self, image: Image.Image, caption: str | None) -> Prepared | None:
        """The inputs for an image and its caption, None if that has no phrase; a `ValueError` without a caption."""
        if caption is None:
            raise ValueError(
                f"`captions` must be given: the detector {self.spec.name} looks for what the captions name."
            )
        phrases = noun_phrases(caption, self.spec.max_phrases or MAX_PHRASES)
        if not phrases:
            return None
        upright = load_image(image)
        inputs = self.processor(images=upright, text=[phrases], truncation=True, return_tensors="pt")
        return inputs, upright.size, phrases

    def detect(self, prepared: Sequence[Prepared]) -> list[list[Region]]:
        """See `Detector`."""
        regions: list[list[Region]] = [[] for _ in prepared]
        for group, outputs in forwards(self.model, [inputs for inputs, _, _ in prepared]):
            for index, found in zip(group, self._regions(outputs, [prepared[i] for i in group]), strict=True):
                regions[index] = found
        return regions

    def _regions_of_queries(self, outputs: Any, prepared: Sequence[Prepared]) -> list[list[Region]]:
        """OWL: a score for each phrase at each patch."""
        found = self.processor.post_process_grounded_object_detection(
            outputs, threshold=self.spec.min_score, target_sizes=[(height, width) for _, (width, height), _ in prepared]
        )
        return [
            self._distinct(
                result["boxes"].tolist(),
                result["scores"].tolist(),
                [phrases[label] for label in result["labels"].tolist()],
                size,
            )
            for result, (_, size, phrases) in zip(found, prepared, strict=True)
        ]

    def _regions_of_tokens(self, outputs: Any, prepared: Sequence[Prepared]) -> list[list[Region]]:
        """Grounding DINO: a score for each token of "a cat. a dog."; a phrase has that of its best token."""
        ids = torch.cat([inputs["input_ids"] for inputs, _, _ in prepared])  # (images, tokens)
        tokenizer = self.processor.tokenizer
        stops = ids == tokenizer.convert_tokens_to_ids(".")
        special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
        phrase_of_token = stops.cumsum(dim=1)
        scores = outputs.logits[:, :, : ids.shape[1]].float().sigmoid().cpu()  # (images, queries, tokens)
        best, tokens = scores.masked_fill((stops | special)[:, None], 0.0).max(dim=2)
        centre, size = outputs.pred_boxes.float().cpu().split(2, dim=2)
        corners = torch.cat([centre - size / 2, centre + size / 2], dim=2)  # shares of the image
        regions = []
        for i, (_, (width, height), phrases) in enumerate(prepared):
            keep = best[i] > self.spec.min_score
            boxes = corners[i][keep] * torch.tensor([width, height, width, height])
            numbers = phrase_of_token[i][tokens[i][keep]].tolist()
            regions.append(
                self._distinct(boxes.tolist(), best[i][keep].tolist(), [phrases[n] for n in numbers], (width, height))
            )
        return regions

    def _distinct(
        self, boxes: list[list[float]], scores: list[float], labels: list[str], image_size: tuple[int, int]
    ) -> list[Region]:
        """Regions clipped to the image, of each phrase those that are different objects, the likeliest first."""
        by_phrase: dict[str, list[Region]] = {}
        inside = regions_inside(boxes, scores, labels, image_size, self.spec.kind)
        for region in sorted(inside, key=lambda region: -region.score):
            by_phrase.setdefault(region.label, []).append(region)
        return [region for same in by_phrase.values() for region in merge_regions(same, SAME_OBJECT_IOU)]
