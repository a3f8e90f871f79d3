"""What trainings and measurements of the study work on: scenes with all that is made of them, computed once."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F

from fastgoal import FastGoalProcessor
from fastgoal.processing.data.boxes import regions_from_boxes
from fastgoal.processing.embedding import embed_texts
from fastgoal.processing.geometry import crop_box
from fastgoal.processing.matching import LocalPair, pair_up
from fastgoal.processing.regions import Region
from fastgoal.quickstart.drawing import enlarge
from fastgoal.quickstart.train_base import Pixels, embed_pixels
from fastgoal.trainer.evaluation.measures.retrieval import retrieval_ranks

from .scenes import Crowd, short_caption

SHORT_ROWS = 500
"""Short captions that are asked for."""

MEASURES = ("R@1", "text_to_image_R@1", "image_to_text_R@1", "R@5", "twins", "short_R@1")
"""What the tables are made of, in the words of `Gallery.measure`."""


class StudyData:
    """Training scenes with everything that training needs of them.

    Attributes, for each scene but `pixels` and `crops`:
        pixels: Their pictures.
        crops: Of all candidate regions; those of a scene begin at its `first_crop`.
        regions: The candidates, `Region.source` being `default`, `detected` or `true`.
        ids: The caption's token ids.
        sentence_ids: Each sentence's.
        sentence_masks: `(sentences, tokens)` bool.
        region_masks: `(regions, patches)` bool; `squashed_masks` are the same without the crop.
        short_ids: Token ids of five short captions, as other datasets have them, of one or two of the things.
        similarity: The base's cosines, `(sentences, regions)`.
    """

    def __init__(self, scenes: Sequence[Crowd], processor: FastGoalProcessor, model: Any):
        self.scenes, self.processor = scenes, processor
        tokenizer, image_processor = processor.tokenizer, processor.image_processor
        self.pixels = Pixels((scene.image for scene in scenes), image_processor)
        self.regions = [candidates(scene, processor) for scene in scenes]
        known = [(scene.image, regions) for scene, regions in zip(scenes, self.regions, strict=True)]
        crops = (crop_box(image, region.box) for image, regions in known for region in regions)
        self.crops = Pixels(crops, image_processor)
        self.first_crop = [0, *accumulate(len(regions) for regions in self.regions)][:-1]
        self.sentences = [processor.split_sentences(scene.caption) for scene in scenes]
        for scene, sentences in zip(scenes, self.sentences, strict=True):
            if [sentence.text for sentence in sentences] != scene.sentences:
                raise ValueError(f"The splitter finds other sentences than were written: {scene.caption!r}.")
        self.sentence_ids = [_token_ids(tokenizer, scene.sentences) for scene in scenes]
        self.short_ids = [
            _token_ids(tokenizer, short_captions(scene, f"{i}/{scene.caption}")) for i, scene in enumerate(scenes)
        ]
        self._read_captions()
        self.region_masks = [
            torch.stack([processor.region_mask(region.box, image.size) for region in regions])
            for image, regions in known
        ]
        grid = model.config.vision_config.image_size // processor.patch_size
        self.squashed_masks = [
            torch.stack([squashed_mask(region, image.size, grid) for region in regions]) for image, regions in known
        ]
        self.tokenizer = tokenizer
        texts = embed_texts(model, processor, [text for scene in scenes for text in scene.sentences])
        crop_embeds = F.normalize(embed_pixels(model, self.crops), dim=-1)
        parts = texts.split(list(map(len, self.sentences))), crop_embeds.split(list(map(len, self.regions)))
        self.similarity = [sentences @ regions.T for sentences, regions in zip(*parts, strict=True)]

    def _read_captions(self) -> None:
        self.ids = [_token_ids(self.processor.tokenizer, [scene.caption])[0] for scene in self.scenes]
        self.sentence_masks = [
            self.processor.sentence_masks(scene.caption, [(s.start, s.end) for s in sentences])
            for scene, sentences in zip(self.scenes, self.sentences, strict=True)
        ]

    def read_by(self, processor: FastGoalProcessor) -> "StudyData":
        """The same scenes and pairs with captions as a processor of another text length reads them."""
        data = copy.copy(self)
        data.processor, data.tokenizer = processor, processor.tokenizer
        data._read_captions()
        return data

    def pairs(self, index: int, sources: Sequence[str]) -> list[LocalPair]:
        """FLISM's pairs of a scene from the regions of some sources; `region_index` counts all candidates.

        A scene in which these sources have nothing takes the five default regions.
        """
        candidates = self.regions[index]
        allowed = [i for i, region in enumerate(candidates) if region.source in sources]
        allowed = allowed or [i for i, region in enumerate(candidates) if region.source == "default"]
        pairs = pair_up(
            self.processor,
            self.scenes[index].caption,
            self.sentences[index],
            [candidates[i] for i in allowed],
            self.scenes[index].image.size,
            self.similarity[index][:, allowed],
        )
        return [replace(pair, region_index=allowed[pair.region_index]) for pair in pairs]

    def true_pairs(self, index: int) -> list[LocalPair]:
        """Each sentence about one thing with that thing's true box, scored by the base."""
        sentences, regions, similarity = self.sentences[index], self.regions[index], self.similarity[index]
        places = [place for place, region in enumerate(regions) if region.source == "true"]
        return [
            LocalPair(sentences[row], regions[place], float(similarity[row, place]), False, row, place)
            for row, things in enumerate(self.scenes[index].sentence_things)
            for place in (places[thing] for thing in things if len(things) == 1)
        ]

    def ranked(self, index: int, pairs: Sequence[LocalPair]) -> list[LocalPair]:
        """The pairs of which the model sees both sides, the best first; the best one where it sees none."""
        ordered = sorted(pairs, key=lambda pair: -pair.score)
        tokens, patches = self.sentence_masks[index].any(dim=1), self.region_masks[index].any(dim=1)
        seen = [pair for pair in ordered if tokens[pair.sentence_index] and patches[pair.region_index]]
        return seen or ordered[:1]


