"""Open-vocabulary detection: boxes of the objects that a caption names, by a zero-shot detector of transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.ops import box_convert
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from fastgoal.processing.checks import MIN_SCORE
from fastgoal.processing.images import load_image
from fastgoal.processing.regions import Region, merge_regions

from .hf_detection import Prepared, TransformersDetector
from .phrases import MAX_PHRASES, noun_phrases

MIN_SCORES = {"owlvit": 0.1, "owlv2": 0.1, "grounding-dino": MIN_SCORE, "mm-grounding-dino": MIN_SCORE}
"""Default lowest score by model type. OWL gives low scores, and 0.1 is its threshold in transformers."""
# OWL gives a box for every patch of the image. Boxes of one phrase that overlap by more than this are one object.
SAME_OBJECT_IOU = 0.5


class OpenVocabularyDetector(TransformersDetector):
    """A `Detector` that looks for the noun phrases of an image's caption (`noun_phrases`).

    The label of a region is the phrase, and its score is the score of the model for that phrase. The model is an
    OWL-ViT, OWLv2 or (MM) Grounding DINO; `spec.max_phrases` limits the number of phrases.
    """

    classes = (AutoModelForZeroShotObjectDetection, AutoProcessor)
    post_process = "post_process_grounded_object_detection"

    def prepare(self, image: Image.Image, caption: str | None = None) -> Prepared | None:
        """Prepare an image and its caption; None if the caption has no phrase. Raise `ValueError` without a caption."""
        if caption is None:
            raise ValueError(
                f"`captions` must be given for the detector {self.spec.name}, which looks for their phrases."
            )
        phrases = noun_phrases(caption, self.spec.max_phrases or MAX_PHRASES)
        if not phrases:
            return None
        upright = load_image(image)
        inputs = self.processor(images=upright, text=[phrases], truncation=True, return_tensors="pt")
        return inputs, upright.size, dict(enumerate(phrases))

    def _regions(self, outputs: Any, prepared: Sequence[Prepared]) -> list[list[Region]]:
        """Return the regions of each image. OWL scores phrases, Grounding DINO scores each token of "a cat. a dog."."""
        if "grounding-dino" not in self.model.config.model_type:
            return super()._regions(outputs, prepared)
        # The score of a phrase is that of its best token.
        ids = torch.cat([inputs["input_ids"] for inputs, _, _ in prepared])  # (images, tokens)
        tokenizer = self.processor.tokenizer
        stops = ids == tokenizer.convert_tokens_to_ids(".")
        special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
        phrase_of_token = stops.cumsum(dim=1)
        scores = outputs.logits[:, :, : ids.shape[1]].float().sigmoid().cpu()  # (images, queries, tokens)
        best, tokens = scores.masked_fill((stops | special)[:, None], 0.0).max(dim=2)
        corners = box_convert(outputs.pred_boxes.float().cpu(), "cxcywh", "xyxy")  # fractions of the image
        regions = []
        for i, (_, (width, height), phrases) in enumerate(prepared):
            keep = best[i] > self.spec.min_score
            boxes = corners[i][keep] * torch.tensor([width, height, width, height])
            labels = [phrases[number] for number in phrase_of_token[i][tokens[i][keep]].tolist()]
            regions.append(self._inside(boxes.tolist(), best[i][keep].tolist(), labels, (width, height)))
        return regions

    def _inside(
        self, boxes: list[list[float]], scores: list[float], labels: list[str], image_size: tuple[int, int]
    ) -> list[Region]:
        """Return regions clipped to the image, by phrase and score; boxes of one object are merged."""
        by_phrase: dict[str, list[Region]] = {}
        inside = super()._inside(boxes, scores, labels, image_size)
        for region in sorted(inside, key=lambda region: -region.score):
            by_phrase.setdefault(region.label, []).append(region)
        return [region for same in by_phrase.values() for region in merge_regions(same, SAME_OBJECT_IOU)]
