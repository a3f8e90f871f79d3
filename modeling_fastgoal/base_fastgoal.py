"""What FAST-GOAL's models have in common: token similarity learning (arXiv 2605.26615, section TSL)."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, CLIPModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .families_fastgoal import family_of
from .losses_fastgoal import FastGoalLosses, fast_goal_loss, loss_rows
from .positions_fastgoal import stretch_positions, target_length
from .towers_fastgoal import (
    TEXT_POSITIONS,
    caption_words,
    cut_texts,
    is_sigmoid,
    patch_embeds,
    pool_patches,
    pool_text,
    text_positions,
    token_embeds,
)

logger = logging.get_logger(__name__)
_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


@dataclass
class FastGoalOutput(FastGoalLosses):
    """Output of a FAST-GOAL model. What the arguments did not allow to compute is None.

    It has the fields of `FastGoalLosses` too, with `return_loss=True` only.

    Attributes:
        logits_per_image: Scaled cosines, `(images, captions)`.
        logits_per_text: Scaled cosines, `(captions, images)`.
        image_embeds: Images, normalized, `(images, dim)`.
        text_embeds: Captions, normalized, `(captions, dim)`.
        local_image_embeds: Region crops, normalized, `(batch, dim)`.
        local_text_embeds: Sentences, normalized, `(batch, dim)`.
        short_text_embeds: Short captions, normalized, `(batch, dim)`.
        region_embeds: Projected mean of the patches in `region_mask`, normalized, `(batch, dim)`; a row of zeros
            where the mask is empty.
        sentence_embeds: Projected mean of the tokens in `sentence_mask`, likewise.
        patch_embeds: Every patch of the images through the final norm and the projection, not normalized,
            `(images, patches, dim)`; with `return_token_embeds=True` only.
        token_embeds: Every token of the captions likewise, `(captions, tokens, dim)`.
        word_mask: Which of these tokens are words (no BOS, EOS or padding), `(captions, tokens)` bool.
        logit_scale: The factor in the logits, scalar.
        logit_bias: What is added to them, scalar; None but with SigLIP.
        text_model_output: The text tower's output for the captions.
        vision_model_output: The image tower's output for the images.
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
    """What FAST-GOAL's models have beside their bases': the losses over global and local pairs, and longer texts."""

    stretched_from: int | None = None
    """Text positions before `from_base` stretched them; None where it did not."""

    # The forward takes **kwargs, which a Trainer would read as "this loss is already scaled for accumulation".
    accepts_loss_kwargs = False

    @classmethod
    def class_for(cls, config: Any) -> "type[FastGoalModel]":
        """Return the FAST-GOAL class of a configuration's family, such as `FastGoalCLIPModel` for CLIP.

        Raises:
            ValueError: The family is not supported.
        """
        name = family_of(config).model
        return next(model_class for model_class in FastGoalModel.__subclasses__() if model_class.__name__ == name)

    @classmethod
    def from_pretrained(
        cls: type[_Model], pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> _Model:
        """Load a saved model; called on `FastGoalModel` itself, choose the class by the checkpoint's configuration.

        >>> model = FastGoalModel.from_pretrained("fast-goal")  # doctest: +SKIP

        Args:
            pretrained_model_name_or_path: Hub id or folder.
            *model_args: As for `PreTrainedModel.from_pretrained`.
            **kwargs: As for `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: The checkpoint's family is not supported.
        """
        if cls is FastGoalModel:
            name = cast(str, pretrained_model_name_or_path)
            return cast(_Model, cls.class_for(config_of(name, kwargs)).from_pretrained(name, *model_args, **kwargs))
        return cast(_Model, super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs))

    @classmethod
    def from_base(
        cls: type[_Model],
        name_or_model: str | os.PathLike[str] | PreTrainedModel,
        max_text_length: int | None = None,
        **kwargs: Any,
    ) -> _Model:
        """Make a FAST-GOAL model of a base checkpoint and stretch its text positions, as Long-CLIP does.

        Called on `FastGoalModel` itself, this chooses the class by the checkpoint's configuration.

        >>> model = FastGoalModel.from_base("google/siglip2-base-patch16-224", max_text_length=256)  # doctest: +SKIP

        A stretched model has to be trained before it is used: stretching alone makes it worse.

        Args:
            name_or_model: Hub id or folder of a checkpoint, or a model of transformers (which stays as it is).
            max_text_length: Tokens the text tower shall read, from 77 to 248, of a SigLIP from 64 to 256; the most by
                default. A checkpoint that already reads more than 77 (64) is left as it is, provided it reads at least
                this many.
            **kwargs: Passed on to `from_pretrained` (`dtype`, `revision`, `token`...).

        Returns:
            The model in eval mode, on the device and in the dtype of the source.

        Raises:
            ValueError: The checkpoint is of another family, its positions cannot be brought to `max_text_length`, or
                it lacks weights.
        """
        is_model = isinstance(name_or_model, PreTrainedModel)
        if is_model and kwargs:
            raise ValueError(f"{sorted(kwargs)} only apply when `name_or_model` is a name, got a model.")
        clip: Any = name_or_model
        config = clip.config if is_model else config_of(cast(str, name_or_model), kwargs)
        what = type(clip).__name__ if is_model else repr(os.fspath(clip))
        family = family_of(config, what)
        if cls is FastGoalModel:
            return cast(_Model, cls.class_for(config).from_base(name_or_model, max_text_length, **kwargs))
        if family.model != cls.__name__:
            raise ValueError(f"{what} is a {family.label} and makes a {family.model}, not a {cls.__name__}.")
        if not is_model:
            clip = load_whole(cls.__bases__[-1], cast(str, name_or_model), **kwargs)
        positions = text_positions(clip)
        target = target_length(positions, family.longest if max_text_length is None else max_text_length, family)

        settings = clip.config.to_dict()
        for key in ("architectures", "auto_map", "model_type", "transformers_version", "dtype"):
            settings.pop(key, None)
        settings["text_config"]["max_position_embeddings"] = target
        model = cast(Any, cls(cls.config_class(**settings)))
        state = {name: tensor.detach().clone() for name, tensor in clip.state_dict().items()}
        if target != positions:
            state[TEXT_POSITIONS] = stretch_positions(state[TEXT_POSITIONS], target, family)
            model.stretched_from = positions
        model.load_state_dict(state)
        model.to(device=clip.device, dtype=clip.dtype)
        model.set_attn_implementation(clip.config._attn_implementation)
        model.config.dtype = clip.config.dtype
        model.name_or_path = clip.name_or_path
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the text tower's tokens."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace it."""
        self.text_model.set_input_embeddings(value)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; with `trust_remote_code=True` a pipeline too finds this class."""
        # `register_for_auto_class` knows one name, and a pipeline asks for another.
        auto_map = getattr(self.config, "auto_map", None) or {}
        name = f"modeling_fastgoal.{type(self).__name__}"
        self.config.auto_map = {**auto_map, "AutoModelForZeroShotImageClassification": name}
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """As the base's, but longer texts are cut as the tokenizer would have cut them.

        Pipelines do not truncate; a plain model stops at such a text.
        """
        limit = text_positions(self)
        if input_ids.shape[1] > limit:
            input_ids = cut_texts(input_ids, self)
            attention_mask = None if attention_mask is None else attention_mask[:, :limit]
            position_ids = None if position_ids is None else position_ids[:, :limit]
            logger.warning_once(f"Some texts have more than {limit} tokens and were cut there.")
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
        short_input_ids: torch.LongTensor | None = None,
        short_attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_token_embeds: bool = False,
        **kwargs: Any,
    ) -> FastGoalOutput:
        """Embed images and captions, and where given their local pairs; with only CLIP's arguments this is the base.

        Each image goes through its tower once, together with its crop; captions and sentences are two forwards,
        so that a sentence is not padded to the length of a caption. Local pairs may also come by themselves: then
        nothing global is computed.

        Args:
            input_ids: Captions, `(captions, tokens)`; longer ones than the model reads are cut, with their masks.
            pixel_values: Images, `(images, 3, height, width)`.
            attention_mask: `(captions, tokens)`.
            local_input_ids: Sentence of each row's local pair, `(batch, sentence_tokens)`.
            local_pixel_values: Region crop of each row's local pair, `(batch, 3, height, width)`.
            local_attention_mask: `(batch, sentence_tokens)`.
            region_mask: Which patches of the image belong to the region, `(batch, patches)`, row-major. A row of
                zeros leaves the row out of the image part of TSL.
            sentence_mask: Which tokens of the caption belong to the sentence, `(batch, tokens)`. A row of zeros
                leaves the row out of the text part of TSL.
            short_input_ids: A short caption of each image, `(batch, short_tokens)`; they share the sentences' forward.
            short_attention_mask: `(batch, short_tokens)`.
            position_ids: Positions of `input_ids`.
            return_loss: Compute the losses that the inputs allow, weighted and of the kind that the configuration says.
            interpolate_pos_encoding: Take images of another size than the model was trained on.
            return_token_embeds: Also give the projected embedding of every patch and every caption token.
            **kwargs: As for the base (`output_attentions`...). With `sentence_mask` the last of the captions'
                hidden states is always there.

        Raises:
            ValueError: The local inputs do not match the global ones row by row, or a mask its tokens.
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
            scale, bias = self.logit_scale.exp(), getattr(self, "logit_bias", None)
            losses = self._losses(outputs, scale, bias) if return_loss else {}
            return FastGoalOutput(**outputs, **losses, logit_scale=scale, logit_bias=bias)
        _check_rows({**inputs, **local}, return_token_embeds)

        images: dict[str, Any] = {"image_embeds": pixel_values, "local_image_embeds": local_pixel_values}
        images = {name: pixels for name, pixels in images.items() if pixels is not None}
        vision: Any = self.get_image_features(
            torch.cat([*images.values()]), interpolate_pos_encoding, return_dict=True, **kwargs
        )
        parts = F.normalize(vision.pooler_output, dim=-1).split([len(pixels) for pixels in images.values()])
        embeds: dict[str, Any] = dict(zip(images, parts, strict=True))
        hidden = dict(kwargs)
        if sentence_mask is not None:
            asked: Any = kwargs.get("output_hidden_states")
            if asked is None or isinstance(asked, bool):
                hidden["output_hidden_states"] = True
            else:  # by their numbers
                hidden["output_hidden_states"] = [*([asked] if isinstance(asked, int) else asked), -1]
        text, embeds["text_embeds"] = self._embed_texts(input_ids, attention_mask, position_ids=position_ids, **hidden)
        few: dict[str, Any] = {"local": (local_input_ids, local_attention_mask)}
        few["short"] = (short_input_ids, short_attention_mask)
        for name, value in self._embed_together(few, **kwargs).items():
            embeds[f"{name}_text_embeds"] = value
        whole = None if pixel_values is None else _first_rows(vision, len(pixel_values))  # without the crops behind
        if text is not None and cast(Any, input_ids).shape[1] > (limit := text.last_hidden_state.shape[1]):
            input_ids = cast(Any, cut_texts(cast(Any, input_ids), self))
            attention_mask = None if attention_mask is None else attention_mask[:, :limit]
            if sentence_mask is not None:
                sentence_mask = sentence_mask[:, :limit].clone()
                sentence_mask[:, -1] = False  # EOS, or padding
        if region_mask is not None:
            embeds["region_embeds"] = pool_patches(self, whole, region_mask)
        if sentence_mask is not None:
            embeds["sentence_embeds"] = pool_text(self, text, sentence_mask)
        if return_token_embeds:
            embeds["patch_embeds"] = patch_embeds(self, whole)
            embeds["token_embeds"] = token_embeds(self, text)
            embeds["word_mask"] = caption_words(self, cast(Any, input_ids), attention_mask)

        logit_scale, logit_bias = self.logit_scale.exp(), getattr(self, "logit_bias", None)
        logits = None if text is None else logit_scale * embeds["text_embeds"] @ embeds["image_embeds"].T
        if logits is not None and logit_bias is not None:
            logits = logits + logit_bias
        if return_loss:
            embeds |= self._losses(embeds, logit_scale, logit_bias, region_mask, sentence_mask)
        return FastGoalOutput(
            **embeds,
            logits_per_image=None if logits is None else logits.T,
            logits_per_text=logits,
            logit_scale=logit_scale,
            logit_bias=logit_bias,
            text_model_output=text,
            vision_model_output=whole,
        )

    def _losses(self, embeds: Any, scale: torch.Tensor, bias: Any, *masks: Any) -> dict[str, torch.Tensor]:
        """Return the losses of a batch by name, as the configuration weighs them."""
        used_bias = bias if is_sigmoid(self, self.config.contrastive) else None
        return fast_goal_loss(loss_rows(embeds, scale, *masks), scale, self.config, logit_bias=used_bias)

    def _embed_texts(self, input_ids: Any, attention_mask: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The text tower's output and the embeddings; None both without texts."""
        if input_ids is None:
            return None, None
        kwargs = {**kwargs, "attention_mask": attention_mask, "return_dict": True}
        text: Any = self.get_text_features(input_ids, **kwargs)
        return text, F.normalize(text.pooler_output, dim=-1)

    def _embed_together(self, texts: dict[str, tuple[Any, Any]], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Embeddings of some short texts, by name, in one forward; `texts` are ids and masks, which may be None."""
        given = {name: ids for name, (ids, _) in texts.items() if ids is not None}
        widths = {ids.shape[1] for ids in given.values()}
        # Where a tower attends to padding, what is filled up is another text.
        if len(given) < 2 or (len(widths) > 1 and family_of(self).pools_last):
            return {name: self._embed_texts(ids, texts[name][1], **kwargs)[1] for name, ids in given.items()}
        ids, masks, width = [], [], max(widths)
        for name, some in given.items():
            mask = torch.ones_like(some) if texts[name][1] is None else texts[name][1]
            # Filled up with BOS, which is never taken for EOS, and masked.
            ids.append(torch.cat([some, some[:, :1].expand(-1, width - some.shape[1])], dim=1))
            masks.append(F.pad(mask, (0, width - mask.shape[1])))
        masked = len(widths) > 1 or any(texts[name][1] is not None for name in given)
        _, embeds = self._embed_texts(torch.cat(ids), torch.cat(masks) if masked else None, **kwargs)
        return dict(zip(given, embeds.split([len(some) for some in given.values()]), strict=True))


def config_of(name: str | os.PathLike[str], kwargs: dict[str, Any]) -> Any:
    of_the_hub = {key: value for key, value in kwargs.items() if key in _OF_THE_HUB}
    return AutoConfig.from_pretrained(name, trust_remote_code=False, **of_the_hub)


def _first_rows(outputs: Any, rows: int) -> Any:
    """A tower's output for the first rows of the batch alone."""

    def cut(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(cut, value))
        return value if value is None else value[:rows]

    return type(outputs)(**{name: cut(value) for name, value in outputs.items()})


def load_whole(kind: Any, name: str | os.PathLike[str], **kwargs: Any) -> Any:
    """`kind.from_pretrained(name, **kwargs)`, a model of transformers, where the checkpoint has all its weights.

    Raises:
        ValueError: It lacks some, or they have other shapes, and transformers would make them up at random.
    """
    reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = kind.from_pretrained(name, **{**kwargs, **reported})
    shapes = sorted(f"{key} is {tuple(is_)} and must be {tuple(must)}" for key, is_, must in found["mismatched_keys"])
    if wrong := [*shapes, *(f"{key} is missing" for key in sorted(found["missing_keys"]))]:
        rest = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"the checkpoint has not the weights of a {type(model).__name__}: {wrong[0]}{rest}.")
    return model


def _check_rows(inputs: dict[str, Any], return_token_embeds: bool) -> None:
    """Raise a `ValueError` unless the inputs belong together row by row, or are the two of local pairs alone."""
    rows = {name: len(value) for name, value in inputs.items() if value is not None}
    only_local = rows.keys() == {"local_input_ids", "local_pixel_values"} and not return_token_embeds
    if not only_local and not rows.keys() >= {"input_ids", "pixel_values"}:
        raise ValueError(
            "`input_ids` and `pixel_values` are needed beside the masks and for `return_token_embeds`, got None. "
            "Only `local_input_ids` and `local_pixel_values` together go without them."
        )
    if len(set(rows.values())) > 1:
        raise ValueError(f"Global and local inputs belong together row by row, got these numbers of rows: {rows}.")