def _token_ids(tokenizer: Any, texts: list[str]) -> list[torch.Tensor]:
    return [torch.tensor(ids) for ids in tokenizer(texts, truncation=True)["input_ids"]]


def short_captions(scene: Crowd, seed: str, count: int = 5) -> list[str]:
    """Some short captions of a scene, in the plain words of those that the base was trained on."""
    rng = random.Random(f"short/{seed}")
    most = min(2, len(scene.things))
    drawn = [rng.sample(range(len(scene.things)), rng.randint(1, most)) for _ in range(count)]
    return [short_caption(scene, chosen, rng, 0.5) for chosen in drawn]


def candidates(scene: Crowd, processor: FastGoalProcessor) -> list[Region]:
    """The detector's regions, the five default ones, and the true boxes."""
    detected = regions_from_boxes(scene.detected, scene.image.size, source="detected")
    proposed = processor.propose_regions([scene.image], boxes=[detected])[0]
    return [*proposed, *regions_from_boxes(scene.boxes, scene.image.size, source="true")]


def squashed_mask(region: Region, size: tuple[int, int], grid: int) -> torch.Tensor:
    """The patches of a box as if the whole image had been squashed to a square of `grid` x `grid` patches."""
    (x1, x2), (y1, y2) = (
        (int(region.box[axis] / size[axis] * grid), -(-region.box[axis + 2] * grid // size[axis])) for axis in (0, 1)
    )
    mask = torch.zeros(grid, grid, dtype=torch.bool)
    mask[y1 : max(int(y2), y1 + 1), x1 : max(int(x2), x1 + 1)] = True
    return mask.flatten()


class Gallery:
    """Scenes to measure on, with what is asked of them: galleries of `size` scenes each, and enlarged things."""

    def __init__(self, scenes: Sequence[Crowd], processor: FastGoalProcessor, size: int):
        self.size = size
        self.pixels = Pixels((scene.image for scene in scenes), processor.image_processor)
        self.captions = [scene.caption for scene in scenes]
        self.twins = [(scene.twin_of, i) for i, scene in enumerate(scenes) if scene.twin_of is not None]
        rng = random.Random("short/0")
        views, self.short_texts = [], []
        for scene in scenes[:SHORT_ROWS]:
            number = rng.randrange(len(scene.things))
            views.append(enlarge(scene, number, rng))
            self.short_texts.append(short_caption(scene, [number], rng, 1.0))
        self.short_pixels = Pixels(views, processor.image_processor)

    def measure(self, model: Any, processor: FastGoalProcessor) -> dict[str, float]:
        """R@1 and R@5 both ways and in the mean, the share of twins told apart, and R@1 of short captions."""
        model.eval()
        images, short_images = (
            F.normalize(embed_pixels(model, pixels).float(), dim=-1) for pixels in (self.pixels, self.short_pixels)
        )
        texts, short_texts = (embed_texts(model, processor, texts) for texts in (self.captions, self.short_texts))
        blocks = zip(images.split(self.size), texts.split(self.size), strict=True)
        found = [retrieval_ranks(*block) for block in blocks]
        similarity = texts @ images.T
        told = [float(similarity[a, a] > similarity[a, b]) for pair in self.twins for a, b in (pair, pair[::-1])]
        short = retrieval_ranks(short_images, short_texts).text_to_image
        metrics: dict[str, float] = {}
        for k in (1, 5):
            for name in ("text_to_image", "image_to_text"):
                hits = torch.cat([getattr(ranks, name) for ranks in found]) <= k
                metrics[f"{name}_R@{k}"] = float(hits.float().mean())
            metrics[f"R@{k}"] = (metrics[f"text_to_image_R@{k}"] + metrics[f"image_to_text_R@{k}"]) / 2
        metrics["twins"] = sum(told) / max(len(told), 1)
        metrics["short_R@1"] = float((short <= 1).float().mean())
        return metrics
