"""Convert CLIP weights of other projects to a model folder: GOAL's `.pth`, Long-CLIP's `.pt`, open_clip's files.

Only tensors are read. Pickles are opened with `weights_only=True`, which never runs code in them. Every name in a file
is used, known not to be a weight, or reported.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fastgoal.modeling_fastgoal.families_fastgoal import CLIP, family_of
from fastgoal.modeling_fastgoal.positions_fastgoal import KEPT_POSITIONS
from fastgoal.modeling_fastgoal.towers_fastgoal import TEXT_POSITIONS
from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import refuse_not_finite
from fastgoal.processing.tokens import set_text_length

_SAVE_AGAIN = (
    "Save a TorchScript archive or a whole pickled model again with the program that wrote it: "
    "`torch.save(model.state_dict(), 'weights.pt')`."
)
# Keys under which training programs store the weights next to the state of the optimizer.
WRAPPERS = ("state_dict", "model_state_dict", "model")
# Buffers that every model creates itself.
NOT_WEIGHTS = re.compile(r"(.*\.)?(position_ids|attn_mask|input_resolution|context_length|vocab_size)")

# Modules with a weight and possibly a bias.
MODULES = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # the spelling of transformers
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection",
}
PARAMETERS = {
    "positional_embedding": TEXT_POSITIONS,
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
}
# Stored as (width, dim) for `x @ matrix`; a linear layer stores (dim, width).
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
# Names that only unsupported models have.
_UNSUPPORTED = {
    r"visual\.(layer[1-4]\.\d+\.conv1|attnpool\.).*": "a ResNet image tower, as in CLIP RN50",
    r"text_decoder\..*|logit_scale_caption|visual\.attn_pool\..*": "a CoCa with a text decoder or an attention pooler",
    r"vision_model\.head\.probe|visual\.trunk\.attn_pool\..*": "an image tower with a pooling head, as in SigLIP",
    r"visual\.(trunk\.)?(blocks\.\d+\.(attn\.(q_bias|q_proj\..*)|mlp\.w\d+\..*)|rope\..*)": "an EVA image tower",
    r"visual\.trunk\..*": "an image tower of timm",
    r"text\.transformer\.(encoder|embeddings)\..*|text\.proj\..*": "a text tower of transformers, such as BERT",
}
LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(?P<visual>visual\.)?transformer\.resblocks\.(?P<layer>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class Conversion:
    """The result of `convert`.

    Attributes:
        layout: Layout of the names in the file: `transformers` (GOAL), `long-clip`, or `open_clip` (also OpenAI's).
        tensors: Number of tensors that became weights.
        ignored: Entries that are not weights, such as masks or the state of an optimizer.
        dropped: Tensors that do not belong to the model, with `drop_unmatched`.
        positions: Number of text positions in the file.
        max_text_length: Number of text positions of the written model.
    """

    layout: str
    tensors: int
    ignored: list[str]
    dropped: list[str]
    positions: int
    max_text_length: int


def convert(
    source: str | os.PathLike[str],
    base: str,
    output: str | os.PathLike[str],
    max_text_length: int | None = None,
    drop_unmatched: bool = False,
) -> Conversion:
    """Write a file of CLIP weights as a folder that `AutoModel.from_pretrained` loads.

    Args:
        source: `.safetensors`, or a PyTorch file with a state dict (`.pt`, `.pth`, `.bin`).
        base: Folder or Hub id of a CLIP checkpoint of the same shape. It provides the configuration (number of heads,
            activation, ...), the tokenizer, and the image processor, but no weights.
        output: Folder to write, new or empty.
        max_text_length: Number of tokens that the model reads, from those of the file to 1,024. By default 248 for a
            file of 77 positions; others keep their length.
        drop_unmatched: Drop tensors that do not belong to the model instead of raising an error.

    Raises:
        ValueError: The file does not hold a state dict of plain tensors, or does not fit the base. The message lists
            the names or shapes.
        FileNotFoundError: The file does not exist.
    """
    from transformers import CLIPModel

    from fastgoal.modeling_fastgoal.modeling_fastgoal import FastGoalCLIPModel
    from fastgoal.processing.checkpoints.load import check_model, load_processor

    from .model_folder import require_new_folder, write_model_folder

    output = require_new_folder(output)
    config = check_model(base, "base")
    if family_of(config) is not CLIP:
        raise ValueError(
            f"`base={base}` is a {family_of(config).label}, and only CLIP weights can be converted. Models on the"
            " Hub need no conversion: use them directly, for example with `fastgoal train --model`."
        )
    with loading(f"the tokenizer and image processor of `base={base}`", base):
        processor = load_processor(base, stretch=True)
    state, ignored = read_state_dict(source)
    for pattern, part in _UNSUPPORTED.items():
        if unsupported := next((name for name in state if re.fullmatch(pattern, name)), None):
            raise ValueError(
                f"`source={source}` has {part} ({unsupported}), which the CLIP model of transformers does not support. "
                "Only CLIP models with two transformer towers (ViT-B/32 to ViT-bigG-14) can be converted."
            )
    try:
        state, layout = clip_names(state)
    except ValueError as error:
        raise ValueError(f"`source={source}`: {error}") from None
    positions = config.text_config.max_position_embeddings
    if TEXT_POSITIONS in state:
        table = state[TEXT_POSITIONS]
        if table.ndim != 2 or len(table) < 2:
            raise ValueError(
                f"`source={source}`: the text positions must have the shape (tokens, width), got {tuple(table.shape)}."
            )
        positions = len(table)
    config.text_config.max_position_embeddings = positions
    with loading(f"`base={base}`", base):
        clip = CLIPModel(config)
    expected = {name: tensor.shape for name, tensor in clip.state_dict().items()}
    dropped = _check(state, expected, str(source), base, drop_unmatched)
    clip.load_state_dict({name: state[name].float() for name in expected})

    if max_text_length is None and positions < CLIP.positions:
        max_text_length = positions
    model: Any = FastGoalCLIPModel.from_base(clip, max_text_length)
    length = model.config.text_config.max_position_embeddings
    set_text_length(processor.tokenizer, length)
    refuse_not_finite(model.state_dict().items(), f"`source={source}`")
    origin = f"{Path(source).name} ({layout} layout)"
    write_model_folder(output, model, processor, base_model=base, converted_from=origin)
    return Conversion(layout, len(state) - len(dropped), ignored, dropped, positions, length)


def read_state_dict(source: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Read the tensors of a file by name, and the names of its entries that are not weights.

    Raises:
        ValueError: The file cannot be read, or holds anything else than tensors and plain containers.
        FileNotFoundError: The file does not exist.
    """
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"`source={path}` does not exist or is a folder. Name a file of CLIP weights.")
    content: Any
    if path.suffix == ".safetensors":
        with loading(f"`source={path}`", str(path)):
            content = load_file(path)
    else:
        with loading(f"`source={path}`", str(path), _SAVE_AGAIN):
            content = torch.load(path, map_location="cpu", weights_only=True)
    ignored: list[str] = []
    for _ in WRAPPERS:
        inner = [name for name in WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(name), Mapping)]
        if not inner:
            break
        ignored += [str(name) for name in content if name != inner[0]]
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        is_dict = isinstance(content, Mapping)
        got = f"a dict with the keys {[*map(str, content)][:8]}" if is_dict else type(content).__name__
        raise ValueError(f"`source={path}` must hold a state dict, tensors by name, got {got}.")
    state: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        # Data-parallel wrappers and torch.compile add prefixes.
        bare = re.sub(r"^(module\.|_orig_mod\.)+", "", str(name))
        if not isinstance(value, torch.Tensor) or NOT_WEIGHTS.fullmatch(bare):
            ignored.append(str(name))
            continue
        if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.device.type != "cpu":
            raise ValueError(
                f"`source={path}`: {name} must be a dense tensor of real numbers, got {value.layout}, {value.dtype} on"
                f" {value.device}."
            )
        state[bare] = value
    return state, ignored


