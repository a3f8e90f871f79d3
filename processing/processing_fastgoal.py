"""The processor: CLIP's inputs for long captions, masks of regions and sentences, and FLISM, which finds local pairs.

This file travels with a checkpoint. FLISM does not: where the package is missing, its methods say so.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, BatchFeature, CLIPProcessor
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import logging

from .geometry import ImageTransform, patch_mask
from .images import load_image
from .texts import check_texts

try:
    from fastgoal.processing.flism import Flism
except ImportError:  # a saved folder, which has all that the model's inputs need

    class Flism:  # type: ignore[no-redef]
        def _missing(self, *args: Any, **kwargs: Any) -> Any:
            raise ImportError(
                "Sentences, regions and their pairs are found by the package fastgoal: pip install fastgoal"
            )

        split_sentences = propose_regions = match = pair_rows = pair_sentences = _missing


logger = logging.get_logger(__name__)

CLIP_TOKENS = 77
LONGEST = 248
_LOADED = (str, os.PathLike, Image.Image)


class FastGoalProcessor(Flism, CLIPProcessor):
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
        self.detector = None
        if tokenizer is not None:
            # A caption that holds the characters of `<|endoftext|>` does not end there.
            tokenizer.split_special_tokens = True

    @classmethod
    def from_clip(cls, name: str, max_text_length: int = LONGEST, **kwargs: Any) -> "FastGoalProcessor":
        """Make the processor of a CLIP checkpoint whose text positions are stretched to `max_text_length`.

        Args:
            name: Hub id or folder of a CLIP checkpoint with its configuration, tokenizer and image processor.
            max_text_length: Tokens a caption may have, from 77 to 248; a checkpoint that does not read CLIP's 77 keeps
                its own length. (`FastGoalCLIPModel.from_clip` refuses one that reads less than is asked for.)
            **kwargs: Passed on to `from_pretrained` (`revision`, `token`...).

        Raises:
            ValueError: `max_text_length` is out of range, or the checkpoint is not a CLIP or has no tokens.
        """
        kwargs = {"trust_remote_code": False, **kwargs}  # or transformers may ask on standard input
        config = AutoConfig.from_pretrained(name, **kwargs)
        if config.model_type != "clip":
            raise ValueError(f"`name` must be a CLIP checkpoint, got {name!r} of model type {config.model_type!r}.")
        positions = config.text_config.max_position_embeddings
        if not CLIP_TOKENS <= max_text_length <= LONGEST and max_text_length != positions:
            raise ValueError(
                f"`max_text_length` must be from {CLIP_TOKENS} to {LONGEST} tokens, got {max_text_length}."
            )
        plain = CLIPProcessor.from_pretrained(name, **kwargs)
        require_tokens(plain.tokenizer)
        plain.tokenizer.model_max_length = max_text_length if positions == CLIP_TOKENS else positions
        return cls(plain.image_processor, plain.tokenizer, patch_size=config.vision_config.patch_size)

    def to_dict(self) -> dict[str, Any]:
        # A detector belongs to this process. Without our code the folder is CLIP's, for every transformers program.
        detector, self.detector = self.detector, None
        auto_map = {"AutoProcessor": f"processing_fastgoal.{type(self).__name__}"}  # also once it is loaded again
        try:
            return {**super().to_dict(), "processor_class": "CLIPProcessor", "auto_map": auto_map}
        finally:
            self.detector = detector

    def _merge_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers does it, with our defaults behind all that the call, or the tokenizer's files, say."""
        merged = super()._merge_kwargs(*args, **kwargs)
        for name in ("text_kwargs", "images_kwargs"):
            merged[name].setdefault("return_tensors", "pt")
        merged["text_kwargs"] = {"padding": True, "truncation": True, **merged["text_kwargs"]}
        return merged

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Unpack[ProcessingKwargs]
    ) -> BatchFeature:
        """Turn images and captions into CLIP's inputs.

        Args:
            images: An image or a list of them: PIL images and file names, which are turned upright by their EXIF
                orientation first, or whatever CLIP's image processor takes.
            text: A caption or a list of them. Longer ones than the model reads are cut, with one warning per call.
            **kwargs: As for `CLIPProcessor`, nested (`text_kwargs`, `images_kwargs`, `common_kwargs`) or not.
                `padding=True`, `truncation=True` and `return_tensors="pt"` unless given otherwise, here or when the
                tokenizer was loaded.

        Returns:
            `pixel_values` `(images, 3, height, width)`, `input_ids` and `attention_mask` `(captions, tokens)`.

        Raises:
            ValueError: An image cannot be read, a text is no valid Unicode, or neither images nor text are given.
        """
        if images is None and text is None:
            raise ValueError("Either `images` or `text` (or both) must be given, got None for both.")
        if text is not None:
            text = text if isinstance(text, str) else list(text)
            captions = [text] if isinstance(text, str) else text
            check_texts(captions)
        if isinstance(images, _LOADED):
            images = load_image(images)
        elif isinstance(images, list | tuple):
            images = [load_image(image) if isinstance(image, _LOADED) else image for image in images]
        inputs = super().__call__(images=images, text=text, **kwargs)
        if text is not None:
            options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)["text_kwargs"]
            limit = options.get("max_length") or self.tokenizer.model_max_length
            is_cut = options["truncation"] not in (False, None, TruncationStrategy.DO_NOT_TRUNCATE)
            if is_cut and (cut := self.count_truncated(captions, limit)):
                logger.warning(f"{cut} of {len(captions)} captions have more than {limit} tokens and were cut there.")
        return inputs

    def count_truncated(self, captions: Sequence[str], max_length: int | None = None) -> int:
        """How many of the captions have more tokens than the model reads (or than `max_length`)."""
        return count_longer(captions, self.tokenizer, max_length or self.tokenizer.model_max_length)

    def region_mask(self, box: Sequence[float], image_size: tuple[int, int]) -> torch.Tensor:
        """Which patches of the model's input a box covers, mapped through this processor's resize and crop.

        Args:
            box: (x1, y1, x2, y2) in pixels of the original upright image.
            image_size: (width, height) of that image.

        Returns:
            `(patches,)` bool, row-major; all False if the box falls outside the crop.

        Raises:
            ValueError: The processor does not know the model's patch size.
        """
        return patch_mask(box, ImageTransform.of(self.image_processor, image_size), self.require_patch_size())

    def require_patch_size(self) -> int:
        """`patch_size`, or a `ValueError` that says how to set it."""
        if self.patch_size is None:
            raise ValueError(
                "`patch_size` is None: this folder holds a plain CLIP processor. Load it with "
                "`FastGoalProcessor.from_clip(name)`, or set `processor.patch_size`."
            )
        return self.patch_size

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
        encoded = self.tokenizer(caption, truncation=True, return_offsets_mapping=True, return_special_tokens_mask=True)
        return span_masks(
            caption, spans, torch.tensor(encoded["offset_mapping"]), torch.tensor(encoded["special_tokens_mask"])
        )


