"""FAST-GOAL on CLIP: the model with token similarity learning (arXiv 2605.26615, section TSL)."""

import os
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple, logging

from .configuration_fastgoal import FastGoalCLIPConfig
from .losses_fastgoal import fast_goal_loss
from .positions_fastgoal import CLIP_POSITIONS, LONGEST, stretch_positions
from .sparc_fastgoal import sparc_losses, word_mask

logger = logging.get_logger(__name__)

PIPELINE_CLASS = "AutoModelForZeroShotImageClassification"


@dataclass
class FastGoalOutput(ModelOutput):
    """Output of `FastGoalCLIPModel`. What the arguments did not allow to compute is None.

    Attributes:
        loss: Weighted sum of the parts below, scalar; with `return_loss=True` only, as all losses.
        loss_global: Contrastive loss of (image, caption), unweighted.
        loss_local: Contrastive loss of (region crop, sentence), unweighted.
        loss_tsl_image: Token similarity of region patches and region crop, unweighted.
        loss_tsl_text: Token similarity of the sentence's tokens in the caption and the sentence, unweighted.
        loss_sparc: SPARC's fine-grained loss of patches and words, unweighted.
        logits_per_image: Scaled cosines, `(images, captions)`.
        logits_per_text: Scaled cosines, `(captions, images)`.
        image_embeds: Images, normalised, `(images, dim)`.
        text_embeds: Captions, normalised, `(captions, dim)`.
        local_image_embeds: Region crops, normalised, `(batch, dim)`.
        local_text_embeds: Sentences, normalised, `(batch, dim)`.
        region_embeds: Projected mean of the patches in `region_mask`, normalised, `(batch, dim)`; a row of zeros
            where the mask is empty.
        sentence_embeds: Projected mean of the tokens in `sentence_mask`, normalised, `(batch, dim)`; a row of zeros
            where the mask is empty.
        patch_embeds: Every patch of the images through the final norm and the projection, not normalised,
            `(images, patches, dim)`; with `return_token_embeds=True` only.
        token_embeds: Every token of the captions likewise, `(captions, tokens, dim)`.
        word_mask: Which of these tokens are words (no BOS, EOS or padding), `(captions, tokens)` bool.
        logit_scale: The factor in the logits, scalar.
        text_model_output: The text tower's output for the captions.
        vision_model_output: The image tower's output for the images (with local pairs: images, then crops).
    """

    loss: torch.Tensor | None = None
    loss_global: torch.Tensor | None = None
    loss_local: torch.Tensor | None = None
    loss_tsl_image: torch.Tensor | None = None
    loss_tsl_text: torch.Tensor | None = None
    loss_sparc: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    local_image_embeds: torch.Tensor | None = None
    local_text_embeds: torch.Tensor | None = None
    region_embeds: torch.Tensor | None = None
    sentence_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    token_embeds: torch.Tensor | None = None
    word_mask: torch.Tensor | None = None
    logit_scale: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class TokenSimilarityHead(nn.Module):
    """Mean of some tokens of a tower, brought into the joint space by the tower's own norm and projection.

    It has no parameters of its own, so a checkpoint holds exactly CLIP's weights.
    """

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, norm: nn.Module, projection: nn.Module) -> torch.Tensor:
        """Pool and project.

        Args:
            tokens: Last layer's tokens before the tower's final norm, `(batch, tokens, width)`.
            mask: `(batch, tokens)`, True (or non-zero) where a token belongs to the region or sentence.
            norm: The tower's final layer norm.
            projection: The tower's projection into the joint space.

        Returns:
            Embeddings, normalised, `(batch, dim)`; a row of zeros where the mask is empty.

        Raises:
            ValueError: `mask` does not have the shape of the tokens.
        """
        if mask.shape != tokens.shape[:2]:
            raise ValueError(
                f"The mask must have one entry per token, {tuple(tokens.shape[:2])} (batch, tokens), "
                f"got {tuple(mask.shape)}."
            )
        chosen = mask.to(device=tokens.device, dtype=torch.bool)
        count = chosen.sum(dim=1, keepdim=True)
        weights = chosen.to(tokens.dtype) / count.clamp(min=1).to(tokens.dtype)
        mean = torch.bmm(weights.unsqueeze(1), tokens).squeeze(1)  # (batch, width)
        embeds = F.normalize(projection(norm(mean)), dim=-1)
        return torch.where(count > 0, embeds, torch.zeros_like(embeds))


