"""FLISM (FAST-GOAL, arXiv 2605.26615): from images and captions to local pairs, as methods of the processor.

They do not travel with a checkpoint: finding pairs needs the package.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from .embedding import TOKENS_PER_CROP, embed_crops, embed_texts
from .images import load_image
from .matching import LocalPair, pair_row, pair_up
from .pixels import PixelReader
from .regions import LIMITS, Detector, Region, default_regions, filter_regions, find_regions, merge_regions
from .sentences import Sentence, split_sentences


class Flism:
    """The methods of `FastGoalProcessor` that find local pairs; its masks say what of them a model sees."""

    detector: Detector | None
    language: str
    image_processor: Any
    tokenizer: Any
    sentence_masks: Any
    region_mask: Any

    def split_sentences(self, caption: str) -> list[Sentence]:
        """Split a caption into sentences with exact spans; see `processing.sentences`."""
        return split_sentences(caption, self.language)

    def propose_regions(
        self,
        images: Sequence[Image.Image],
        boxes: Sequence[Sequence[Region]] | None = None,
        min_score: float | None = None,
        min_area: float | None = None,
        max_area: float | None = None,
        captions: Sequence[str] | None = None,
    ) -> list[list[Region]]:
        """Candidate regions of each image: the detector's (or the given ones), filtered, and the five default ones.

        Near-duplicates are merged; the four quadrants and the center box are always added (FLISM, step 2).

        Args:
            images: PIL images, upright.
            boxes: Regions known already, a list per image; the detector is then not asked.
            min_score: Lowest score of a region; by default the detector's own limit, or 0.25.
            min_area: Least share of the image's area; by default the detector's own limit, or 0.01.
            max_area: Greatest share of the image's area; by default the detector's own limit, or 0.80.
            captions: One per image, for a detector that looks for what they name; others do without.

        Returns:
            A list of regions per image: the proposed ones in their order, the five default ones last.

        Raises:
            TypeError: One image instead of a list.
            ValueError: `boxes` does not have one list per image, or captions are needed and missing.
        """
        _check_lists(images=images, captions=captions)
        if boxes is None:
            boxes = [[] for _ in images] if self.detector is None else find_regions(self.detector, images, captions)
        if len(boxes) != len(images):
            raise ValueError(f"`boxes` must have one list of regions per image, {len(images)}, got {len(boxes)}.")
        given = {"min_score": min_score, "min_area": min_area, "max_area": max_area}
        limits = LIMITS if self.detector is None else self.detector.spec.box_limits
        limits = limits | {name: value for name, value in given.items() if value is not None}
        return [
            [*merge_regions(filter_regions(candidates, image.size, **limits)), *default_regions(image.size)]
            for image, candidates in zip(images, boxes, strict=True)
        ]

    def match(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        model: Any,
        regions: Sequence[Sequence[Region]] | None = None,
        sentences: Sequence[Sequence[Sentence]] | None = None,
        batch_size: int = 64,
    ) -> list[list[LocalPair]]:
        """Match every sentence of every caption to the region that shows it best (FLISM, steps 1 to 4).

        Args:
            images: PIL images, upright.
            captions: One per image.
            model: A CLIP (`get_image_features`, `get_text_features`), for the cosine of crops and sentences.
            regions: Candidates per image; `propose_regions` by default.
            sentences: Sentences per caption; `split_sentences` by default.
            batch_size: Crops (and sentences) in a forward, of as many images as that takes.

        Returns:
            For each image one pair per sentence, in order; exactly one is `best`.

        Raises:
            TypeError: One image or caption instead of a list.
            ValueError: The lists differ in length, or an image (the message gives its index) has no sentence or region.
        """
        _check_lists(images=images, captions=captions)
        regions = self.propose_regions(images, captions=captions) if regions is None else regions
        sentences = [self.split_sentences(caption) for caption in captions] if sentences is None else sentences
        lengths = {"images": images, "captions": captions, "regions": regions, "sentences": sentences}
        if len({len(value) for value in lengths.values()}) > 1:
            got = {name: len(value) for name, value in lengths.items()}
            raise ValueError(f"`match` needs one caption, list of regions and list of sentences per image, got {got}.")
        for i, (candidates, spans) in enumerate(zip(regions, sentences, strict=True)):
            if not spans:
                raise ValueError(f"The caption of image {i} has no sentence: {captions[i]!r}. Give it a caption.")
            if not candidates:
                raise ValueError(f"Image {i} has no candidate region. `propose_regions` always gives five.")
        if not images:
            return []
        reader = PixelReader(self.image_processor)
        crops = (
            (None, reader.read([(image, region.box) for region in candidates]))
            for image, candidates in zip(images, regions, strict=True)
        )
        embeds = [embeds for _, embeds in embed_crops(model, reader, crops, batch_size)]
        texts = embed_texts(
            model, self, [s.text for spans in sentences for s in spans], batch_size, tokens_per_text=TOKENS_PER_CROP
        )
        text_embeds = texts.split([len(spans) for spans in sentences])
        return [
            self.pair_sentences(captions[i], sentences[i], regions[i], images[i].size, text_embeds[i] @ embeds[i].T)
            for i in range(len(images))
        ]

    def pair_rows(
        self,
        images: Sequence[Any],
        captions: Sequence[str],
        model: Any,
        file_names: Sequence[str] | None = None,
        batch_size: int = 64,
    ) -> list[dict[str, Any]]:
        """Rows that `FastGoalTrainer` trains on, as `fastgoal pairs` writes them: `match` from images to data.

            rows = processor.pair_rows(["dog.jpg"], ["A brown dog. A red ball lies beside it."], model)

        Args:
            images: What `load_image` reads: PIL images, paths, bytes or `{"bytes", "path"}`. A row keeps its image so.
            captions: One per image.
            model: A CLIP, as for `match`.
            file_names: What messages call the images; by default their files, or their numbers.
            batch_size: Crops in a forward, and images that are held decoded.

        Returns:
            For each image its row, see `pair_row`.

        Raises:
            TypeError: One image or caption instead of a list.
            ValueError: The lists differ in length, an image cannot be read, or a caption has no sentence.
        """
        _check_lists(images=images, captions=captions, file_names=file_names)
        names = [_name(image, i) for i, image in enumerate(images)] if file_names is None else file_names
        if not len(images) == len(captions) == len(names):
            got = f"{len(captions)} and {len(names)} for {len(images)} images"
            raise ValueError(f"`pair_rows` needs one caption and one file name per image, got {got}.")
        sentences = [self.split_sentences(caption) for caption in captions]
        for name, caption, spans in zip(names, captions, sentences, strict=True):
            if not spans:
                raise ValueError(f"{name}: the caption {caption!r} has no sentence. Give it a caption.")
        rows: list[dict[str, Any]] = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            given, texts = images[part], captions[part]
            loaded = [load_image(image, name) for image, name in zip(given, names[part], strict=True)]
            regions = self.propose_regions(loaded, captions=texts)
            pairs = self.match(loaded, texts, model, regions, sentences[part], batch_size)
            sizes = [image.size for image in loaded]
            rows += map(pair_row, given, names[part], texts, sizes, sentences[part], regions, pairs)
        return rows

    def pair_sentences(
        self,
        caption: str,
        sentences: Sequence[Sentence],
        regions: Sequence[Region],
        image_size: tuple[int, int],
        similarity: torch.Tensor,
    ) -> list[LocalPair]:
        """The last step of `match` for one image: `pair_up` with what this processor lets the model see.

        `image_size` is the (width, height) of the upright image, `similarity` `(sentences, regions)` cosines.
        """
        tokens = self.sentence_masks(caption, [(s.start, s.end) for s in sentences])
        seen = {(s.start, s.end): bool(mask.any()) for s, mask in zip(sentences, tokens, strict=True)}
        return pair_up(
            sentences,
            regions,
            similarity,
            visible=lambda s, r: seen[s.start, s.end] and bool(self.region_mask(r.box, image_size).any()),
        )


def _check_lists(**arguments: Any) -> None:
    """Refuse one image or one text where a list of them is meant."""
    for name, values in arguments.items():
        if isinstance(values, str | bytes | os.PathLike | Mapping | Image.Image):
            one = type(values).__name__
            raise TypeError(f"`{name}` must be a list with an entry per image, got one {one}: put it in [brackets].")


def _name(image: Any, number: int) -> str:
    """What to call an image: its file, or else its number."""
    path = image.get("path") if isinstance(image, Mapping) else getattr(image, "filename", image)
    return os.fspath(path) if path and isinstance(path, str | os.PathLike) else f"image {number}"
