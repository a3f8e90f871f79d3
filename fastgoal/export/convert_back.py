"""Convert a CLIP to the files of open_clip, or to the `.pt` file of OpenAI and Long-CLIP: the reverse of `convert`."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils import logging

from fastgoal.modeling_fastgoal.families_fastgoal import CLIP, family_of
from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.load import check_model, load_model
from fastgoal.processing.files import write_json

from .convert import LAYERS, MODULES, PARAMETERS, TRANSPOSED
from .model_folder import new_folder, require_new_folder

logger = logging.get_logger(__name__)

LAYOUTS = ("open_clip", "original")
EPSILON = 1e-5
VOCABULARY = 49408


def convert_back(source: str, output: str | os.PathLike[str], to: str) -> list[str]:
    """Write a CLIP in a layout of another project. Every weight stays equal to the bit.

    `open_clip` writes `open_clip_model.safetensors` and `open_clip_config.json`; load them with
    `open_clip.create_model_and_transforms("local-dir:" + folder)`. `original` writes a state dict with the names of
    OpenAI: `clip.pt`, or `longclip.pt` with the two tables of Long-CLIP if the model reads 248 tokens.

    Args:
        source: Folder or Hub id of a CLIP or an adapter.
        output: Folder to write, new or empty.
        to: `open_clip` or `original`.

    Returns:
        Names of the files.

    Raises:
        ValueError: The model cannot be loaded, is not a CLIP, or has settings that the layout does not have.
    """
    folder = require_new_folder(output)
    if to not in LAYOUTS:
        raise ValueError(f"`to` must be one of {', '.join(LAYOUTS)}, got {to!r}.")
    config = check_model(source, "source")
    if family_of(config) is not CLIP:
        raise ValueError(f"`source={source}` is a {family_of(config).label}, and only a CLIP has the layout `to={to}`.")
    settings = _open_clip_config(config, source) if to == "open_clip" else _check_original(config, source)
    model, processor = load_model(source, "cpu", argument="source")
    settings["model_cfg"]["text_cfg"]["context_length"] = text_positions(model)
    state = original_names(model.state_dict())
    with new_folder(folder) as draft:
        if to == "open_clip":
            images = processor.image_processor
            settings["preprocess_cfg"] = {"mean": [*images.image_mean], "std": [*images.image_std]}
            write_json(draft / "open_clip_config.json", settings)
            save_file(state, draft / "open_clip_model.safetensors", {"format": "pt"})
        elif text_positions(model) == CLIP.default_length:
            state["positional_embedding_res"] = state["positional_embedding"].clone()
            torch.save(state, draft / "longclip.pt")
        else:
            torch.save(state, draft / "clip.pt")
        return sorted(path.name for path in draft.iterdir())


def original_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename and reshape the weights of transformers' `CLIPModel` as OpenAI, Long-CLIP and open_clip have them.

    It is the reverse of `clip_names`.
    """
    modules = {module: name for name, module in MODULES.items() if name != "visual.proj"}
    names = {name: original for original, name in [*PARAMETERS.items(), *TRANSPOSED.items()]}
    layers = {layer: name for name, layer in LAYERS.items()}
    renamed = {}
    for name, tensor in state.items():
        module, _, parameter = name.rpartition(".")
        tower, _, rest = module.partition(".encoder.layers.")
        if rest:
            index, _, layer = rest.partition(".")
            block = f"{'visual.' if tower == 'vision_model' else ''}transformer.resblocks.{index}"
            if layer in layers:
                renamed[f"{block}.{layers[layer]}.{parameter}"] = tensor
            elif layer == "self_attn.q_proj":
                parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                renamed[f"{block}.attn.in_proj_{parameter}"] = torch.cat(parts)
        elif name in names:
            renamed[names[name]] = tensor.T if names[name] in TRANSPOSED else tensor
        else:
            renamed[f"{modules[module]}.{parameter}" if module in modules else name] = tensor
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def _open_clip_config(config: Any, source: str) -> dict[str, Any]:
    """Return `open_clip_config.json`, without the settings of images."""
    vision, text = config.vision_config, config.text_config
    activation = _shared(vision, text, "hidden_act", source)
    if activation not in ("gelu", "quick_gelu"):
        raise ValueError(f"`source={source}` has `hidden_act={activation}`, and open_clip has gelu and quick_gelu.")
    if text.vocab_size != VOCABULARY:
        logger.warning(
            f"The model has {text.vocab_size} tokens, and open_clip's tokenizer {VOCABULARY}: use the model's own one."
        )
    common = {"norm_kwargs": {"eps": _shared(vision, text, "layer_norm_eps", source)}}
    towers = [
        {
            **{"width": tower.hidden_size, "layers": tower.num_hidden_layers, **common},
            "mlp_ratio": tower.intermediate_size / tower.hidden_size,
        }
        for tower in (vision, text)
    ]
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": activation == "quick_gelu",
            "vision_cfg": {
                **towers[0],
                **{"image_size": vision.image_size, "patch_size": vision.patch_size},
                "head_width": vision.hidden_size // vision.num_attention_heads,
            },
            "text_cfg": {**towers[1], "heads": text.num_attention_heads, "vocab_size": text.vocab_size},
        }
    }


def _check_original(config: Any, source: str) -> dict[str, Any]:
    """Raise `ValueError` for a model that the code of OpenAI and Long-CLIP would compute differently."""
    fixed = {"hidden_act": "quick_gelu", "layer_norm_eps": EPSILON}
    for tower in (config.vision_config, config.text_config):
        expected = {**fixed, "num_attention_heads": tower.hidden_size // 64, "intermediate_size": 4 * tower.hidden_size}
        for name, value in expected.items():
            if getattr(tower, name) != value:
                raise ValueError(
                    f"`source={source}` has `{name}={getattr(tower, name)}`, and the code of OpenAI and Long-CLIP "
                    f"computes with {value} at this width. Convert it to open_clip."
                )
    return {"model_cfg": {"text_cfg": {}}}


def _shared(vision: Any, text: Any, name: str, source: str) -> Any:
    values = [getattr(tower, name) for tower in (vision, text)]
    if values[0] != values[1]:
        raise ValueError(
            f"`source={source}` has `{name}` {values[0]} and {values[1]} in its towers, and open_clip has one."
        )
    return values[0]
