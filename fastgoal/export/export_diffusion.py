"""Export the text tower of a CLIP as the text encoder of diffusion models, for diffusers and ComfyUI."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity
from transformers.utils import logging

from fastgoal.hub_cards.cards import CARD, card_name, is_hub_id
from fastgoal.modeling_fastgoal.families_fastgoal import CLIP, family_of
from fastgoal.modeling_fastgoal.towers_fastgoal import TEXT_POSITIONS, text_positions
from fastgoal.processing.checkpoints.fingerprints import refuse_not_finite
from fastgoal.processing.checkpoints.load import check_model, load_model
from fastgoal.processing.files import write_json, write_text
from fastgoal.processing.tokens import save_vocabulary

from .model_folder import new_folder, require_new_folder

logger = logging.get_logger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DRIFT = "drift.json"
PROMPTS = (
    "a dog",
    "a photograph of an astronaut riding a horse",
    "an oil painting of a lighthouse on a cliff at sunset, dramatic clouds, warm light",
    "A red bicycle leans against a white wall. A cat sleeps in its basket.",
    "A wide street in the rain at night. Neon signs are reflected in the puddles, a woman with a yellow umbrella walks "
    "away from the camera, and two taxis wait at a traffic light.",
    "On a wooden table there are a blue cup, three green apples and an open book. Behind the table a window shows a "
    "garden with tall trees, and a small bird sits on the sill. The light comes from the left and casts long shadows.",
)


@dataclass(frozen=True)
class Slot:
    """A text encoder of published diffusion models.

    Attributes:
        name: Its name in ComfyUI.
        pipelines: Where diffusers uses it.
        activation: Activation that ComfyUI computes it with.
        is_projected: Whether files for ComfyUI have the text projection.
    """

    name: str
    pipelines: str
    activation: str
    is_projected: bool


SLOTS = {
    (768, 12): Slot("clip_l", "Stable Diffusion 1, SDXL, SD3 and Flux (`text_encoder`)", "quick_gelu", False),
    (1024, 24): Slot("clip_h", "Stable Diffusion 2 (`text_encoder`)", "gelu", True),
    (1280, 32): Slot("clip_g", "SDXL and SD3 (`text_encoder_2`)", "gelu", True),
}
"""Slots by hidden size and number of layers."""


@dataclass(frozen=True)
class Drift:
    """How far a text encoder is from that of its base on prompts that both read, as cosine similarities.

    Attributes:
        base: The base.
        prompts: Number of prompts, of at most 77 tokens.
        hidden_states: Mean over all tokens of the last hidden state.
        lowest_hidden_state: Lowest of them.
        pooled: Mean of the pooled outputs.
        lowest_pooled: Lowest of them.
    """

    base: str
    prompts: int
    hidden_states: float
    lowest_hidden_state: float
    pooled: float
    lowest_pooled: float


@dataclass(frozen=True)
class DiffusionExport:
    """The result of `export_diffusion`: the slot, the number of text positions, and the drift if a base is known."""

    slot: Slot
    positions: int
    drift: Drift | None


def export_diffusion(
    model: str,
    output: str | os.PathLike[str],
    dtype: str = "fp32",
    positions: int | None = None,
    base: str | None = None,
) -> DiffusionExport:
    """Write a folder with the text encoder of a CLIP for diffusion models.

    `text_encoder/` is a `CLIPTextModel`, `text_encoder_with_projection/` a `CLIPTextModelWithProjection`, and
    `tokenizer/` reads as many tokens as they do. A file such as `clip_l.safetensors` is for ComfyUI. Weights have the
    names of published text encoders (`text_model.*`), which every version of transformers loads. `drift.json` has the
    `Drift`.

    Args:
        model: Folder or Hub id of a CLIP or an adapter, with a text tower of a known size (see `SLOTS`).
        output: Folder to write, new or empty.
        dtype: `fp32`, `fp16` or `bf16`.
        positions: Keep only this number of text positions, from the first; at least 77. Default: all.
        base: Folder or Hub id of the model that the drift is measured to; by default the one that the model's card
            names.

    Raises:
        ValueError: The model cannot be loaded, is not a CLIP, fits no slot, or reads 77 tokens without `positions`; or
            a weight does not fit `dtype`.
    """
    folder = require_new_folder(output)
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    slot = _slot_of(check_model(model), model)
    loaded, processor = load_model(model, "cpu")
    length = text_positions(loaded)
    if positions is None and length == CLIP.positions:
        raise ValueError(
            f"`model={model}` reads {length} tokens, as the text encoders of diffusion models do: it was never "
            f"stretched. Train it first, or set `positions={length}` to export it as it is."
        )
    if positions is not None and not CLIP.positions <= positions <= length:
        raise ValueError(f"`positions` must be from {CLIP.positions} to {length}, got {positions}.")
    positions = positions or length
    config = text_config(loaded, positions)
    if config["hidden_act"] != slot.activation:
        logger.warning(
            f"The model computes with {config['hidden_act']}, and ComfyUI computes {slot.name} with {slot.activation}: "
            "use the folders with diffusers, and not the single file."
        )
    state = {name: tensor.to(DTYPES[dtype]) for name, tensor in text_state(loaded, positions).items()}
    refuse_not_finite(state.items(), f"`model={model}` in `dtype={dtype}`")
    drift = _measure(model, base, loaded, processor)
    unprojected = {name: tensor for name, tensor in state.items() if name != "text_projection.weight"}
    with new_folder(folder) as draft:
        for name, class_name, weights in (
            ("text_encoder", "CLIPTextModel", unprojected),
            ("text_encoder_with_projection", "CLIPTextModelWithProjection", state),
        ):
            (draft / name).mkdir()
            settings = {**config, "architectures": [class_name], "dtype": str(DTYPES[dtype]).removeprefix("torch.")}
            write_json(draft / name / "config.json", settings)
            save_file(weights, draft / name / "model.safetensors", {"format": "pt"})
        save_file(state if slot.is_projected else unprojected, draft / f"{slot.name}.safetensors", {"format": "pt"})
        _write_tokenizer(draft / "tokenizer", processor.tokenizer, positions)
        if drift is not None:
            write_json(draft / DRIFT, asdict(drift))
        write_text(draft / CARD, _card(card_name(folder.name), model, slot, positions, drift))
    return DiffusionExport(slot, positions, drift)


def _slot_of(config: Any, model: str) -> Slot:
    """Return the slot that a model fits."""
    sizes = "; ".join(f"{slot.name} {width}x{layers}" for (width, layers), slot in SLOTS.items())
    if family_of(config) is not CLIP:
        raise ValueError(
            f"`model={model}` is a {family_of(config).label}, and text encoders of diffusion models are CLIP: {sizes}."
        )
    text = config.text_config
    if (text.hidden_size, text.num_hidden_layers) not in SLOTS:
        raise ValueError(
            f"`model={model}` has a text tower of {text.hidden_size}x{text.num_hidden_layers} (width x layers), and "
            f"diffusion models have no slot for it: {sizes}. Train a CLIP of one of these sizes, such as ViT-L/14."
        )
    return SLOTS[text.hidden_size, text.num_hidden_layers]


def text_state(model: Any, positions: int) -> dict[str, torch.Tensor]:
    """Return the weights of the text tower and its projection, with the names of `CLIPTextModelWithProjection`."""
    state = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith("text_model.") or name == "text_projection.weight"
    }
    return {**state, TEXT_POSITIONS: state[TEXT_POSITIONS][:positions].contiguous()}


def text_config(model: Any, positions: int) -> dict[str, Any]:
    """Return the configuration of the text encoder."""
    config = model.config.text_config.to_dict()
    return {
        **{
            name: value
            for name, value in config.items()
            if name not in ("_name_or_path", "auto_map", "transformers_version")
        },
        "model_type": "clip_text_model",
        "max_position_embeddings": positions,
        "projection_dim": model.config.projection_dim,
    }


def _write_tokenizer(folder: Path, tokenizer: Any, length: int) -> None:
    """Write a CLIP tokenizer with the files that all versions of transformers read."""
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    own = ("auto_map", "processor_class")
    settings = {name: value for name, value in settings.items() if name not in own}
    write_json(folder / "tokenizer_config.json", {**settings, "tokenizer_class": "CLIPTokenizer"})
    save_vocabulary(tokenizer, folder)


def _measure(model: str, base: str | None, loaded: Any, processor: Any) -> Drift | None:
    """Return the drift to the base, or None if the base is not known or not here."""
    name = base or _base_of(model)
    if name is None:
        logger.warning("The drift was not measured, because the model's card names no base. Name it with `base`.")
        return None
    try:
        other, _ = load_model(name, "cpu", argument="base")
    except ValueError as error:
        if base is not None:
            raise
        logger.warning(f"The drift was not measured: {error}")
        return None
    options = {"padding": True, "truncation": True, "max_length": CLIP.positions, "return_tensors": "pt"}
    inputs = processor.tokenizer([*PROMPTS], **options)
    with torch.no_grad():
        ours, theirs = (tower.text_model(input_ids=inputs["input_ids"]) for tower in (loaded, other))
    is_token = inputs["attention_mask"].bool()
    hidden = cosine_similarity(ours.last_hidden_state, theirs.last_hidden_state, dim=-1)[is_token]
    pooled = cosine_similarity(ours.pooler_output, theirs.pooler_output)
    values = [value.item() for tensor in (hidden, pooled) for value in (tensor.mean(), tensor.min())]
    return Drift(name, len(PROMPTS), *values)


def _base_of(model: str) -> str | None:
    """Return the base that the card of a model folder names."""
    card = Path(model) / "README.md"
    if not card.is_file():
        return None
    base = ModelCard.load(card, ignore_metadata_errors=True).data.base_model
    return str(base[0] if isinstance(base, list) else base) if base else None


def _card(name: str, model: str, slot: Slot, positions: int, drift: Drift | None) -> str:
    """Return the card of an exported folder."""
    data = ModelCardData(
        library_name="diffusers",
        base_model=model if is_hub_id(model) else None,
        tags=["fastgoal", "clip", "text-encoder", "long-captions"],
    )
    lines = [
        *("---", data.to_yaml(), "---", "", f"# {name}", ""),
        f"A CLIP text encoder for diffusion models that reads {positions} tokens, written by fastgoal:",
        f"{slot.pipelines} in diffusers, `{slot.name}.safetensors` in ComfyUI.",
        "Load the encoder and the tokenizer together. The quality of generated images was not measured.",
    ]
    if drift is not None:
        lines += [
            *("", f"Cosine similarity to the base on {drift.prompts} prompts of at most {CLIP.positions} tokens:", ""),
            *("| | mean | lowest |", "|---|---|---|"),
            f"| hidden states | {drift.hidden_states:.4f} | {drift.lowest_hidden_state:.4f} |",
            f"| pooled output | {drift.pooled:.4f} | {drift.lowest_pooled:.4f} |",
        ]
    return "\n".join([*lines, ""])
