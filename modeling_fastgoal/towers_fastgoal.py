"""What is asked of a backbone's two towers, with all that differs between backbones.

The rest of the code calls these functions and touches no layer of a tower. `model` is any `CLIPModel`, `MetaClip2Model`
or `SiglipModel`; `vision_outputs` and `text_outputs` are the outputs of its towers. Nothing here has parameters, so a
checkpoint holds exactly the weights of its class.

| | CLIP, MetaCLIP 2 | SigLIP, SigLIP 2 |
|---|---|---|
| first token of an image | class token | a patch |
| embedding of a region | mean of its patches, final norm, projection | attention head over its normed patches |
| embedding of a sentence | mean of its tokens, final norm, projection | the same, with the text head |
| embedding of a caption | at EOS of a causal tower | at the last position, padding included |
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from .families_fastgoal import family_of

TEXT_POSITIONS = "text_model.embeddings.position_embedding.weight"
"""Name of the weight with the text positions, which `stretch_positions` makes longer."""


def text_positions(model: Any) -> int:
    """Return the largest number of tokens that the text tower of a model, or of a model's configuration, reads."""
    return int(getattr(model, "config", model).text_config.max_position_embeddings)


def embedding_width(model: Any) -> int:
    """Return the width of the embeddings of a model, or of a model's configuration."""
    config = getattr(model, "config", model)
    return int(config.text_config.projection_size if family_of(config).pools_last else config.projection_dim)


def logit_bias(model: Any) -> Any:
    """Return the bias that is added to the logits, a scalar parameter, or None if the model's family has none."""
    return model.logit_bias if family_of(model).is_sigmoid else None


def is_sigmoid(model: Any, contrastive: str | None) -> bool:
    """Return whether the contrastive losses of a model are sigmoid losses, rather than InfoNCE.

    Args:
        model: A model or its configuration.
        contrastive: `softmax`, `sigmoid`, or None for the loss of the model's family.

    Raises:
        ValueError: There is no such loss, or the model has no bias for it.
    """
    family = family_of(model)
    if contrastive not in (None, "softmax", "sigmoid"):
        raise ValueError(f"`contrastive` must be softmax or sigmoid, got {contrastive!r}.")
    if contrastive == "sigmoid" and not family.is_sigmoid:
        raise ValueError(
            f"`contrastive` must be softmax for a {family.label}, got 'sigmoid': only a SigLIP has the bias that the "
            "sigmoid loss learns."
        )
    return family.is_sigmoid if contrastive is None else contrastive == "sigmoid"


def end_of_text(model: Any, input_ids: torch.Tensor | None = None) -> int:
    """Return the id of EOS. `input_ids` are texts that all contain it."""
    family, text = family_of(model), model.config.text_config
    if family.last_special_id is not None:
        return family.last_special_id
    if family.has_legacy_eos and text.eos_token_id == 2:
        return int(text.vocab_size - 1 if input_ids is None else input_ids.max())
    return int(text.eos_token_id)


def cut_texts(input_ids: torch.Tensor, model: Any) -> torch.Tensor:
    """Cut texts, `(texts, tokens)`, at the length of the model. The last token is EOS, as a tokenizer leaves it."""
    return end_texts(input_ids[:, : text_positions(model)], model, end_of_text(model, input_ids))


def end_texts(input_ids: torch.Tensor, model: Any, end: int) -> torch.Tensor:
    """Return texts, `(texts, tokens)`, with `end`, the id of EOS, as the last token of those that do not have it."""
    last = input_ids[:, -1:]
    # A short text of SigLIP may also end in padding.
    is_siglip = family_of(model).last_special_id is not None
    ended = last <= end if is_siglip else (input_ids == end).any(dim=1, keepdim=True)
    return torch.cat([input_ids[:, :-1], torch.where(ended, last, end)], dim=1)


