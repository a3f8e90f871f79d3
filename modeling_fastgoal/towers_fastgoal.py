"""What is asked of a backbone's two towers, and all that differs between backbones.

Everything else asks these functions and touches nothing of the towers' insides. `model` is any `CLIPModel`,
`MetaClip2Model` or `SiglipModel`; `vision_outputs` and `text_outputs` are what its towers return. Nothing here has
parameters of its own, so a checkpoint holds exactly the weights of its class.

| | CLIP, MetaCLIP 2 | SigLIP, SigLIP 2 |
|---|---|---|
| first token of an image | of the class | a patch |
| a region's embedding | mean of its patches, final norm, projection | the attention head over its normed patches |
| a sentence's embedding | mean of its tokens, final norm, projection | the same with the text head |
| a caption's embedding | at EOS, of a causal tower | at the last position, padding included |
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from .families_fastgoal import family_of

TEXT_POSITIONS = "text_model.embeddings.position_embedding.weight"
"""Name of the table of text positions, which `stretch_positions` makes longer."""
SIGLIP_END = 1


def text_positions(model: Any) -> int:
    """Return the largest number of tokens that the text tower of a model, or of a model's configuration, reads."""
    return int(getattr(model, "config", model).text_config.max_position_embeddings)


def is_sigmoid(model: Any, contrastive: str | None) -> bool:
    """Whether the contrastive losses of a model are sigmoid losses, as `contrastive` says, or by default its base.

    Raises:
        ValueError: There is no such loss, or the model has no bias for it.
    """
    family = family_of(model)
    if contrastive not in (None, "softmax", "sigmoid"):
        raise ValueError(f"`contrastive` must be softmax or sigmoid, got {contrastive!r}.")
    if contrastive == "sigmoid" and not family.is_sigmoid:
        raise ValueError(
            f"`contrastive=sigmoid` learns a bias, for which the weights of a {family.label} have no place: take "
            "softmax, or start from a SigLIP."
        )
    return family.is_sigmoid if contrastive is None else contrastive == "sigmoid"


def embedding_width(model: Any) -> int:
    """Numbers of an embedding."""
    config = model.config
    return int(config.text_config.projection_size if family_of(model).pools_last else config.projection_dim)


def end_of_text(model: Any, input_ids: torch.Tensor | None = None) -> int:
    """The id of EOS."""
    text = model.config.text_config
    if family_of(model).pools_last:
        return SIGLIP_END  # configurations say CLIP's
    if text.eos_token_id == 2 and model.config.model_type == "clip":  # legacy: means the highest id
        return int(text.vocab_size - 1 if input_ids is None else input_ids.max())
    return int(text.eos_token_id)


def cut_texts(input_ids: torch.Tensor, model: Any) -> torch.Tensor:
    """Texts cut at what the tower reads, `(texts, tokens)`; the last token left is EOS, as the tokenizer has it."""
    end = end_of_text(model, input_ids)
    cut = input_ids[:, : text_positions(model)].clone()
    ended = ~siglip_words(cut[:, -1]) if family_of(model).pools_last else (cut == end).any(dim=1)
    cut[~ended, -1] = end
    return cut


def siglip_words(input_ids: torch.Tensor) -> torch.Tensor:
    """Which tokens are words: in the vocabularies of SigLIP and SigLIP 2, 0 and 1 are padding and EOS, and there is no
    BOS. Their tokenizers give no mask, as the tower attends to padding."""
    return input_ids > SIGLIP_END


