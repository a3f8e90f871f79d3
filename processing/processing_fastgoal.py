"""The processor: inputs for long captions, masks of regions and sentences, and FLISM, which finds local pairs.

This file travels with a checkpoint. FLISM does not: where the package is missing, its methods say so.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, BatchFeature, CLIPProcessor, SiglipProcessor
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import logging

from .geometry import ImageTransform, patch_mask
from .images import load_image
from .texts import check_texts
from .tokens import count_truncated, padding_of, require_tokens, span_masks, tokens_with_spans

try:
    from fastgoal.modeling_fastgoal.families_fastgoal import family_of
    from fastgoal.modeling_fastgoal.positions_fastgoal import target_length
    from fastgoal.processing.flism import Flism
except ImportError:  # a saved folder, which has all that the model's inputs need

    def _missing(*args: Any, **kwargs: Any) -> Any:
        raise ImportError(
            "Sentences, regions, their pairs, and processors for other checkpoints are made by the package fastgoal: "
            "pip install fastgoal"
        )

    family_of = target_length = _missing

    class Flism:  # type: ignore[no-redef]
        split_sentences = propose_regions = match = pair_rows = pair_sentences = _missing


logger = logging.get_logger(__name__)

_LOADED = (str, os.PathLike, Image.Image)


class FastGoalProcessor(Flism, CLIPProcessor):
    """A model's image processor and tokenizer for long captions, plus FLISM (FAST-GOAL, arXiv 2605.26615).

    Of SigLIP all texts are padded to the longest caption, and have no mask, as its processor's documentation asks for.

    Args:
        image_processor: CLIP's or SigLIP's image processor.
        tokenizer: The tokenizer; its `model_max_length` is the longest caption in tokens.
        patch_size: Side of the model's patches in pixels of its input; needed for `region_mask` and `match`.
        language: Of the captions that are split into sentences, by its code.

    Attributes:
        detector: Proposes regions in `propose_regions`; None for the five default regions only. Not saved.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        language: str = "en",
        **kwargs: Any,
    ):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.patch_size = patch_size
        self.language = language
        self.detector = None
        if tokenizer is not None:
            # A caption that holds the characters of `<|endoftext|>` does not end there.
            tokenizer.split_special_tokens = True
            if self.plain_class is SiglipProcessor:
                tokenizer.model_input_names = ["input_ids"]
                tokenizer.padding_side = "right"

    @classmethod
    def from_base(cls, name: str, max_text_length: int | None = None, **kwargs: Any) -> "FastGoalProcessor":
        """Make the processor of a checkpoint whose text positions are stretched to `max_text_length`.

        Args:
            name: Hub id or folder of a checkpoint with its configuration, tokenizer and image processor.
            max_text_length: Text length in tokens, as for `FastGoalModel.from_base`; a checkpoint whose length differs
                from its family's keeps its own.
            **kwargs: Passed on to `from_pretrained` (`revision`, `token`...).

        Raises:
            ValueError: `max_text_length` is out of range, the checkpoint is of no family that is known here, has no
                tokens, or has the processor of another family.
            ImportError: Its tokenizer needs a package that is not installed.
        """
        kwargs = {"trust_remote_code": False, **kwargs}  # or transformers may ask on standard input
        config = AutoConfig.from_pretrained(name, **kwargs)
        family = family_of(config, repr(name))
        positions = config.text_config.max_position_embeddings
        length = family.longest if max_text_length is None else max_text_length
        if positions == family.positions or not family.positions <= length <= family.longest:
            positions = target_length(positions, length, family)
        plain_class = {kind.__name__: kind for kind in (CLIPProcessor, SiglipProcessor)}[family.processor]
        plain = plain_class.from_pretrained(name, **kwargs)
        require_tokens(plain.tokenizer)
        plain.tokenizer.model_max_length = positions
        processor = cls(plain.image_processor, plain.tokenizer, patch_size=config.vision_config.patch_size)
        processor.require_family(family)
        return processor

    def require_family(self, family: Any) -> None:
        """Raise `ValueError` where the model is of a family that another processor belongs to."""
        if self.plain_class.__name__ != family.processor:
            raise ValueError(
                f"the model is a {family.label}, and its image processor a {type(self.image_processor).__name__}: put "
                f"the files of a {family.processor} beside the model."
            )

    @property
    def plain_class(self) -> type[CLIPProcessor] | type[SiglipProcessor]:
        """The class of transformers that this one is saved as: by the image processor, CLIP's or SigLIP's."""
        return SiglipProcessor if type(self.image_processor).__name__.startswith("Siglip") else CLIPProcessor

    def to_dict(self) -> dict[str, Any]:
        # A detector belongs to this process. Without our code the folder is the base's, for every transformers program.
        detector, self.detector = self.detector, None
        auto_map = {"AutoProcessor": f"processing_fastgoal.{type(self).__name__}"}  # also once it is loaded again
        try:
            return {**super().to_dict(), "processor_class": self.plain_class.__name__, "auto_map": auto_map}
        finally:
            self.detector = detector

    def _merge_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers does it, with our defaults behind all that the call, or the tokenizer's files, say."""
        merged = super()._merge_kwargs(*args, **kwargs)
        for name in ("text_kwargs", "images_kwargs"):
            merged[name].setdefault("return_tensors", "pt")
        defaults = {"padding": padding_of(self.tokenizer), "truncation": True}
        merged["text_kwargs"] = {**defaults, **merged["text_kwargs"]}
        return merged

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Unpack[ProcessingKwargs]
    ) -> BatchFeature:
        """Turn images and captions into the model's inputs.

        Args:
            images: An image or a list of them: PIL images and file names, which are turned upright by their EXIF
                orientation first, or whatever the image processor takes.
            text: A caption or a list of them. Longer ones than the model reads are cut, with one warning per call.
            **kwargs: As for `CLIPProcessor`, nested (`text_kwargs`, `images_kwargs`, `common_kwargs`) or not.
                `padding=True` (of SigLIP "max_length"), `truncation=True` and `return_tensors="pt"` unless given
                otherwise, here or when the tokenizer was loaded.

        Returns:
            `pixel_values` `(images, 3, height, width)`, `input_ids` and, but of SigLIP, `attention_mask`
            `(captions, tokens)`.

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
            # The first argument is transformers 5.17's.
            init = {"tokenizer_init_kwargs": self.tokenizer.init_kwargs}
            options = self._merge_kwargs(self.valid_processor_kwargs, **init, **kwargs)["text_kwargs"]
            limit = options.get("max_length") or self.tokenizer.model_max_length
            is_cut = options["truncation"] not in (False, None, TruncationStrategy.DO_NOT_TRUNCATE)
            if is_cut and (cut := self.count_truncated(captions, limit)):
                logger.warning(f"{cut} of {len(captions)} captions have more than {limit} tokens and were cut there.")
        return inputs

    def count_truncated(self, captions: Sequence[str], max_length: int | None = None) -> int:
        """How many of the captions have more tokens than the model reads (or than `max_length`)."""
        return count_truncated(captions, self.tokenizer, max_length or self.tokenizer.model_max_length)

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
                "`patch_size` is None: this folder holds a plain processor. Load it with "
                "`FastGoalProcessor.from_base(name)`, or set `processor.patch_size`."
            )
        return self.patch_size

    def sentence_mask(self, caption: str, start: int, end: int) -> torch.Tensor:
        """Which tokens of a caption belong to the sentence `caption[start:end]`.

        Returns:
            `(tokens,)` bool, aligned with the caption's ids as this processor makes them: BOS first (but of SigLIP),
            EOS last, cut at the model's length, unpadded (padding comes after). All False if truncation cut the
            sentence off.

        Raises:
            ValueError: `start` and `end` are not a span of the caption, or the tokenizer cannot tell.
        """
        return self.sentence_masks(caption, [(start, end)])[0]

    def sentence_masks(self, caption: str, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """`sentence_mask` for several spans of one caption, tokenized once: `(spans, tokens)` bool."""
        encoded = tokens_with_spans(self.tokenizer, [caption])
        offsets, special = encoded["offset_mapping"][0], encoded["special_tokens_mask"][0]
        return span_masks(caption, spans, torch.tensor(offsets), torch.tensor(special))


FastGoalProcessor.register_for_auto_class()
