"""The processor: inputs for long captions, masks of regions and sentences, and FLISM, which finds local pairs.

This file is saved with every checkpoint. FLISM is not: without the package, its methods raise an error that says so.
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
from transformers.utils.versions import require_version

from .geometry import ImageTransform, patch_mask
from .images import load_image
from .texts import check_texts
from .tokens import (
    count_truncated,
    padding_of,
    require_tokens,
    save_vocabulary,
    set_text_length,
    span_masks,
    tokens_with_spans,
)

try:
    from fastgoal.modeling_fastgoal.families_fastgoal import family_of
    from fastgoal.modeling_fastgoal.positions_fastgoal import target_length
    from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
    from fastgoal.processing.flism import Flism
except ImportError:  # in a saved folder, without the package

    def _missing(*args: Any, **kwargs: Any) -> Any:
        raise ImportError("This needs the package fastgoal, which finds local pairs: pip install fastgoal")

    family_of = target_length = text_positions = _missing

    class Flism:  # type: ignore[no-redef]
        split_sentences = propose_regions = match = pair_rows = _missing


# A saved folder may be loaded with any version.
require_version("transformers>=5.17", "Load the folder without `trust_remote_code`: as a plain processor it works.")
logger = logging.get_logger(__name__)

_LOADED = (str, os.PathLike, Image.Image)


class FastGoalProcessor(CLIPProcessor, Flism):
    """The image processor and tokenizer of a model for long captions, and FLISM (FAST-GOAL, arXiv 2605.26615).

    >>> processor = FastGoalProcessor.from_base("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> inputs = processor(images="dog.jpg", text="A brown dog. A red ball lies next to it.")  # doctest: +SKIP

    For SigLIP all texts are padded to the longest caption and have no attention mask, as its documentation requires.

    Args:
        image_processor: Image processor of CLIP or SigLIP.
        tokenizer: Tokenizer; its `model_max_length` is the largest number of tokens of a caption.
        patch_size: Side of a patch of the model in pixels; required for `region_mask` and `match`.
        language: Language code of the captions, such as `de`; it determines how they are split into sentences.

    Attributes:
        detector: Detector for `propose_regions`; None for the five default regions only. It is not saved.
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
            # The characters of `<|endoftext|>` in a caption do not end it.
            tokenizer.split_special_tokens = True
            if self.plain_class is SiglipProcessor:
                tokenizer.model_input_names = ["input_ids"]
                tokenizer.padding_side = "right"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load a processor as transformers does, without the `max_length` and `padding` of calls before it was saved.

        Args:
            pretrained_model_name_or_path: Hub id or folder.
            *args, **kwargs: As for `ProcessorMixin.from_pretrained`; options for the tokenizer are kept.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        loaded = processor[0] if isinstance(processor, tuple) else processor  # with `return_unused_kwargs`
        set_text_length(loaded.tokenizer, loaded.tokenizer.model_max_length, keep=kwargs)
        return processor

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Save the processor as transformers does, without the `max_length` and `padding` of earlier calls.

        Programs that do not know `processor_config.json` and `tokenizer.json` find `preprocessor_config.json` and the
        files of the tokenizer's vocabulary.
        """
        if self.tokenizer is not None:
            set_text_length(self.tokenizer, self.tokenizer.model_max_length)
        files = super().save_pretrained(save_directory, *args, **kwargs)
        if self.image_processor is not None:
            vars(self.image_processor).pop("auto_map", None)  # saving the processor added it
            self.image_processor.save_pretrained(save_directory)
        if self.tokenizer is not None:
            save_vocabulary(self.tokenizer, save_directory)
        return files

    @classmethod
    def from_base(cls, name: str, max_text_length: int | None = None, **kwargs: Any) -> "FastGoalProcessor":
        """Load the processor of a checkpoint, and set its text length to `max_text_length`.

        Args:
            name: Hub id or folder of a checkpoint with its configuration, tokenizer and image processor.
            max_text_length: Number of tokens, as for `FastGoalModel.from_base`.
            **kwargs: Passed to `from_pretrained` (`revision`, `token`...).

        Raises:
            ValueError: The checkpoint's family is not supported, it cannot be stretched to `max_text_length`, its
                tokenizer has no tokens, or its processor belongs to another family.
            ImportError: The tokenizer needs a package that is not installed.
        """
        kwargs = {"trust_remote_code": False, **kwargs}  # transformers would ask on standard input
        config = AutoConfig.from_pretrained(name, **kwargs)
        family = family_of(config, repr(name))
        length = target_length(text_positions(config), max_text_length, family)
        plain_class = {plain.__name__: plain for plain in (CLIPProcessor, SiglipProcessor)}[family.processor]
        plain = plain_class.from_pretrained(name, **kwargs)
        require_tokens(plain.tokenizer)
        set_text_length(plain.tokenizer, length)
        processor = cls(plain.image_processor, plain.tokenizer, patch_size=config.vision_config.patch_size)
        processor.require_model(config)
        return processor

    def require_model(self, config: Any) -> None:
        """Raise `ValueError` unless this processor fits a model: its family, and the size of its vocabulary.

        Args:
            config: Configuration of the model.
        """
        family, vocabulary = family_of(config), config.text_config.vocab_size
        if self.plain_class.__name__ != family.processor:
            raise ValueError(
                f"the model is a {family.label}, and its image processor is a {type(self.image_processor).__name__}: "
                f"the folder needs the files of a {family.processor}."
            )
        # A table of embeddings may be padded to a multiple of 64.
        if not (tokens := len(self.tokenizer)) <= vocabulary < tokens + 64:
            raise ValueError(
                f"the tokenizer has {tokens} tokens, and the model has embeddings for {vocabulary}. Use the files of "
                "the model's own tokenizer."
            )

    @property
    def plain_class(self) -> type[CLIPProcessor] | type[SiglipProcessor]:
        """The class of transformers that this processor is saved as. The type of its image processor determines it."""
        return SiglipProcessor if type(self.image_processor).__name__.startswith("Siglip") else CLIPProcessor

    def to_dict(self) -> dict[str, Any]:
        # The detector is not saved. Programs that do not trust remote code load the plain class.
        detector, self.detector = self.detector, None
        auto_map = {"AutoProcessor": f"processing_fastgoal.{type(self).__name__}"}
        try:
            settings = super().to_dict()
            settings.get("image_processor", {}).pop("auto_map", None)  # it names no class of an image processor
            return {**settings, "processor_class": self.plain_class.__name__, "auto_map": auto_map}
        finally:
            self.detector = detector

    def _merge_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Merge as transformers does, with our defaults for what neither the call nor the tokenizer's files set."""
        merged = super()._merge_kwargs(*args, **kwargs)
        for name in ("text_kwargs", "images_kwargs"):
            merged[name].setdefault("return_tensors", "pt")
        defaults = {"padding": padding_of(self.tokenizer), "truncation": True}
        merged["text_kwargs"] = {**defaults, **merged["text_kwargs"]}
        return merged

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Unpack[ProcessingKwargs]
    ) -> BatchFeature:
        """Prepare images and captions for the model.

        Args:
            images: An image or a list of images: PIL images and paths, which are turned upright by their EXIF
                orientation, or anything that the image processor accepts.
            text: A caption or a list of captions. Captions that are too long are truncated, with one warning per call.
            **kwargs: As for `CLIPProcessor`, nested (`text_kwargs`, `images_kwargs`, `common_kwargs`) or flat. The
                defaults, unless the tokenizer was loaded with others, are `padding=True` ("max_length" for SigLIP),
                `truncation=True` and `return_tensors="pt"`.

        Returns:
            `pixel_values` `(images, 3, height, width)`, `input_ids` and, except for SigLIP, `attention_mask`
            `(captions, tokens)`.

        Raises:
            ValueError: An image cannot be read, a text is not valid Unicode, or neither images nor text are given.
        """
        if images is None and text is None:
            raise ValueError("`images` or `text` must be given, got None for both.")
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
            # The argument `tokenizer_init_kwargs` is for transformers 5.17.
            init = {"tokenizer_init_kwargs": self.tokenizer.init_kwargs}
            options = self._merge_kwargs(self.valid_processor_kwargs, **init, **kwargs)["text_kwargs"]
            limit = options.get("max_length") or self.tokenizer.model_max_length
            is_cut = options["truncation"] not in (False, None, TruncationStrategy.DO_NOT_TRUNCATE)
            if is_cut and (cut := count_truncated(captions, self.tokenizer, limit)):
                logger.warning(f"{cut} of {len(captions)} captions have more than {limit} tokens and were truncated.")
        return inputs

    def region_mask(self, box: Sequence[float], image_size: tuple[int, int]) -> torch.Tensor:
        """Return which patches of the model's input a box covers, after the resize and crop of this processor.

        Args:
            box: (x1, y1, x2, y2) in pixels of the original upright image.
            image_size: (width, height) of that image.

        Returns:
            `(patches,)` bool, row-major; all False if the box is outside the crop.

        Raises:
            ValueError: `patch_size` is not set.
        """
        return patch_mask(box, ImageTransform.of(self.image_processor, image_size), self.require_patch_size())

    def require_patch_size(self) -> int:
        """Return `patch_size`. Raise `ValueError` if it is not set."""
        if self.patch_size is None:
            raise ValueError(
                "`patch_size` must be set, got None: the folder has a plain processor. Load it with "
                "`FastGoalProcessor.from_base(name)`, or set `processor.patch_size`."
            )
        return self.patch_size

    def sentence_mask(self, caption: str, start: int, end: int) -> torch.Tensor:
        """Return which tokens of a caption belong to the sentence `caption[start:end]`.

        Returns:
            `(tokens,)` bool for the ids that this processor gives for the caption, truncated but not padded: BOS first
            (except for SigLIP), EOS last. All False if the sentence was truncated away.

        Raises:
            ValueError: `start` and `end` are not a span of the caption, or the tokenizer does not know the spans of its
                tokens.
        """
        return self.sentence_masks(caption, [(start, end)])[0]

    def sentence_masks(self, caption: str, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return `sentence_mask` for several spans of one caption, `(spans, tokens)` bool."""
        encoded = tokens_with_spans(self.tokenizer, [caption])
        offsets, special = encoded["offset_mapping"][0], encoded["special_tokens_mask"][0]
        return span_masks(caption, spans, torch.tensor(offsets), torch.tensor(special))


FastGoalProcessor.register_for_auto_class()