def caption_words(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """`word_mask` of captions, `(captions, tokens)` bool, for any family."""
    if family_of(model).pools_last:
        return siglip_words(input_ids)
    return word_mask(torch.ones_like(input_ids) if attention_mask is None else attention_mask)


def word_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Which tokens of a caption are words: not padding, not the first token (BOS), not the last one (EOS).

    BOS sees nothing of the caption in a causal text tower, and EOS stands for the whole caption, which the global
    loss trains. A caption that was cut at the model's length ends in EOS too.

    Args:
        attention_mask: `(batch, tokens)`, non-zero where there is a token; padding comes after the tokens.

    Returns:
        `(batch, tokens)` bool.
    """
    attended = attention_mask.bool()
    words = torch.zeros_like(attended)
    words[:, 1:-1] = attended[:, 1:-1] & attended[:, 2:]
    return words


def patch_tokens(model: Any, vision_outputs: Any) -> torch.Tensor:
    """The patches as the last norm, or SigLIP's pooling head, takes them: row-major, `(images, patches, width)`."""
    tokens: torch.Tensor = vision_outputs.last_hidden_state
    return tokens if _has_head(model) else tokens[:, 1:]  # the class token comes first


def patch_embeds(model: Any, vision_outputs: Any) -> torch.Tensor:
    """Every patch in the joint space, not normalized, `(images, patches, dim)`."""
    tokens = patch_tokens(model, vision_outputs)
    if not _has_head(model):
        return _project_patches(model, tokens)
    # Attention to a single token is that token's value.
    attention = model.vision_model.head.attention
    width = attention.embed_dim
    values = F.linear(tokens, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    return _end_of_head(model, attention.out_proj(values))


def token_embeds(model: Any, text_outputs: Any) -> torch.Tensor:
    """Every text token in the joint space, not normalized, `(texts, tokens, dim)`."""
    return _text_projection(model)(text_outputs.last_hidden_state)  # the final norm is in it


def pool_patches(model: Any, vision_outputs: Any, mask: torch.Tensor) -> torch.Tensor:
    """The patches of a region of each image, pooled and brought into the joint space as the tower does it.

    Args:
        model: The model.
        vision_outputs: Of as many images as the mask has rows.
        mask: `(images, patches)`, True (or non-zero) where a patch belongs to the region.

    Returns:
        Embeddings, normalized, `(images, dim)`; a row of zeros where the mask is empty.

    Raises:
        ValueError: `mask` does not have one entry per patch.
    """
    tokens = patch_tokens(model, vision_outputs)
    if _has_head(model):
        return _pool_with_head(model, tokens, mask)
    return _pool(tokens, mask, partial(_project_patches, model))


def pool_text(model: Any, text_outputs: Any, mask: torch.Tensor) -> torch.Tensor:
    """The tokens of a sentence in each text, likewise: `mask` is `(texts, tokens)`.

    `text_outputs` must have been asked for with `output_hidden_states=True`: its `last_hidden_state` has been through
    the final norm, its last layer's output has not.
    """
    norm, projection = model.text_model.final_layer_norm, _text_projection(model)
    return _pool(text_outputs.hidden_states[-1], mask, lambda mean: projection(norm(mean)))


def _project_patches(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model.visual_projection(model.vision_model.post_layernorm(tokens))


def _text_projection(model: Any) -> Any:
    return model.text_model.head if family_of(model).pools_last else model.text_projection


def _has_head(model: Any) -> bool:
    """Whether images are pooled by a head with attention, as SigLIP's are."""
    return family_of(model).pools_last


def _pool_with_head(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the pooling head makes of the patches in each row's mask, normalized; zeros where there are none."""
    chosen = _checked(mask, tokens)
    some = chosen.any(dim=1, keepdim=True)
    head = model.vision_model.head
    probe = head.probe.expand(len(tokens), -1, -1)
    left_out = ~(chosen | ~some)  # attention to nothing is not a number
    hidden = head.attention(probe, tokens, tokens, key_padding_mask=left_out)[0]
    embeds = F.normalize(_end_of_head(model, hidden[:, 0]), dim=-1)
    return torch.where(some, embeds, torch.zeros_like(embeds))


def _end_of_head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    head = model.vision_model.head
    return hidden + head.mlp(head.layernorm(hidden))


def _checked(mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The mask as bool where the tokens are, or a `ValueError` where it is not theirs."""
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"The mask must have one entry per token, {tuple(tokens.shape[:2])} (batch, tokens), got "
            f"{tuple(mask.shape)}."
        )
    return mask.to(device=tokens.device, dtype=torch.bool)


def _pool(tokens: torch.Tensor, mask: torch.Tensor, project: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Mean of the tokens that the mask chooses in each row, projected and normalized; zeros where there are none."""
    chosen = _checked(mask, tokens)
    count = chosen.sum(dim=1, keepdim=True)
    weights = chosen.to(tokens.dtype) / count.clamp(min=1).to(tokens.dtype)
    mean = torch.bmm(weights.unsqueeze(1), tokens).squeeze(1)  # (batch, width)
    embeds = F.normalize(project(mean), dim=-1)
    return torch.where(count > 0, embeds, torch.zeros_like(embeds))
