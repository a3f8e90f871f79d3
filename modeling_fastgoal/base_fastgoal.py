"""The base class of the FAST-GOAL models: long captions and token similarity learning (arXiv 2605.26615)."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple, logging

from .families_fastgoal import family_of
from .loading_fastgoal import load_whole, read_config
from .losses_fastgoal import FastGoalLosses, fast_goal_loss, loss_rows
from .positions_fastgoal import stretch_positions, target_length
from .towers_fastgoal import (
    TEXT_POSITIONS,
    caption_words,
    cut_texts,
    is_sigmoid,
    logit_bias,
    patch_embeds,
    pool_patches,
    pool_text,
    record_tokens,
    recorded_tokens,
    text_positions,
    token_embeds,
)

logger = logging.get_logger(__name__)


@dataclass
class FastGoalOutput(FastGoalLosses):
    """Output of a FAST-GOAL model. Fields that the arguments did not request are None.

    With `return_loss=True` it also has the losses, the fields of `FastGoalLosses`.

    Attributes:
        logits_per_image: Scaled cosine similarities, `(images, captions)`.
        logits_per_text: Scaled cosine similarities, `(captions, images)`.
        image_embeds: Normalized embeddings of the images, `(images, dim)`.
        text_embeds: Normalized embeddings of the captions, `(captions, dim)`.
        local_image_embeds: Normalized embeddings of the region crops, `(batch, dim)`.
        local_text_embeds: Normalized embeddings of the sentences, `(batch, dim)`.
        short_text_embeds: Normalized embeddings of the short captions, `(batch, dim)`.
        region_embeds: Normalized embeddings of the patches in `region_mask`, pooled, `(batch, dim)`; a row of zeros
            where the mask is empty.
        sentence_embeds: Normalized embeddings of the tokens in `sentence_mask`, pooled, `(batch, dim)`; a row of zeros
            where the mask is empty.
        patch_embeds: Every patch of the images after the final norm and the projection, not normalized,
            `(images, patches, dim)`; only with `return_token_embeds=True`, like the next two.
        token_embeds: Every token of the captions after the final norm and the projection, not normalized,
            `(captions, tokens, dim)`.
        word_mask: Which of these tokens are words (not BOS, EOS or padding), `(captions, tokens)` bool.
        logit_scale: Factor of the logits, scalar.
        logit_bias: Bias of the logits, scalar; only for SigLIP.
        text_model_output: Output of the text tower for the captions.
        vision_model_output: Output of the image tower for the images.
    """

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    local_image_embeds: torch.Tensor | None = None
    local_text_embeds: torch.Tensor | None = None
    short_text_embeds: torch.Tensor | None = None
    region_embeds: torch.Tensor | None = None
    sentence_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    token_embeds: torch.Tensor | None = None
    word_mask: torch.Tensor | None = None
    logit_scale: torch.Tensor | None = None
    logit_bias: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


_Base: Any = CLIPModel if TYPE_CHECKING else object
_Model = TypeVar("_Model", bound="FastGoalModel")


class FastGoalModel(_Base):
    """A dual encoder that reads long captions and computes the losses of FAST-GOAL over global and local pairs.

    Each model family has a subclass. `from_base` and `from_pretrained` choose it by the checkpoint's configuration:

    >>> model = FastGoalModel.from_base("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> type(model).__name__, model.config.text_config.max_position_embeddings  # doctest: +SKIP
    ('FastGoalCLIPModel', 248)
    """

    stretched_from: int | None = None
    """Number of text positions before `from_base` stretched them; None if it did not."""

    # A Trainer would take the **kwargs of the forward to mean that the loss is already scaled for accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: Any):
        super().__init__(config)
        record_tokens(self)

    @classmethod
    def class_for(cls, config: Any) -> "type[FastGoalModel]":
        """Return the FAST-GOAL class of a configuration's family, such as `FastGoalCLIPModel` for CLIP.

        Raises:
            ValueError: The family is not supported.
        """
        model_type = family_of(config).model_type
        return next(model for model in FastGoalModel.__subclasses__() if model.config_class.model_type == model_type)

    @classmethod
    def from_pretrained(
        cls: type[_Model], pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> _Model:
        """Load a saved model. On `FastGoalModel` itself, the configuration of the checkpoint determines the class.

        >>> model = FastGoalModel.from_pretrained("OWNER/NAME")  # doctest: +SKIP

        Args:
            pretrained_model_name_or_path: Hub id or folder.
            *model_args: As for `PreTrainedModel.from_pretrained`.
            **kwargs: As for `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: The family of the checkpoint is not supported, or it is an adapter.
        """
        name: Any = pretrained_model_name_or_path
        config = None if name is None else read_config(name, kwargs)
        model_class: Any = cls.class_for(config) if cls is FastGoalModel else super()
        return cast(_Model, model_class.from_pretrained(name, *model_args, **kwargs))

    @classmethod
    def from_base(
        cls: type[_Model],
        name_or_model: str | os.PathLike[str] | PreTrainedModel,
        max_text_length: int | None = None,
        **kwargs: Any,
    ) -> _Model:
        """Create a FAST-GOAL model from a base checkpoint, and stretch its text positions as Long-CLIP does.

        On `FastGoalModel` itself, the configuration of the checkpoint determines the class. Train a stretched model
        before you use it: it is worse than its base at first.

        >>> model = FastGoalModel.from_base("google/siglip2-base-patch16-224", max_text_length=256)  # doctest: +SKIP

        Args:
            name_or_model: Hub id or folder of a checkpoint, or a model of transformers (which is not changed).
            max_text_length: Number of tokens that the model reads, from those of the checkpoint to 1,024. By default
                248 (SigLIP: 256) for a published checkpoint; one that was stretched before keeps its length.
            **kwargs: Passed to `from_pretrained` (`dtype`, `revision`, `token`...).

        Returns:
            The model in eval mode, on the device and in the dtype of the source.

        Raises:
            ValueError: The checkpoint belongs to another family, cannot be stretched to `max_text_length`, or does not
                have all weights.
        """
        is_model = isinstance(name_or_model, PreTrainedModel)
        if is_model and kwargs:
            raise ValueError(f"`name_or_model` must be a Hub id or folder with {sorted(kwargs)}, got a model.")
        base: Any = name_or_model
        name = type(base).__name__ if is_model else repr(os.fspath(base))
        config = base.config if is_model else read_config(base, kwargs)
        family = family_of(config, name)
        if cls is FastGoalModel:
            return cast(_Model, cls.class_for(config).from_base(name_or_model, max_text_length, **kwargs))
        if not issubclass(cls, cls.class_for(config)):
            raise ValueError(f"{name} is a {family.label}: use {cls.class_for(config).__name__}, not {cls.__name__}.")
        if not is_model:
            base = load_whole(cls.__bases__[-1], base, **kwargs)
        positions = text_positions(base)
        target = target_length(positions, max_text_length, family)

        settings = base.config.to_dict()
        for key in ("architectures", "auto_map", "model_type", "transformers_version", "dtype"):
            settings.pop(key, None)
        settings["text_config"]["max_position_embeddings"] = target
        model = cast(Any, cls(cls.config_class(**settings)))
        state = {key: tensor.detach().clone() for key, tensor in base.state_dict().items()}
        if target != positions:
            state[TEXT_POSITIONS] = stretch_positions(state[TEXT_POSITIONS], target, family)
            model.stretched_from = positions
        model.load_state_dict(state)
        model.to(device=base.device, dtype=base.dtype)
        model.set_attn_implementation(base.config._attn_implementation)
        model.config.dtype = base.config.dtype
        model.name_or_path = base.name_or_path
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding of the text tower."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the text tower."""
        self.text_model.set_input_embeddings(value)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model as `PreTrainedModel.save_pretrained` does, for pipelines with `trust_remote_code=True` too."""
        # `register_for_auto_class` adds one name, and a pipeline looks for another.
        auto_map = getattr(self.config, "auto_map", None) or {}
        name = f"modeling_fastgoal.{type(self).__name__}"
        self.config.auto_map = {**auto_map, "AutoModelForZeroShotImageClassification": name}
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        """Embed texts as the base does, and truncate those that are too long, as the tokenizer would have done.

        Pipelines do not truncate, and a plain model raises an error for such a text.
        """
        limit = text_positions(self)
        if input_ids.shape[1] > limit:
            input_ids = cut_texts(input_ids, self)
            attention_mask = None if attention_mask is None else attention_mask[:, :limit]
            position_ids = None if position_ids is None else position_ids[:, :limit]
            logger.warning_once(f"Some texts have more than {limit} tokens and were truncated.")
        return super().get_text_features(input_ids, attention_mask, position_ids, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        local_input_ids: torch.LongTensor | None = None,
        local_pixel_values: torch.Tensor | None = None,
        local_attention_mask: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        sentence_mask: torch.Tensor | None = None,
        image_groups: torch.Tensor | None = None,
        short_input_ids: torch.LongTensor | None = None,
        short_attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_token_embeds: bool = False,
        **kwargs: Any,
    ) -> FastGoalOutput:
        """Embed images and captions, and their local pairs. With the base's arguments this is the base's forward pass.

        Images and crops of the same size go through the image tower in one forward pass. Captions and sentences take
        two, so that sentences are not padded to the length of captions. With local pairs alone, nothing global is
        computed.

        Args:
            input_ids: Captions, `(captions, tokens)`; captions that are too long are truncated, and their masks too.
            pixel_values: Images, `(images, 3, height, width)`.
            attention_mask: `(captions, tokens)`.
            local_input_ids: Sentence of the local pair of each row, `(batch, sentence_tokens)`.
            local_pixel_values: Region crop of the local pair of each row, `(batch, 3, height, width)`. Crops may be
                smaller than the images: the image tower then interpolates its positions for them.
            local_attention_mask: `(batch, sentence_tokens)`.
            region_mask: Which patches of the image belong to the region, `(batch, patches)`, row-major. A row of
                zeros excludes the row from the image part of TSL.
            sentence_mask: Which tokens of the caption belong to the sentence, `(batch, tokens)`. A row of zeros
                excludes the row from the text part of TSL.
            image_groups: Number of the image of each row, `(batch,)`. Rows with the same number are not contrasted with
                each other in the losses, except for those with -1.
            short_input_ids: A short caption of each image, `(batch, short_tokens)`, embedded with the sentences.
            short_attention_mask: `(batch, short_tokens)`.
            position_ids: Positions of `input_ids`.
            return_loss: Compute the losses that the inputs allow, with the configuration's weights and loss type.
            interpolate_pos_encoding: Accept images of a different size than the model was trained with.
            return_token_embeds: Also return the projected embeddings of every patch and every caption token.
            **kwargs: As for the base (`output_attentions`...).

        Raises:
            ValueError: The local inputs do not match the global ones row by row, or a mask does not match its tokens.
        """
        return_token_embeds = return_token_embeds or bool(return_loss and self.config.sparc_weight)
        inputs = {"input_ids": input_ids, "pixel_values": pixel_values}
        local = {
            "local_input_ids": local_input_ids,
            "local_pixel_values": local_pixel_values,
            "region_mask": region_mask,
            "sentence_mask": sentence_mask,
            "short_input_ids": short_input_ids,
        }
        if all(value is None for value in local.values()) and not return_token_embeds:
            outputs = super().forward(
                **inputs,
                attention_mask=attention_mask,
                position_ids=position_ids,
                interpolate_pos_encoding=interpolate_pos_encoding,
                return_dict=True,
                **kwargs,
            )
            scale, bias = self.logit_scale.exp(), logit_bias(self)
            losses = self._losses(outputs, scale, bias, None, None, image_groups) if return_loss else {}
            return FastGoalOutput(**outputs, **losses, logit_scale=scale, logit_bias=bias)
        _check_rows({**inputs, **local}, return_token_embeds)

        images: dict[str, Any] = {"image_embeds": pixel_values, "local_image_embeds": local_pixel_values}
        images = {name: pixels for name, pixels in images.items() if pixels is not None}
        embeds, whole = self._embed_images(images, interpolate_pos_encoding, **kwargs)
        with recorded_tokens(self) as tokens:
            text, embeds["text_embeds"] = self._embed_texts(
                input_ids, attention_mask, position_ids=position_ids, **kwargs
            )
        short_texts: dict[str, Any] = {
            "local_text_embeds": (local_input_ids, local_attention_mask),
            "short_text_embeds": (short_input_ids, short_attention_mask),
        }
        embeds |= self._embed_together(short_texts, **kwargs)
        if text is not None and cast(Any, input_ids).shape[1] > (limit := text.last_hidden_state.shape[1]):
            input_ids = cast(Any, cut_texts(cast(Any, input_ids), self))
            attention_mask = None if attention_mask is None else attention_mask[:, :limit]
            if sentence_mask is not None:
                sentence_mask = sentence_mask[:, :limit].clone()
                sentence_mask[:, -1] = False  # now EOS, or padding
        if region_mask is not None:
            embeds["region_embeds"] = pool_patches(self, whole, region_mask)
        if sentence_mask is not None:
            embeds["sentence_embeds"] = pool_text(self, tokens[0], sentence_mask)
        if return_token_embeds:
            embeds["patch_embeds"] = patch_embeds(self, whole)
            embeds["token_embeds"] = token_embeds(self, text)
            embeds["word_mask"] = caption_words(self, cast(Any, input_ids), attention_mask)

        logit_scale, bias = self.logit_scale.exp(), logit_bias(self)
        logits = None if text is None else logit_scale * embeds["text_embeds"] @ embeds["image_embeds"].T
        if logits is not None and bias is not None:
            logits = logits + bias
        if return_loss:
            embeds |= self._losses(embeds, logit_scale, bias, region_mask, sentence_mask, image_groups)
        return FastGoalOutput(
            **embeds,
            logits_per_image=None if logits is None else logits.T,
            logits_per_text=logits,
            logit_scale=logit_scale,
            logit_bias=bias,
            text_model_output=text,
            vision_model_output=whole,
        )

    def _losses(self, embeds: Any, scale: torch.Tensor, bias: Any, *masks: Any) -> dict[str, Any]:
        """Return the losses of a batch by name, as the configuration weighs them."""
        used_bias = bias if is_sigmoid(self, self.config.contrastive) else None
        dims = self.config.matryoshka_dims or ()
        return fast_goal_loss(loss_rows(embeds, scale, *masks), scale, self.config, logit_bias=used_bias, dims=dims)

    def _embed_images(
        self, images: dict[str, torch.Tensor], interpolate_pos_encoding: bool, **kwargs: Any
    ) -> tuple[dict[str, torch.Tensor], Any]:
        """Embed whole images and crops, in one forward pass if they have the same size.

        Returns:
            The normalized embeddings by name, and the output of the image tower for the whole images, or None.
        """
        embeds: dict[str, torch.Tensor] = {}
        whole: Any = None
        sizes = [pixels.shape[2:] for pixels in images.values()]
        groups = [images] if sizes[0] == sizes[-1] else [{name: pixels} for name, pixels in images.items()]
        side = self.config.vision_config.image_size
        for group in groups:
            pixels = torch.cat([*group.values()])
            # Crops may have a size of their own; whole images only if the caller says so.
            interpolate = interpolate_pos_encoding or ("image_embeds" not in group and pixels.shape[2:] != (side, side))
            vision: Any = self.get_image_features(pixels, interpolate, return_dict=True, **kwargs)
            parts = F.normalize(vision.pooler_output, dim=-1).split([len(part) for part in group.values()])
            embeds |= zip(group, parts, strict=True)
            if "image_embeds" in group:
                whole = _first_rows(vision, len(group["image_embeds"]))
        return embeds, whole

    def _embed_texts(self, input_ids: Any, attention_mask: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return the output of the text tower and the normalized embeddings, or None twice without texts."""
        if input_ids is None:
            return None, None
        kwargs = {**kwargs, "attention_mask": attention_mask, "return_dict": True}
        text: Any = self.get_text_features(input_ids, **kwargs)
        return text, F.normalize(text.pooler_output, dim=-1)

    def _embed_together(self, texts: dict[str, tuple[Any, Any]], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Embed short texts, ids and masks (or None) by name, in one forward pass where that changes nothing."""
        given = {name: ids for name, (ids, _) in texts.items() if ids is not None}
        widths = {ids.shape[1] for ids in given.values()}
        # A tower that attends to padding would embed a padded text differently.
        if len(given) < 2 or (len(widths) > 1 and family_of(self).pools_last):
            return {name: self._embed_texts(ids, texts[name][1], **kwargs)[1] for name, ids in given.items()}
        ids, masks, width = [], [], max(widths)
        for name, short in given.items():
            mask = torch.ones_like(short) if texts[name][1] is None else texts[name][1]
            # Padded with BOS, which is never mistaken for EOS, and masked.
            ids.append(torch.cat([short, short[:, :1].expand(-1, width - short.shape[1])], dim=1))
            masks.append(F.pad(mask, (0, width - mask.shape[1])))
        masked = len(widths) > 1 or any(texts[name][1] is not None for name in given)
        _, embeds = self._embed_texts(torch.cat(ids), torch.cat(masks) if masked else None, **kwargs)
        return dict(zip(given, embeds.split([len(short) for short in given.values()]), strict=True))


def _first_rows(outputs: Any, rows: int) -> Any:
    """Return the output of a tower for the first rows of the batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(cut, value))
        return value if value is None else value[:rows]

    return type(outputs)(**{name: cut(value) for name, value in outputs.items()})


def _check_rows(inputs: dict[str, Any], return_token_embeds: bool) -> None:
    """Raise `ValueError` unless all inputs have the same number of rows and the global ones are not missing."""
    rows = {name: len(value) for name, value in inputs.items() if value is not None}
    only_local = rows.keys() == {"local_input_ids", "local_pixel_values"} and not return_token_embeds
    if not only_local and not rows.keys() >= {"input_ids", "pixel_values"}:
        raise ValueError(
            "`input_ids` and `pixel_values` must be given with masks and `return_token_embeds`, got None. Only "
            "`local_input_ids` and `local_pixel_values` may be given alone."
        )
    if len(set(rows.values())) > 1:
        raise ValueError(f"Global and local inputs must have the same number of rows, got {rows}.")
