"""FLISM (FAST-GOAL, arXiv 2605.26615): from images and captions to local pairs.

`find_pairs` is the only implementation. The methods of `FastGoalProcessor` call it for images in memory, and
`builders/pairs.py` for whole datasets. Nothing here travels with a checkpoint: finding pairs needs the package.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from PIL import Image

from .embedding import TOKENS_PER_CROP, embed_crops, embed_texts
from .images import load_image
from .matching import LocalPair, pair_row, pair_up
from .pixels import OpenImage, PixelReader
from .regions import Detector, Region, candidate_regions, detect_prepared, find_regions
from .sentences import Sentence, split_sentences

T = TypeVar("T")

# The detector gets a quarter as many images at a time as there are crops in a forward pass of the model.
CROPS_PER_IMAGE = 4


@dataclass
class FlismRow:
    """An image and its caption, ready for `find_pairs`.

    Attributes:
        image: Upright RGB, from `load_image` or `PixelReader.open`.
        sentences: The caption's sentences, at least one.
        regions: The image's candidates; None for those that `candidate_regions` makes of the detections.
        prepared: What `Detector.prepare` returned; None if there is nothing to detect.
    """

    image: OpenImage
    caption: str
    sentences: Sequence[Sentence]
    regions: Sequence[Region] | None = None
    prepared: Any = None


Row = TypeVar("Row", bound=FlismRow)


class Clock:
    """Count the seconds of each stage. The time of a stage inside another one counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stage, self._since = "", time.perf_counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        outer = self._enter(stage)
        try:
            yield
        finally:
            self._enter(outer)

    def timed(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and count the time to get each one for `stage`."""
        iterator, end = iter(items), object()
        while True:
            with self(stage):
                item: Any = next(iterator, end)
            if item is end:
                return
            yield item

    def read(self) -> Counter[str]:
        """Return the seconds up to now."""
        self._enter(self._stage)
        return self.seconds.copy()

    def _enter(self, stage: str) -> str:
        now = time.perf_counter()
        self.seconds[self._stage] += now - self._since  # type: ignore[assignment]
        outer, self._stage, self._since = self._stage, stage, now
        return outer


def find_pairs(
    processor: Any,
    model: Any,
    rows: Iterable[Row],
    texts: Iterable[str],
    batch_size: int = 64,
    limits: Mapping[str, float] | None = None,
    parallel: Callable[[Callable[[Any], Any], Iterable[Any], int], Iterable[Any]] | None = None,
    clock: Clock | None = None,
) -> Iterator[tuple[Row, Sequence[Region], list[LocalPair]]]:
    """Match every sentence of every row to the region that shows it best (FLISM, steps 2 to 4).

    The sentences are embedded first, all together. Rows are taken only when their images are needed; detections and
    crops of several images share a batch.

    Args:
        processor: The model's `FastGoalProcessor`, with its `detector`.
        model: Any supported model.
        rows: Images with their captions and sentences.
        texts: All sentences of the rows.
        batch_size: Crops in a forward pass, as many sentences of 32 tokens, and a quarter as many images for the
            detector.
        limits: `min_score`, `min_area` and `max_area` of detections; by default the detector's own.
        parallel: Maps a function over items in order with a number of results that may wait, such as `Threads.map`; by
            default the crops are cut one after the other.
        clock: Counts the seconds of the stages `sentences`, `detect`, `crop` and `image`.

    Yields:
        Each row with its candidate regions and one pair per sentence, exactly one of them `best`.
    """
    clock, detector = clock or Clock(), processor.detector
    limits = detector.spec.box_limits if limits is None and detector is not None else limits or {}
    images_at_once = max(1, batch_size // CROPS_PER_IMAGE)
    reader, stream = PixelReader(processor.image_processor), iter(rows)

    def with_regions() -> Iterator[tuple[Row, Sequence[Region]]]:
        while chunk := list(islice(stream, images_at_once)):
            with clock("detect"):
                detections = detect_prepared(detector, [row.prepared for row in chunk])
                candidates = [
                    candidate_regions(some, row.image.size, **limits) if row.regions is None else row.regions
                    for row, some in zip(chunk, detections, strict=True)
                ]
            yield from zip(chunk, candidates, strict=True)

    def crop(item: tuple[Row, Sequence[Region]]) -> tuple[tuple[Row, Sequence[Region]], torch.Tensor]:
        row, regions = item
        return item, reader.read([(row.image, region.box) for region in regions])

    with clock("sentences"):
        unique = list(dict.fromkeys(texts))
        text_embeds: dict[str, torch.Tensor] = {}
        if unique:
            embeds = embed_texts(model, processor, unique, batch_size, tokens_per_text=TOKENS_PER_CROP)
            text_embeds = dict(zip(unique, embeds, strict=True))
    items = with_regions()
    crops = clock.timed("crop", parallel(crop, items, images_at_once) if parallel is not None else map(crop, items))
    for (row, regions), crop_embeds in clock.timed("image", embed_crops(model, reader, crops, batch_size)):
        similarity = torch.stack([text_embeds[sentence.text] for sentence in row.sentences]) @ crop_embeds.T
        yield row, regions, pair_up(processor, row.caption, row.sentences, regions, row.image.size, similarity)


class Flism:
    """The methods of `FastGoalProcessor` that find local pairs."""

    detector: Detector | None
    language: str

    def split_sentences(self, caption: str) -> list[Sentence]:
        """Split a caption into sentences with exact spans; see `fastgoal.split_sentences`."""
        return split_sentences(caption, self.language)

    def propose_regions(
        self,
        images: Sequence[Image.Image],
        boxes: Sequence[Sequence[Region]] | None = None,
        captions: Sequence[str] | None = None,
    ) -> list[list[Region]]:
        """Return the candidate regions of each image (FLISM, step 2).

        They are the detector's regions within its limits, with near-duplicates merged, and always the five default
        ones: the four quadrants and the center.

        Args:
            images: PIL images, upright.
            boxes: Regions to use instead of the detector's, one list per image.
            captions: One per image, for a detector that looks for the objects that they name.

        Returns:
            A list of regions per image: the proposed ones in their order, then the default ones.

        Raises:
            TypeError: A list is expected, and one image or text is given.
            ValueError: `boxes` or `captions` does not have one entry per image.
        """
        _check_lists(images=images, captions=captions)
        if boxes is None:
            boxes = [[] for _ in images] if self.detector is None else find_regions(self.detector, images, captions)
        if len(boxes) != len(images):
            raise ValueError(f"`boxes` must hold one list of regions per image, {len(images)}, got {len(boxes)}.")
        limits = {} if self.detector is None else self.detector.spec.box_limits
        return [candidate_regions(some, image.size, **limits) for image, some in zip(images, boxes, strict=True)]

    def match(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        model: Any,
        regions: Sequence[Sequence[Region]] | None = None,
        batch_size: int = 64,
    ) -> list[list[LocalPair]]:
        """Match every sentence of every caption to the region that shows it best (FLISM, steps 1 to 4).

            pairs = processor.match([image], ["A brown dog. A red ball lies next to it."], model)
            print(pairs[0][1].sentence.text, pairs[0][1].region.box)

        Args:
            images: PIL images, upright.
            captions: One per image.
            model: Any supported model; it scores crops and sentences.
            regions: Candidates per image; by default those of `propose_regions`.
            batch_size: Crops in a forward pass, and as many sentences of 32 tokens.

        Returns:
            For each image one pair per sentence, in order; exactly one is `best`.

        Raises:
            TypeError: A list is expected, and one image or text is given.
            ValueError: The lists differ in length, or an image (the message gives its index) has no sentence or region.
        """
        _check_lists(images=images, captions=captions)
        candidates = [None] * len(images) if regions is None else regions
        if not len(images) == len(captions) == len(candidates):
            got = f"{len(captions)} and {len(candidates)} for {len(images)} images"
            raise ValueError(f"`match` needs one caption and one list of regions per image, got {got}.")
        sentences = [self.split_sentences(caption) for caption in captions]
        for i, (some, spans) in enumerate(zip(candidates, sentences, strict=True)):
            if not spans:
                raise ValueError(f"The caption of image {i} has no sentence: {captions[i]!r}. Give it a caption.")
            if some is not None and not some:
                raise ValueError(f"Image {i} has no candidate region. `propose_regions` always returns five.")
        rows = (self._row(*values) for values in zip(images, captions, sentences, candidates, strict=True))
        return [pairs for _, _, pairs in find_pairs(self, model, rows, _texts(sentences), batch_size)]

    def pair_rows(
        self,
        images: Sequence[Any],
        captions: Sequence[str],
        model: Any,
        batch_size: int = 64,
    ) -> list[dict[str, Any]]:
        """Return rows that `FastGoalTrainer` trains on, as `fastgoal pairs` writes them, without numbers of tokens.

            rows = processor.pair_rows(["dog.jpg"], ["A brown dog. A red ball lies next to it."], model)

        Args:
            images: What `load_image` reads: PIL images, paths, bytes or `{"bytes", "path"}`. Rows keep them unchanged.
            captions: One per image.
            model: Any supported model, as for `match`.
            batch_size: Crops in a forward pass. At most about as many images are decoded at a time.

        Returns:
            One row per image; see `pair_row`.

        Raises:
            TypeError: A list is expected, and one image or text is given.
            ValueError: The lists differ in length, an image cannot be read, or a caption has no sentence.
        """
        _check_lists(images=images, captions=captions)
        if len(images) != len(captions):
            raise ValueError(f"`captions` must hold one caption per image, {len(images)}, got {len(captions)}.")
        names = [_name(image, i) for i, image in enumerate(images)]
        sentences = [self.split_sentences(caption) for caption in captions]
        for name, caption, spans in zip(names, captions, sentences, strict=True):
            if not spans:
                raise ValueError(f"{name}: the caption {caption!r} has no sentence. Give it a caption.")
        given = zip(images, captions, sentences, names, strict=True)
        rows = (self._row(load_image(image, name), caption, spans) for image, caption, spans, name in given)
        matched = find_pairs(self, model, rows, _texts(sentences), batch_size)
        return [
            pair_row(image, name, row.caption, row.image.size, row.sentences, regions, pairs)
            for image, name, (row, regions, pairs) in zip(images, names, matched, strict=True)
        ]

    def _row(
        self, image: Any, caption: str, sentences: Sequence[Sentence], regions: Sequence[Region] | None = None
    ) -> FlismRow:
        prepared = None
        if regions is None and self.detector is not None:
            prepared = self.detector.prepare(image, caption)
        return FlismRow(image, caption, sentences, regions, prepared)


def _texts(sentences: Iterable[Iterable[Sentence]]) -> Iterator[str]:
    return (sentence.text for spans in sentences for sentence in spans)


def _check_lists(**arguments: Any) -> None:
    """Raise `TypeError` where one image or text is given in place of a list."""
    for name, values in arguments.items():
        if isinstance(values, str | bytes | os.PathLike | Mapping | Image.Image):
            one = type(values).__name__
            raise TypeError(f"`{name}` must be a list with an entry per image, got one {one}: put it in [brackets].")


def _name(image: Any, number: int) -> str:
    """Return the name of an image in rows and messages: that of its file, or its number."""
    path = image.get("path") if isinstance(image, Mapping) else getattr(image, "filename", image)
    return os.fspath(path) if path and isinstance(path, str | os.PathLike) else f"image {number}"
