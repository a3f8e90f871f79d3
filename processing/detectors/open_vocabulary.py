"""Regions from open-vocabulary detection: boxes of what the caption names, by a zero-shot detector of transformers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fastgoal.processing.images import load_image
from fastgoal.processing.regions import Region, clip_box, merge_regions

from .load import batches_of_one_shape
from .phrases import MAX_PHRASES, noun_phrases

# The lowest score by default; OWL's scores are low, and 0.1 is the threshold that transformers has for it.
MIN_SCORES = {"owlvit": 0.1, "owlv2": 0.1, "grounding-dino": 0.25, "mm-grounding-dino": 0.25}
# OWL gives a box for every patch of the image: those of one phrase that overlap by more are one object.
SAME_OBJECT_IOU = 0.5


def open_vocabulary_kind(name: str | os.PathLike[str]) -> str | None:
    """The model type of a folder or Hub id that `OpenVocabularyDetector` takes, or None for any other name."""
    from transformers import AutoConfig

    if os.fspath(name).lower().endswith(".pt") and not Path(name).is_dir():
        return None
    try:
        kind = AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError, KeyError):
        return None  # whoever loads the detector says what is wrong with it
    return kind if kind in MIN_SCORES else None


class OpenVocabularyDetector:
    """Looks for the noun phrases of an image's caption (`noun_phrases`); a `Detector` that needs captions.

    A region's label is the phrase, and its score the model's for that phrase. Images whose inputs have the same sizes,
    with them the number of phrases or of their tokens, may share a forward. Nothing is padded to a common size, so the
    regions of an image do not depend on the others.

    Args:
        name: Folder or Hub id of an OWL-ViT, OWLv2 or (MM) Grounding DINO checkpoint.
        device: Where it runs; None takes a GPU if there is one.
        min_score: Lowest score of a region; by default 0.1 for OWL and 0.25 for Grounding DINO.
        max_phrases: Phrases of a caption that are looked for, the first ones.

    Raises:
        ValueError: The name cannot be loaded as such a checkpoint, or a number is out of range.
    """

    source = "open_vocabulary"
    needs_captions = True

    def __init__(
        self,
        name: str | os.PathLike[str],
        device: str | torch.device | None = None,
        min_score: float | None = None,
        max_phrases: int = MAX_PHRASES,
    ) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        kind = open_vocabulary_kind(name)
        if kind is None:
            raise ValueError(
                f"`name` must be the folder or Hub id of an open-vocabulary detector ({', '.join(MIN_SCORES)}), such "
                f"as google/owlv2-base-patch16-ensemble, got {os.fspath(name)!r}."
            )
        if min_score is None:
            min_score = MIN_SCORES[kind]
        if not 0 <= min_score <= 1 or max_phrases < 1:
            raise ValueError(
                f"`min_score` must be between 0 and 1 and `max_phrases` at least 1, got {min_score} and {max_phrases}: "
                f"the defaults are {MIN_SCORES[kind]} and {MAX_PHRASES}."
            )
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = Path(name).name if Path(name).is_dir() else os.fspath(name)
        self.min_score, self.max_phrases = min_score, max_phrases
        self.device = torch.device(device)
        try:
            self.processor: Any = AutoProcessor.from_pretrained(name)
            model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"The open-vocabulary detector {os.fspath(name)!r} cannot be loaded: {error}") from error
        self.model = model.to(self.device).eval()
        self._regions = self._regions_of_tokens if "grounding-dino" in kind else self._regions_of_queries

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str] | None = None) -> list[list[Region]]:
        """The things that the captions name, in pixels of the upright images; none where a caption has no phrase.

        Raises:
            ValueError: There is not one caption per image.
        """
        if captions is None or len(captions) != len(images):
            got = "none" if captions is None else len(captions)
            raise ValueError(
                f"`captions` must be one per image, {len(images)}, got {got}: the detector {self.name} looks for what "
                "the captions name."
            )
        prepared = [self.prepare(image, caption) for image, caption in zip(images, captions, strict=True)]
        found = iter(self.detect([item for item in prepared if item is not None]))
        return [[] if item is None else next(found) for item in prepared]

    def prepare(self, image: Image.Image, caption: str) -> tuple[Any, tuple[int, int], list[str]] | None:
        """The model's inputs for an image, its (width, height) and the phrases; None if there is no phrase."""
        phrases = noun_phrases(caption, self.max_phrases)
        if not phrases:
            return None
        upright = load_image(image)
        inputs = self.processor(images=upright, text=[phrases], truncation=True, return_tensors="pt")
        return inputs, upright.size, phrases

    @torch.no_grad()
    def detect(self, prepared: Sequence[tuple[Any, tuple[int, int], list[str]]]) -> list[list[Region]]:
        """Find the things in prepared images."""
        shapes = [tuple((key, inputs[key].shape) for key in inputs) for inputs, _, _ in prepared]
        regions: list[list[Region]] = [[] for _ in prepared]
        for group in batches_of_one_shape(shapes, self.device):
            inputs = {key: torch.cat([prepared[i][0][key] for i in group]) for key in prepared[group[0]][0]}
            batch = {key: value.to(self.device) for key, value in inputs.items()}
            batch["pixel_values"] = batch["pixel_values"].to(self.model.dtype)
            outputs = self.model(**batch)
            found = self._regions(outputs, inputs, [prepared[i] for i in group])
            for index, candidates in zip(group, found, strict=True):
                regions[index] = candidates
        return regions

    def _regions_of_queries(self, outputs: Any, inputs: Any, prepared: Sequence[Any]) -> list[list[Region]]:
        """OWL: a score for each phrase at each patch."""
        found = self.processor.post_process_grounded_object_detection(
            outputs, threshold=self.min_score, target_sizes=[(height, width) for _, (width, height), _ in prepared]
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

    def _regions_of_tokens(self, outputs: Any, inputs: Any, prepared: Sequence[Any]) -> list[list[Region]]:
        """Grounding DINO: a score for each token of "a cat. a dog."; a phrase has that of its best token."""
        ids = inputs["input_ids"]  # (images, tokens)
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
            keep = best[i] > self.min_score
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
        for box, score, label in sorted(zip(boxes, scores, labels, strict=True), key=lambda item: -item[1]):
            clipped = clip_box(box, image_size)
            if clipped is not None:
                by_phrase.setdefault(label, []).append(Region(clipped, score, label, self.source))
        return [region for same in by_phrase.values() for region in merge_regions(same, SAME_OBJECT_IOU)]