def clip_names(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """Rename and reshape weights as transformers' `CLIPModel` has them. Unknown names stay unchanged.

    Args:
        state: Weights of GOAL (which has the names of transformers), Long-CLIP, open_clip, or OpenAI.

    Returns:
        The weights and the layout that they had: `transformers`, `long-clip`, or `open_clip`.

    Raises:
        ValueError: A fused tensor does not divide into query, key, and value, or a table of Long-CLIP is missing.
    """
    if any(name.startswith(("text_model.", "vision_model.")) for name in state):
        return dict(state), "transformers"
    named: dict[str, torch.Tensor] = {}
    # Models of open_clip with a separate text tower have the prefix `text.`.
    source = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    if len(source) < len(state):
        raise ValueError("the file has the weights of the text tower twice, with and without the prefix `text.`.")
    layout = "open_clip"
    stretched = source.pop("positional_embedding_res", None)
    if stretched is not None:
        layout = "long-clip"
        kept = source.get("positional_embedding")
        if kept is None or kept.shape != stretched.shape or kept.ndim != 2:
            raise ValueError(
                f"`positional_embedding` must have the shape of `positional_embedding_res`, {tuple(stretched.shape)}, "
                f"got {None if kept is None else tuple(kept.shape)}."
            )
        # One table has CLIP's first positions, and the other one the stretched rest.
        source["positional_embedding"] = torch.cat([kept[:KEPT_POSITIONS], stretched[KEPT_POSITIONS:]])
    for name, tensor in source.items():
        block = _BLOCK.fullmatch(name)
        if block is not None:
            named.update(_layer(name, block, tensor))
        elif name in TRANSPOSED and tensor.ndim == 2:
            named[TRANSPOSED[name]] = tensor.T.contiguous()
        elif name == "logit_scale" and tensor.numel() == 1:
            named[name] = tensor.reshape(())
        else:
            module, _, parameter = name.rpartition(".")
            named[f"{MODULES[module]}.{parameter}" if module in MODULES else PARAMETERS.get(name, name)] = tensor
    return named, layout


def _layer(name: str, block: re.Match[str], tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rename a tensor of a transformer block; split the fused input projection of the attention into three."""
    tower = "vision_model" if block["visual"] else "text_model"
    prefix = f"{tower}.encoder.layers.{block['layer']}"
    rest = block["rest"]
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        if tensor.ndim == 0 or len(tensor) % 3:
            raise ValueError(f"`{name}` must hold query, key, and value in 3 equal parts, got {tuple(tensor.shape)}.")
        parameter = rest.removeprefix("attn.in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}.self_attn.{letter}_proj.{parameter}": part.contiguous() for letter, part in parts}
    module, _, parameter = rest.rpartition(".")
    return {f"{prefix}.{LAYERS[module]}.{parameter}" if module in LAYERS else name: tensor}


def _check(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size], source: str, base: str, drop_unmatched: bool
) -> list[str]:
    """Compare names and shapes with those of the model, and return the names that do not belong to it."""
    unmatched = sorted(set(state) - set(expected))
    missing = sorted(set(expected) - set(state))
    shapes = [
        f"{name} must be {tuple(shape)}, got {tuple(state[name].shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    problems = []
    if shapes:
        problems.append(f"Wrong shapes ({len(shapes)}): {_first(shapes)}.")
    if missing:
        problems.append(f"Missing weights ({len(missing)}): {_first(missing)}.")
    if unmatched and (problems or not drop_unmatched):
        problems.append(f"Unknown names ({len(unmatched)}): {_first(unmatched)}.")
    if not problems:
        return unmatched
    way_out = "To drop the unknown names, set `drop_unmatched=True`."
    if shapes or missing:
        way_out = "Set `base` to the CLIP model that the weights were trained from."
    raise ValueError(f"`source={source}` does not fit `base={base}`. {' '.join(problems)} {way_out}")


def _first(items: list[str], limit: int = 20) -> str:
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return "; ".join(items[:limit]) + rest