def span_masks(
    caption: str, spans: Sequence[tuple[int, int]], offsets: torch.Tensor, special: torch.Tensor
) -> torch.Tensor:
    """Which tokens of a caption lie in which of its spans, `(spans, tokens)` bool.

    Args:
        caption: The text.
        spans: (start, end) in characters.
        offsets: `(tokens, 2)`, where each token stands in the text.
        special: `(tokens,)`, 1 for BOS, EOS and padding.

    Raises:
        ValueError: A span does not lie in the caption.
    """
    for start, end in spans:
        if not 0 <= start < end <= len(caption):
            raise ValueError(
                f"`start` and `end` must be a span of the caption's {len(caption)} characters, got {start}, {end}."
            )
    bounds = torch.tensor(spans).reshape(-1, 2)
    return (offsets[:, 0] < bounds[:, 1:]) & (offsets[:, 1] > bounds[:, :1]) & (special == 0)


def require_tokens(tokenizer: Any) -> None:
    """Raise `ValueError` for a tokenizer without tokens, as transformers makes where their files are missing."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError("there are no tokens: tokenizer.json, or vocab.json and merges.txt, is missing.")


def count_longer(texts: Sequence[str], tokenizer: Any, limit: int) -> int:
    """How many texts have more than `limit` tokens."""
    # A token stands for a byte at least, BOS and EOS aside: short texts need no second look.
    candidates = [text for text in texts if len(text.encode()) + 2 > limit]
    if not candidates:
        return 0
    ids = tokenizer(candidates, truncation=False, padding=False, verbose=False)["input_ids"]
    return sum(len(row) > limit for row in ids)


FastGoalProcessor.register_for_auto_class()