class FastGoalCLIPModel(CLIPModel):
    """CLIP for long captions, with FAST-GOAL's losses over global and local pairs.

    The weights are CLIP's, name by name; see `from_clip` for how a CLIP checkpoint becomes one.
    """

    config_class = FastGoalCLIPConfig
    config: FastGoalCLIPConfig
    # The forward takes **kwargs, which a Trainer would read as "this loss is already scaled for accumulation".
    accepts_loss_kwargs = False

    def __init__(self, config: FastGoalCLIPConfig):
        super().__init__(config)
        self.region_head = TokenSimilarityHead()
        self.sentence_head = TokenSimilarityHead()

    @classmethod
    def from_clip(
        cls, name_or_model: str | os.PathLike[str] | CLIPModel, max_text_length: int = LONGEST, **kwargs: Any
    ) -> "FastGoalCLIPModel":
        """Make a FAST-GOAL model of any CLIP checkpoint, its text positions stretched as Long-CLIP does.

        Args:
            name_or_model: Hub id or folder of a CLIP checkpoint, or a `CLIPModel` (which stays as it is).
            max_text_length: Tokens the text tower shall read, from 77 to 248. A checkpoint that already reads
                more than 77 is left as it is, provided it reads at least this many.
            **kwargs: Passed on to `CLIPModel.from_pretrained` (`dtype`, `revision`, `token`...).

        Returns:
            The model in eval mode, on the device and in the dtype of the source.

        Raises:
            ValueError: The positions of the checkpoint cannot be brought to `max_text_length`.
        """
        if isinstance(name_or_model, CLIPModel):
            if kwargs:
                raise ValueError(f"{sorted(kwargs)} only apply when `name_or_model` is a name, got a model.")
            clip: Any = name_or_model
        else:
            clip = CLIPModel.from_pretrained(name_or_model, **kwargs)
        positions = cast(Any, clip).config.text_config.max_position_embeddings
        target = _target_length(positions, max_text_length)

        settings = clip.config.to_dict()
        for key in ("architectures", "auto_map", "model_type", "transformers_version", "dtype"):
            settings.pop(key, None)
        settings["text_config"]["max_position_embeddings"] = target
        model = cast(Any, cls(cls.config_class(**settings)))
        state = {name: tensor.detach().clone() for name, tensor in clip.state_dict().items()}
        table = "text_model.embeddings.position_embedding.weight"
        if target != positions:
            state[table] = stretch_positions(state[table], target)
        model.load_state_dict(state)
        model.to(device=clip.device, dtype=clip.dtype)
        model.set_attn_implementation(clip.config._attn_implementation)
        model.config.dtype = clip.config.dtype
        return model.eval()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; with `trust_remote_code=True` a pipeline too finds this class."""
        # `register_for_auto_class` knows one name, and a pipeline asks for another.
        auto_map = getattr(self.config, "auto_map", None) or {}
        self.config.auto_map = {**auto_map, PIPELINE_CLASS: f"modeling_fastgoal.{type(self).__name__}"}
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `CLIPModel.get_text_features`, but longer texts are cut as the tokenizer would have cut them.

        Pipelines do not truncate; a plain `CLIPModel` stops at such a text.
        """
        limit = self.text_model.embeddings.position_embedding.num_embeddings
        if input_ids.shape[1] > limit:
            # A legacy configuration says 2 and means the highest id.
            legacy = self.text_model.eos_token_id == 2
            end = input_ids.max() if legacy else self.text_model.eos_token_id
            input_ids = input_ids[:, :limit].clone()
            cut = ~(input_ids == end).any(dim=1)
            input_ids[cut, -1] = end
            attention_mask = None if attention_mask is None else attention_mask[:, :limit]
            position_ids = None if position_ids is None else position_ids[:, :limit]
            logger.warning_once(f"Some texts have more than {limit} tokens and were cut there.")
        return super().get_text_features(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )

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
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_token_embeds: bool = False,
        **kwargs: Any,
    ) -> FastGoalOutput:
        """Embed images and captions, and where given their local pairs; with only CLIP's arguments this is CLIP.

        Each image goes through its tower once, together with its crop; captions and sentences are two forwards,
        so that a sentence is not padded to the length of a caption. Local pairs may also come by themselves: then
        nothing global is computed.

        Args:
            input_ids: Captions, `(captions, tokens)`.
            pixel_values: Images, `(images, 3, height, width)`.
            attention_mask: `(captions, tokens)`.
            local_input_ids: Sentence of each row's local pair, `(batch, sentence_tokens)`.
            local_pixel_values: Region crop of each row's local pair, `(batch, 3, height, width)`.
            local_attention_mask: `(batch, sentence_tokens)`.
            region_mask: Which patches of the image belong to the region, `(batch, patches)`, row-major. A row of
                zeros leaves the row out of the image part of TSL.
            sentence_mask: Which tokens of the caption belong to the sentence, `(batch, tokens)`. A row of zeros
                leaves the row out of the text part of TSL.
            position_ids: Positions of `input_ids`.
            return_loss: Compute the losses. With only CLIP's arguments the loss is CLIP's own, and SPARC's where
                `config.sparc_weight` is not 0.
            interpolate_pos_encoding: Take images of another size than the model was trained on.
            return_token_embeds: Also give the projected embedding of every patch and every caption token.
            **kwargs: As for `CLIPModel` (`output_attentions`...).

        Raises:
            ValueError: The local inputs do not match the global ones row by row, or a mask its tokens.
        """
        return_token_embeds = return_token_embeds or bool(return_loss and self.config.sparc_weight)
        local = (local_input_ids, local_pixel_values, region_mask, sentence_mask)
        if all(x is None for x in local) and not return_token_embeds:
            outputs = super().forward(
                input_ids=input_ids,
                pixel_values=pixel_values,
                attention_mask=attention_mask,
                position_ids=position_ids,
                return_loss=return_loss,
                interpolate_pos_encoding=interpolate_pos_encoding,
                return_dict=True,
                **kwargs,
            )
            return FastGoalOutput(loss_global=outputs.loss, logit_scale=self.logit_scale.exp(), **outputs)

        only_local = (
            input_ids is None
            and pixel_values is None
            and local_input_ids is not None
            and local_pixel_values is not None
            and region_mask is None
            and sentence_mask is None
            and not return_token_embeds
        )
        if not only_local and (input_ids is None or pixel_values is None):
            raise ValueError(
                "`input_ids` and `pixel_values` are needed beside the masks and for `return_token_embeds`, got None. "
                "Only `local_input_ids` and `local_pixel_values` together go without them."
            )
        rows = {
            name: len(value)
            for name, value in (
                ("input_ids", input_ids),
                ("pixel_values", pixel_values),
                ("local_input_ids", local_input_ids),
                ("local_pixel_values", local_pixel_values),
                ("region_mask", region_mask),
                ("sentence_mask", sentence_mask),
            )
            if value is not None
        }
        if len(set(rows.values())) > 1:
            raise ValueError(f"Global and local inputs belong together row by row, got these numbers of rows: {rows}.")

        embeds: dict[str, torch.Tensor | None] = {}
        batch = 0 if pixel_values is None else len(pixel_values)
        images = [pixels for pixels in (pixel_values, local_pixel_values) if pixels is not None]
        vision = self.get_image_features(
            pixel_values=torch.cat(images) if len(images) > 1 else images[0],
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        image_embeds = F.normalize(vision.pooler_output, dim=-1)
        if pixel_values is not None:
            embeds["image_embeds"] = image_embeds[:batch]
        if local_pixel_values is not None:
            embeds["local_image_embeds"] = image_embeds[batch:]
        text = None
        if input_ids is not None:
            text_kwargs = {**kwargs, "output_hidden_states": True} if sentence_mask is not None else kwargs
            text = self.get_text_features(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                return_dict=True,
                **text_kwargs,
            )
            text_embeds = embeds["text_embeds"] = F.normalize(text.pooler_output, dim=-1)
        if local_input_ids is not None:
            sentences = self.get_text_features(
                input_ids=local_input_ids, attention_mask=local_attention_mask, return_dict=True, **kwargs
            )
            embeds["local_text_embeds"] = F.normalize(sentences.pooler_output, dim=-1)
        patches = vision.last_hidden_state[:batch, 1:]  # the class token comes first
        if region_mask is not None:
            embeds["region_embeds"] = self.region_head(
                patches, region_mask, self.vision_model.post_layernorm, self.visual_projection
            )
        if sentence_mask is not None and text is not None:
            # The text tower's `last_hidden_state` has been through the final norm; its last layer's output has not.
            embeds["sentence_embeds"] = self.sentence_head(
                text.hidden_states[-1],
                sentence_mask,
                self.text_model.final_layer_norm,
                self.text_projection,
            )
        tokens: dict[str, torch.Tensor] = {}
        if return_token_embeds and text is not None and input_ids is not None:
            attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            tokens = {
                "patch_embeds": self.visual_projection(self.vision_model.post_layernorm(patches)),
                "token_embeds": self.text_projection(text.last_hidden_state),
                "word_mask": word_mask(attended),
            }

        logit_scale = self.logit_scale.exp()
        logits_per_text = None
        if text is not None:
            logits_per_text = logit_scale * text_embeds @ image_embeds[:batch].T
        losses: dict[str, torch.Tensor] = {}
        if return_loss:
            sparc: dict[str, torch.Tensor] = {}
            if tokens:
                sparc["sparc_rows"] = sparc_losses(
                    tokens["patch_embeds"], tokens["token_embeds"], tokens["word_mask"], logit_scale
                )
                sparc["sparc_valid"] = tokens["word_mask"].any(dim=1)
            losses = fast_goal_loss(
                embeds,
                logit_scale,
                region_valid=None if region_mask is None else region_mask.bool().any(dim=1),
                sentence_valid=None if sentence_mask is None else sentence_mask.bool().any(dim=1),
                global_weight=self.config.global_weight,
                local_weight=self.config.local_weight,
                tsl_weight=self.config.tsl_weight,
                sparc_weight=self.config.sparc_weight,
                **sparc,
            )
        return FastGoalOutput(
            **losses,
            **embeds,
            **tokens,
            logits_per_image=None if logits_per_text is None else logits_per_text.T,
            logits_per_text=logits_per_text,
            logit_scale=logit_scale,
            text_model_output=text,
            vision_model_output=vision,
        )


def _target_length(positions: int, wanted: int) -> int:
    """Text positions the model shall have, or a `ValueError` that says why it cannot have them."""
    if not CLIP_POSITIONS <= wanted <= LONGEST and positions != wanted:
        raise ValueError(f"`max_text_length` must be from {CLIP_POSITIONS} to {LONGEST} tokens, got {wanted}.")
    if positions == CLIP_POSITIONS:
        return wanted
    if positions < CLIP_POSITIONS and positions != wanted:
        raise ValueError(
            f"The checkpoint reads {positions} tokens; only CLIP's {CLIP_POSITIONS} can be stretched. "
            f"Pass `max_text_length={positions}` to keep it as it is."
        )
    if positions < wanted:
        raise ValueError(
            f"The checkpoint was already stretched to {positions} tokens and cannot be stretched again to {wanted}. "
            f"Pass `max_text_length={positions}`, or start from the {CLIP_POSITIONS}-token checkpoint."
        )
    if positions > wanted:
        logger.info(
            f"The checkpoint reads {positions} tokens already, more than the {wanted} asked for; left as it is."
        )
    return positions


FastGoalCLIPConfig.register_for_auto_class()
FastGoalCLIPModel.register_for_auto_class("AutoModel")