def caption_words(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the `word_mask` of captions, `(captions, tokens)` bool, for a model of any family."""
    last_special_id = family_of(model).last_special_id
    if last_special_id is not None:
        return input_ids > last_special_id
    return word_mask(torch.ones_like(input_ids) if attention_mask is None else attention_mask)


def word_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return which tokens of a caption are words: not padding, not the first token (BOS), and not the last one (EOS).

    BOS sees nothing of the caption in a causal text tower. EOS represents the whole caption, which the global loss
    trains; a caption that was cut at the model's length also ends in EOS.

    Args:
        attention_mask: `(batch, tokens)`, non-zero for tokens, which padding follows.

    Returns:
        `(batch, tokens)` bool.
    """
    attended = attention_mask.bool()
    words = torch.zeros_like(attended)
    words[:, 1:-1] = attended[:, 1:-1] & attended[:, 2:]
    return words


def patch_tokens(model: Any, vision_outputs: Any) -> torch.Tensor:
    """Return the patches before the final norm or the pooling head, row-major, `(images, patches, width)`."""
    tokens: torch.Tensor = vision_outputs.last_hidden_state
    return tokens if family_of(model).has_image_head else tokens[:, 1:]  # without the class token


def patch_embeds(model: Any, vision_outputs: Any) -> torch.Tensor:
    """Return every patch in the joint space, not normalized, `(images, patches, dim)`."""
    tokens = patch_tokens(model, vision_outputs)
    if not family_of(model).has_image_head:
        return _project_patches(model, tokens)
    # Attention to a single token gives the value of that token.
    attention = model.vision_model.head.attention
    width = attention.embed_dim
    values = F.linear(tokens, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    return _end_of_head(model, attention.out_proj(values))


def token_embeds(model: Any, text_outputs: Any) -> torch.Tensor:
    """Return every text token in the joint space, not normalized, `(texts, tokens, dim)`."""
    return _text_projection(model)(text_outputs.last_hidden_state)  # which the final norm has been applied to


def pool_patches(model: Any, vision_outputs: Any, mask: torch.Tensor) -> torch.Tensor:
    """Pool the patches of a region of each image as the tower pools all patches, and project them.

    Args:
        model: The model.
        vision_outputs: Outputs of the image tower for as many images as the mask has rows.
        mask: `(images, patches)`, True (or non-zero) for patches of the region.

    Returns:
        Normalized embeddings, `(images, dim)`; a row of zeros where the mask is empty.

    Raises:
        ValueError: `mask` does not have one entry per patch.
    """
    tokens = patch_tokens(model, vision_outputs)
    if family_of(model).has_image_head:
        return _pool_with_head(model, tokens, mask)
    return _pool(tokens, mask, partial(_project_patches, model))


def record_tokens(model: Any) -> None:
    """Prepare a model for `recorded_tokens`."""
    norm = model.text_model.final_layer_norm
    norm.recorded = None
    norm.register_forward_pre_hook(_record)


def _record(norm: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    if norm.recorded is not None:
        norm.recorded.append(inputs[0])


@contextmanager
def recorded_tokens(model: Any) -> Iterator[list[torch.Tensor]]:
    """Record the tokens of the texts that are embedded inside, `(texts, tokens, width)`, before the final norm.

    With `output_hidden_states=True` transformers returns the same, but takes a lock, which `torch.compile` cannot
    trace.
    """
    norm = model.text_model.final_layer_norm
    recorded: list[Any] = []
    norm.recorded = recorded
    try:
        yield recorded
    finally:
        norm.recorded = None


def pool_text(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pool the tokens of a sentence in each text, and project them.

    Args:
        model: The model.
        tokens: Tokens of the texts before the final norm, `(texts, tokens, width)`, such as `recorded_tokens`. The norm
            is applied here, after pooling.
        mask: `(texts, tokens)`, True (or non-zero) for tokens of the sentence.

    Returns:
        Normalized embeddings, `(texts, dim)`; a row of zeros where the mask is empty.

    Raises:
        ValueError: `mask` does not have one entry per token.
    """
    norm, projection = model.text_model.final_layer_norm, _text_projection(model)
    return _pool(tokens, mask, lambda mean: projection(norm(mean)))


def _project_patches(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model.visual_projection(model.vision_model.post_layernorm(tokens))


def _text_projection(model: Any) -> Any:
    return model.text_model.head if family_of(model).pools_last else model.text_projection


def _pool_with_head(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Apply the pooling head to the patches in each row's mask, and normalize; zeros where the mask is empty."""
    chosen = _checked(mask, tokens)
    is_any = chosen.any(dim=1, keepdim=True)
    head = model.vision_model.head
    probe = head.probe.expand(len(tokens), -1, -1)
    ignored = ~(chosen | ~is_any)  # attention to no token at all would give NaN
    hidden = head.attention(probe, tokens, tokens, key_padding_mask=ignored)[0]
    embeds = F.normalize(_end_of_head(model, hidden[:, 0]), dim=-1)
    return torch.where(is_any, embeds, torch.zeros_like(embeds))


def _end_of_head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    head = model.vision_model.head
    return hidden + head.mlp(head.layernorm(hidden))


def _pool(tokens: torch.Tensor, mask: torch.Tensor, project: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Average the tokens in each row's mask, project and normalize; zeros where the mask is empty."""
    chosen = _checked(mask, tokens)
    count = chosen.sum(dim=1, keepdim=True)
    weights = chosen.to(tokens.dtype) / count.clamp(min=1).to(tokens.dtype)
    mean = torch.bmm(weights.unsqueeze(1), tokens).squeeze(1)  # (batch, width)
    embeds = F.normalize(project(mean), dim=-1)
    return torch.where(count > 0, embeds, torch.zeros_like(embeds))


def _checked(mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mask as bool on the device of the tokens. Raise `ValueError` if their shapes differ."""
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"The mask must have one entry per token, {tuple(tokens.shape[:2])} (batch, tokens), got "
            f"{tuple(mask.shape)}."
        )
    return mask.to(device=tokens.device, dtype=torch.bool)
