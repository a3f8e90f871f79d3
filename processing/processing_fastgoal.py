"""The processor: CLIP's inputs for long captions, and FLISM, which finds local pairs in (image, caption)."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, BatchFeature, CLIPProcessor
from transformers.utils import logging

from .geometry import ImageTransform, patch_mask
from .images import load_image
from .matching import LocalPair, cut_crops, embed_crop_stream, embed_texts, eval_mode, pair_up
from .regions import Detector, Region, default_regions, filter_regions, merge_regions, needs_captions
from .sentences import Sentence, split_sentences

logger = logging.get_logger(__name__)

CLIP_TOKENS = 77
LONGEST = 248
MIN_SCORE = 0.25


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
            images: An image or a list of them: PIL images, file names, or whatever CLIP's image processor takes.
                PIL images and files are turned upright by their EXIF orientation first.
            text: A caption or a list of them. Longer ones than the model reads are cut, and one warning per call
                says how many were.
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
        if images is not None:
            images = _readable(images)
        inputs = super().__call__(images=images, text=text, **kwargs)
        if text is not None and kwargs["truncation"]:
            limit = kwargs.get("max_length") or self.tokenizer.model_max_length
            cut = self.count_truncated(text, limit)
            if cut:
                logger.warning(f"{cut} of {len(text)} captions have more than {limit} tokens and were cut there.")
        return inputs

    def count_truncated(self, captions: Sequence[str], max_length: int | None = None) -> int:
        """How many of the captions have more tokens than the model reads (or than `max_length`)."""
        limit = max_length or self.tokenizer.model_max_length
        # A token stands for a character at least, BOS and EOS aside: short captions need no second look.
        candidates = [caption for caption in captions if len(caption.encode()) + 2 > limit]
        if not candidates:
            return 0
        ids = self.tokenizer(candidates, truncation=False, padding=False, verbose=False)["input_ids"]
        return sum(len(row) > limit for row in ids)

    def split_sentences(self, caption: str) -> list[Sentence]:
        """Split a caption into sentences with exact spans; see `processing.sentences`."""
        return split_sentences(caption)

    def propose_regions(
        self,
        images: Sequence[Image.Image],
        boxes: Sequence[Sequence[Region]] | None = None,
        min_score: float | None = None,
        min_area: float = 0.01,
        max_area: float = 0.80,
        captions: Sequence[str] | None = None,
    ) -> list[list[Region]]:
        """Candidate regions of each image: the detector's (or the given ones), filtered, and the five default ones.

        Near-duplicates are merged; the four quadrants and the centre box are always added (FLISM, step 2).

        Args:
            images: PIL images, upright.
            boxes: Regions known already, a list per image; the detector is then not asked.
            min_score: Lowest score of a region; by default the detector's own, or 0.25.
            min_area: Least share of the image's area.
            max_area: Greatest share of the image's area.
            captions: One per image, for a detector that looks for what they name; others do without.

        Returns:
            A list of regions per image: the proposed ones in their order, the five default ones last.

        Raises:
            ValueError: `boxes` does not have one list per image, or captions are needed and missing.
        """
        if boxes is None:
            boxes = self._detect(list(images), captions)
        if len(boxes) != len(images):
            raise ValueError(f"`boxes` must have one list of regions per image, {len(images)}, got {len(boxes)}.")
        if min_score is None:
            min_score = float(getattr(self.detector, "min_score", MIN_SCORE))
        proposals = []
        for image, candidates in zip(images, boxes, strict=True):
            kept = merge_regions(filter_regions(candidates, image.size, min_score, min_area, max_area))
            proposals.append([*kept, *default_regions(image.size)])
        return proposals

    def _detect(self, images: list[Image.Image], captions: Sequence[str] | None) -> Sequence[Sequence[Region]]:
        if self.detector is None:
            return [[] for _ in images]
        if not needs_captions(self.detector):
            return self.detector(images)
        if captions is None:
            raise ValueError(
                f"`captions` must be given: the detector {self.detector.name} looks for what the captions name."
            )
        detector: Any = self.detector
        regions: list[list[Region]] = detector(images, list(captions))
        return regions

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
            ValueError: The arguments differ in length, or an image has no sentence or no region (the message
                gives its index).
        """
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

    def pair_sentences(
        self,
        caption: str,
        sentences: Sequence[Sentence],
        regions: Sequence[Region],
        image_size: tuple[int, int],
        similarity: torch.Tensor,
    ) -> list[LocalPair]:
        """The last step of `match` for one image: each sentence takes its region, and the best visible pair is marked.

        Args:
            caption: The caption.
            sentences: Its sentences.
            regions: The image's candidates.
            image_size: (width, height) of the upright image.
            similarity: Cosines, `(sentences, regions)`.

        Returns:
            One pair per sentence, in order; exactly one is `best`.
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


def _readable(images: Any) -> Any:
    """Images as CLIP's image processor takes them: files opened, PIL images upright and RGB, the rest untouched."""
    if isinstance(images, str | Image.Image):
        return load_image(images)
    if isinstance(images, list | tuple):
        return [load_image(image) if isinstance(image, str | Image.Image) else image for image in images]
    return images


FastGoalProcessor.register_for_auto_class()
