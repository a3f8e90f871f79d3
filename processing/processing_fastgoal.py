"""The processor: CLIP's inputs for long captions, and FLISM, which finds local pairs in (image, caption)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, BatchFeature, CLIPProcessor
from transformers.utils import logging

from .geometry import ImageTransform, patch_mask
from .images import load_image
from .matching import LocalPair, count_longer, cut_crops, embed_crop_stream, embed_texts, eval_mode, pair_row, pair_up
from .regions import LIMITS, Detector, Region, default_regions, filter_regions, find_regions, merge_regions
from .sentences import Sentence, split_sentences

logger = logging.get_logger(__name__)

CLIP_TOKENS = 77
LONGEST = 248


class FastGoalProcessor(CLIPProcessor):
    """CLIP's image processor and tokenizer for long captions, plus FLISM (FAST-GOAL, arXiv 2605.26615).

    Args:
        image_processor: CLIP's image processor.
        tokenizer: CLIP's tokenizer; its `model_max_length` is the longest caption in tokens.
        patch_size: Side of the model's patches in pixels of its input; needed for `region_mask` and `match`.

    Attributes:
        detector: Proposes regions in `propose_regions`; None for the five default regions only. Not saved.
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, patch_size: int | None = None, **kwargs: Any
    ):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.patch_size = patch_size
        self.detector: Detector | None = None

    @classmethod
    def from_clip(cls, name: str, max_text_length: int = LONGEST, **kwargs: Any) -> "FastGoalProcessor":
        """Make the processor of a CLIP checkpoint whose text positions are stretched to `max_text_length`.

        Args:
            name: Hub id or folder of a CLIP checkpoint with its configuration, tokenizer and image processor.
            max_text_length: Tokens a caption may have, from 77 to 248; a checkpoint that reads more than CLIP's
                77 by itself keeps its own length, as in `FastGoalCLIPModel.from_clip`.
            **kwargs: Passed on to `from_pretrained` (`revision`, `token`...).

        Raises:
            ValueError: `max_text_length` is out of range, or the checkpoint is not a CLIP.
        """
        config = AutoConfig.from_pretrained(name, **kwargs)
        if config.model_type != "clip":
            raise ValueError(f"`name` must be a CLIP checkpoint, got {name!r} of model type {config.model_type!r}.")
        positions = config.text_config.max_position_embeddings
        if not CLIP_TOKENS <= max_text_length <= LONGEST and max_text_length != positions:
            raise ValueError(
                f"`max_text_length` must be from {CLIP_TOKENS} to {LONGEST} tokens, got {max_text_length}."
            )
        plain = CLIPProcessor.from_pretrained(name, **kwargs)
        plain.tokenizer.model_max_length = max_text_length if positions == CLIP_TOKENS else positions
        return cls(plain.image_processor, plain.tokenizer, patch_size=config.vision_config.patch_size)

    def to_dict(self) -> dict[str, Any]:
        # A detector belongs to this process. Without our code the folder is CLIP's, for every transformers program.
        detector, self.detector = self.detector, None
        try:
            return {**super().to_dict(), "processor_class": "CLIPProcessor"}
        finally:
            self.detector = detector

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Turn images and captions into CLIP's inputs.

        Args:
            images: An image or a list of them: PIL images and file names, which are turned upright by their EXIF
                orientation first, or whatever CLIP's image processor takes.
            text: A caption or a list of them. Longer ones than the model reads are cut, with one warning per call.
            **kwargs: As for `CLIPProcessor`. `padding=True`, `truncation=True` and `return_tensors="pt"` unless
                given otherwise.

        Returns:
            `pixel_values` `(images, 3, height, width)`, `input_ids` and `attention_mask` `(captions, tokens)`.

        Raises:
            ValueError: An image cannot be read, or neither images nor text are given.
        """
        if images is None and text is None:
            raise ValueError("Either `images` or `text` (or both) must be given, got None for both.")
        kwargs.setdefault("return_tensors", "pt")
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
            kwargs.setdefault("padding", True)
            kwargs.setdefault("truncation", True)
        if isinstance(images, str | Image.Image):
            images = load_image(images)
        elif isinstance(images, list | tuple):
            images = [load_image(image) if isinstance(image, str | Image.Image) else image for image in images]
        inputs = super().__call__(images=images, text=text, **kwargs)
        if text is not None and kwargs["truncation"]:
            limit = kwargs.get("max_length") or self.tokenizer.model_max_length
            cut = self.count_truncated(text, limit)
            if cut:
                logger.warning(f"{cut} of {len(text)} captions have more than {limit} tokens and were cut there.")
        return inputs

    def count_truncated(self, captions: Sequence[str], max_length: int | None = None) -> int:
        """How many of the captions have more tokens than the model reads (or than `max_length`)."""
        return count_longer(captions, self.tokenizer, max_length or self.tokenizer.model_max_length)

    def split_sentences(self, caption: str) -> list[Sentence]:
        """Split a caption into sentences with exact spans; see `processing.sentences`."""
        return split_sentences(caption)

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

        Near-duplicates are merged; the four quadrants and the centre box are always added (FLISM, step 2).

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
            captions: One caption per image.
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
                cut_crops(image, [region.box for region in candidates], self.image_processor)
                for image, candidates in zip(images, regions, strict=True)
            )
            embeds = list(embed_crop_stream(crops, model, self.image_processor, batch_size))
            texts = embed_texts([s.text for spans in sentences for s in spans], model, self.tokenizer, batch_size)
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
            captions: One caption per image.
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
        sentences = [split_sentences(caption) for caption in captions]
        for name, caption, spans in zip(names, captions, sentences, strict=True):
            if not spans:
                raise ValueError(f"{name}: the caption {caption!r} has no sentence. Give it a caption.")
        rows = []
        for start in range(0, len(images), batch_size):
            numbers = range(start, min(start + batch_size, len(images)))
            texts = [captions[i] for i in numbers]
            loaded = [load_image(images[i], names[i]) for i in numbers]
            regions = self.propose_regions(loaded, captions=texts)
            matched = self.match(loaded, texts, model, regions, [sentences[i] for i in numbers], batch_size)
            for i, upright, candidates, pairs in zip(numbers, loaded, regions, matched, strict=True):
                row = pair_row(images[i], names[i], captions[i], upright.size, sentences[i], candidates, pairs)
                rows.append(row)
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

    def region_mask(self, box: Sequence[float], image_size: tuple[int, int]) -> torch.Tensor:
        """Which patches of the model's input a box covers, mapped through this processor's resize and crop.

        Args:
            box: (x1, y1, x2, y2) in pixels of the original upright image.
            image_size: (width, height) of the original upright image.

        Returns:
            `(patches,)` bool, row-major; all False if the box falls outside the crop.

        Raises:
            ValueError: The processor does not know the model's patch size.
        """
        if self.patch_size is None:
            raise ValueError(
                "`patch_size` is None: this folder holds a plain CLIP processor. Load it with "
                "`FastGoalProcessor.from_clip(name)`, or set `processor.patch_size`."
            )
        return patch_mask(box, ImageTransform.of(self.image_processor, image_size), self.patch_size)

    def sentence_mask(self, caption: str, start: int, end: int) -> torch.Tensor:
        """Which tokens of a caption belong to the sentence `caption[start:end]`.

        Returns:
            `(tokens,)` bool, aligned with the caption's ids as this processor makes them: BOS first, EOS last, cut
            at the model's length, unpadded (padding comes after). All False if truncation cut the sentence off.

        Raises:
            ValueError: `start` and `end` are not a span of the caption.
        """
        return self.sentence_masks(caption, [(start, end)])[0]

    def sentence_masks(self, caption: str, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """`sentence_mask` for several spans of one caption, tokenised once: `(spans, tokens)` bool."""
        for start, end in spans:
            if not 0 <= start < end <= len(caption):
                raise ValueError(
                    f"`start` and `end` must be a span of the caption's {len(caption)} characters, got {start}, {end}."
                )
        encoded = self.tokenizer(caption, truncation=True, return_offsets_mapping=True, return_special_tokens_mask=True)
        offsets = torch.tensor(encoded["offset_mapping"])  # (tokens, 2), characters
        word = ~torch.tensor(encoded["special_tokens_mask"], dtype=torch.bool)
        bounds = torch.tensor(spans).reshape(-1, 2)
        overlap = (offsets[:, 0] < bounds[:, 1:]) & (offsets[:, 1] > bounds[:, :1])
        return overlap & word


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


FastGoalProcessor.register_for_auto_class()
