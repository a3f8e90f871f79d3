"""FLISM (FAST-GOAL, arXiv 2605.26615): from images and captions to local pairs; what the processor's methods do.

The methods say what the arguments are. This does not travel with a checkpoint: finding pairs needs the package.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from .images import load_image
from .matching import LocalPair, cut_crops, embed_crop_stream, embed_texts, eval_mode, pair_row, pair_up
from .regions import LIMITS, Region, default_regions, filter_regions, find_regions, merge_regions
from .sentences import Sentence, split_sentences

__all__ = ["match", "pair_rows", "pair_sentences", "propose_regions", "split_sentences"]


def propose_regions(
    processor: Any,
    images: Sequence[Image.Image],
    boxes: Sequence[Sequence[Region]] | None = None,
    min_score: float | None = None,
    min_area: float | None = None,
    max_area: float | None = None,
    captions: Sequence[str] | None = None,
) -> list[list[Region]]:
    """See `FastGoalProcessor.propose_regions`."""
    _check_lists(images=images, captions=captions)
    if boxes is None:
        boxes = (
            [[] for _ in images] if processor.detector is None else find_regions(processor.detector, images, captions)
        )
    if len(boxes) != len(images):
        raise ValueError(f"`boxes` must have one list of regions per image, {len(images)}, got {len(boxes)}.")
    given = {"min_score": min_score, "min_area": min_area, "max_area": max_area}
    limits = LIMITS if processor.detector is None else processor.detector.spec.box_limits
    limits = limits | {name: value for name, value in given.items() if value is not None}
    return [
        [*merge_regions(filter_regions(candidates, image.size, **limits)), *default_regions(image.size)]
        for image, candidates in zip(images, boxes, strict=True)
    ]


def match(
    processor: Any,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    model: Any,
    regions: Sequence[Sequence[Region]] | None = None,
    sentences: Sequence[Sequence[Sentence]] | None = None,
    batch_size: int = 64,
) -> list[list[LocalPair]]:
    """See `FastGoalProcessor.match`."""
    _check_lists(images=images, captions=captions)
    regions = propose_regions(processor, images, captions=captions) if regions is None else regions
    sentences = [split_sentences(caption) for caption in captions] if sentences is None else sentences
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
    with eval_mode(model):
        crops = (
            cut_crops(image, [region.box for region in candidates], processor.image_processor)
            for image, candidates in zip(images, regions, strict=True)
        )
        embeds = list(embed_crop_stream(crops, model, processor.image_processor, batch_size))
        texts = embed_texts([s.text for spans in sentences for s in spans], model, processor.tokenizer, batch_size)
    text_embeds = texts.split([len(spans) for spans in sentences])
    return [
        pair_sentences(processor, captions[i], sentences[i], regions[i], images[i].size, text_embeds[i] @ embeds[i].T)
        for i in range(len(images))
    ]


def pair_rows(
    processor: Any,
    images: Sequence[Any],
    captions: Sequence[str],
    model: Any,
    file_names: Sequence[str] | None = None,
    batch_size: int = 64,
) -> list[dict[str, Any]]:
    """See `FastGoalProcessor.pair_rows`."""
    _check_lists(images=images, captions=captions, file_names=file_names)
    names = [_name(image, i) for i, image in enumerate(images)] if file_names is None else file_names
    if not len(images) == len(captions) == len(names):
        got = f"{len(captions)} and {len(names)} for {len(images)} images"
        raise ValueError(f"`pair_rows` needs one caption and one file name per image, got {got}.")
    sentences = [split_sentences(caption) for caption in captions]
    for name, caption, spans in zip(names, captions, sentences, strict=True):
        if not spans:
            raise ValueError(f"{name}: the caption {caption!r} has no sentence. Give it a caption.")
    rows = []
    for start in range(0, len(images), batch_size):
        numbers = range(start, min(start + batch_size, len(images)))
        texts = [captions[i] for i in numbers]
        loaded = [load_image(images[i], names[i]) for i in numbers]
        regions = propose_regions(processor, loaded, captions=texts)
        matched = match(processor, loaded, texts, model, regions, [sentences[i] for i in numbers], batch_size)
        for i, upright, candidates, pairs in zip(numbers, loaded, regions, matched, strict=True):
            row = pair_row(images[i], names[i], captions[i], upright.size, sentences[i], candidates, pairs)
            rows.append(row)
    return rows


def pair_sentences(
    processor: Any,
    caption: str,
    sentences: Sequence[Sentence],
    regions: Sequence[Region],
    image_size: tuple[int, int],
    similarity: torch.Tensor,
) -> list[LocalPair]:
    """See `FastGoalProcessor.pair_sentences`."""
    tokens = processor.sentence_masks(caption, [(s.start, s.end) for s in sentences])
    seen = {(s.start, s.end): bool(mask.any()) for s, mask in zip(sentences, tokens, strict=True)}
    return pair_up(
        sentences,
        regions,
        similarity,
        visible=lambda s, r: seen[s.start, s.end] and bool(processor.region_mask(r.box, image_size).any()),
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
