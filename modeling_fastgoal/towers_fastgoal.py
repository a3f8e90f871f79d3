"""What is asked of a backbone's two towers, and all that differs between backbones: this file speaks CLIP.

Everything else asks these functions and touches nothing of the towers' insides. `model` is any `CLIPModel`;
`vision_outputs` and `text_outputs` are what its towers return. Nothing here has parameters of its own, so a checkpoint
holds exactly CLIP's weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

TEXT_POSITIONS = "text_model.embeddings.position_embedding.weight"
"""Name of the table of text positions, which `stretch_positions` makes longer."""


def text_positions(model: Any) -> int:
    """How many tokens the text tower reads at most."""
    return int(model.text_model.embeddings.position_embedding.num_embeddings)


def cut_texts(input_ids: torch.Tensor, model: Any) -> torch.Tensor:
    """Texts cut at what the tower reads, `(texts, tokens)`; the last token left is EOS, as the tokenizer has it."""
    limit, eos = text_positions(model), model.text_model.eos_token_id
    # A legacy configuration says 2 and means the highest id.
    end = input_ids.max() if eos == 2 else eos
    cut = input_ids[:, :limit].clone()
    cut[~(cut == end).any(dim=1), -1] = end
    return cut


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


def patch_tokens(vision_outputs: Any) -> torch.Tensor:
    """The patches before the image tower's final norm, row-major, `(images, patches, width)`."""
    return vision_outputs.last_hidden_state[:, 1:]  # the class token comes first


def patch_embeds(model: Any, vision_outputs: Any) -> torch.Tensor:
    """Every patch in the joint space, not normalised, `(images, patches, dim)`."""
    return _project_patches(model, patch_tokens(vision_outputs))


def token_embeds(model: Any, text_outputs: Any) -> torch.Tensor:
    """Every text token in the joint space, not normalised, `(texts, tokens, dim)`."""
    return model.text_projection(text_outputs.last_hidden_state)  # the final norm is in it


def pool_patches(model: Any, vision_outputs: Any, mask: torch.Tensor) -> torch.Tensor:
    """The patches of a region of each image, pooled and brought into the joint space as the tower does it.

    Args:
        model: The model.
        vision_outputs: Of as many images as the mask has rows.
        mask: `(images, patches)`, True (or non-zero) where a patch belongs to the region.

    Returns:
        Embeddings, normalised, `(images, dim)`; a row of zeros where the mask is empty.

    Raises:
        ValueError: `mask` does not have one entry per patch.
    """
    return _pool(patch_tokens(vision_outputs), mask, partial(_project_patches, model))


def pool_text(model: Any, text_outputs: Any, mask: torch.Tensor) -> torch.Tensor:
    """The tokens of a sentence in each text, likewise: `mask` is `(texts, tokens)`.

    `text_outputs` must have been asked for with `output_hidden_states=True`: its `last_hidden_state` has been through
    the final norm, its last layer's output has not.
    """
    norm, projection = model.text_model.final_layer_norm, model.text_projection
    return _pool(text_outputs.hidden_states[-1], mask, lambda mean: projection(norm(mean)))


def _project_patches(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model.visual_projection(model.vision_model.post_layernorm(tokens))


def _pool(tokens: torch.Tensor, mask: torch.Tensor, project: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Mean of the tokens that the mask chooses in each row, projected and normalised; zeros where there are none."""
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"The mask must have one entry per token, {tuple(tokens.shape[:2])} (batch, tokens), got "
            f"{tuple(mask.shape)}."
        )
    chosen = mask.to(device=tokens.device, dtype=torch.bool)
    count = chosen.sum(dim=1, keepdim=True)
    weights = chosen.to(tokens.dtype) / count.clamp(min=1).to(tokens.dtype)
    mean = torch.bmm(weights.unsqueeze(1), tokens).squeeze(1)  # (batch, width)
    embeds = F.normalize(project(mean), dim=-1)
    return torch.where(count > 0, embeds, torch.zeros_like(embeds))
