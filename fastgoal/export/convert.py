"""Other projects' CLIP weights as a folder of ours: GOAL's `.pth`, Long-CLIP's `.pt`, open_clip state dicts.

Only tensors are read. Pickles are opened with `weights_only=True`, which never runs what they hold, and every name in
a file is either used, known not to be a weight, or reported.
"""

import os
import pickle
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

_NO_STATE_DICT = (
    "A TorchScript archive or a whole pickled model must be saved again by the program that made it: "
    "`torch.save(model.state_dict(), 'weights.pt')`."
)
# Keys under which training programs put the weights beside their optimizer and the like.
WRAPPERS = ("state_dict", "model_state_dict", "model")
# Tensors that are no weights: tables and masks that every model makes for itself.
NOT_WEIGHTS = re.compile(r"(.*\.)?(position_ids|attn_mask|input_resolution|context_length|vocab_size)")

# Modules, each with a weight and perhaps a bias.
_MODULES = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # this is how transformers spells it
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection",
}
_PARAMETERS = {
    "positional_embedding": TEXT_POSITIONS,
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
}
# Stored as (width, dim) and used as `x @ matrix`, where a linear layer stores (dim, width).
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
# What other models have and CLIP has not, by names that only they use: no base can fit them.
_STRANGERS = {
    r"visual\.(layer[1-4]\.\d+\.conv1|attnpool\.).*": "the ResNet image tower of CLIP RN50 and its like",
    r"text_decoder\..*|logit_scale_caption|visual\.attn_pool\..*": "a CoCa, with a text decoder or a pooler of its own",
    r"vision_model\.head\.probe|visual\.trunk\.attn_pool\..*": "an image tower with a pooling head, such as SigLIP's",
    r"visual\.(trunk\.)?(blocks\.\d+\.(attn\.(q_bias|q_proj\..*)|mlp\.w\d+\..*)|rope\..*)": "an EVA image tower",
    r"visual\.trunk\..*": "an image tower of timm",
    r"text\.transformer\.(encoder|embeddings)\..*|text\.proj\..*": "a text tower of transformers, such as a BERT",
}
_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(?P<visual>visual\.)?transformer\.resblocks\.(?P<layer>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class Conversion:
    """What `convert` made.

    Attributes:
        layout: `transformers` (GOAL), `long-clip` or `open_clip` (and OpenAI's), by the names in the file.
        tensors: Tensors of the file that became weights.
        ignored: Entries of the file that are no weights, such as masks or an optimizer's state.
        dropped: Tensors that have no place in the model, left out because the caller asked for it.
        positions: Text positions in the file.
        max_text_length: Text positions of the model that was written.
    """

    layout: str
    tensors: int
    ignored: list[str]
    dropped: list[str]
    positions: int
    max_text_length: int


def convert(
    file: str | os.PathLike[str],
    base: str,
    output: str | os.PathLike[str],
    max_text_length: int = 248,
    drop_unmatched: bool = False,
) -> Conversion:
    """Write a file of CLIP weights as a folder that `AutoModel.from_pretrained` loads.

    Args:
        file: `.safetensors`, or a PyTorch file with a state dict (`.pt`, `.pth`, `.bin`).
        base: CLIP checkpoint of the same shape, a folder or a Hub id: gives the configuration (number of heads,
            activation...), tokenizer and image processor. Its weights are not used.
        output: Folder to write, new or empty.
        max_text_length: Tokens the model shall read, for a file of 77 positions.
        drop_unmatched: Leave tensors out that have no place in the model, instead of stopping.

    Raises:
        ValueError: The file is no state dict, holds other objects than tensors, or does not fit the base; the message
            lists the names or shapes.
        FileNotFoundError: There is no such file.
    """
    from transformers import CLIPModel

    from fastgoal.modeling_fastgoal.modeling_fastgoal import FastGoalCLIPModel
    from fastgoal.processing.checkpoints.load import check_model, load_processor

    from .model_folder import require_new_folder, write_model_folder

    output = require_new_folder(output)
    config = check_model(base, "base")
    if family_of(config) is not CLIP:
        raise ValueError(
            f"`base={base}` is of type {config.model_type!r}, and files can only be made into CLIPs: a SigLIP or a "
            "MetaCLIP 2 of the Hub needs no conversion, `fastgoal train --model` takes it as it is."
        )
    with loading(f"the tokenizer and image processor of `base={base}`", base):
        processor = load_processor(base, stretch=True)
    state, ignored = read_state_dict(file)
    for pattern, what in _STRANGERS.items():
        if found := next((name for name in state if re.fullmatch(pattern, name)), None):
            raise ValueError(
                f"file='{file}' holds {what} ({found}), which no CLIP of transformers has: no base can fit it. Only "
                "CLIPs whose two towers are transformers (ViT-B/32 to ViT-bigG-14) can be converted."
            )
    try:
        state, layout = clip_names(state)
    except ValueError as error:
        raise ValueError(f"file='{file}': {error}") from None
    positions = config.text_config.max_position_embeddings
    if TEXT_POSITIONS in state:
        table = state[TEXT_POSITIONS]
        if table.ndim != 2 or len(table) < 2:
            raise ValueError(
                f"file='{file}': the text positions have the shape {tuple(table.shape)}, not (tokens, width)."
            )
        positions = len(table)
    config.text_config.max_position_embeddings = positions
    with loading(f"--base {base}", base):
        clip = CLIPModel(config)
    expected = {name: tensor.shape for name, tensor in clip.state_dict().items()}
    dropped = _check(state, expected, str(file), base, drop_unmatched)
    clip.load_state_dict({name: state[name].float() for name in expected})

    # Only CLIP's positions can be stretched: a text tower of others was stretched before, or keeps what it has.
    model: Any = FastGoalCLIPModel.from_base(clip, max_text_length if positions == CLIP.positions else positions)
    length = model.config.text_config.max_position_embeddings
    processor.tokenizer.model_max_length = length
    refuse_not_finite(model.state_dict().items(), f"'{file}'")
    origin = f"{Path(file).name} ({layout} layout)"
    write_model_folder(output, model, processor, base_model=base, converted_from=origin)
    return Conversion(layout, len(state) - len(dropped), ignored, dropped, positions, length)


def read_state_dict(file: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of a file by name, and the names of its entries that are no weights.

    A pickle is never executed: only tensors and plain containers are accepted.

    Raises:
        ValueError: The file cannot be read as that.
        FileNotFoundError: There is no such file.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"file='{path}' does not exist or is a folder; name a file with CLIP weights.")
    content: Any
    if path.suffix == ".safetensors":
        with loading(f"file='{path}'", str(path)):
            content = load_file(path)
    else:
        with loading(f"file='{path}'", str(path), _NO_STATE_DICT):
            content = _unpickle(path)
    ignored: list[str] = []
    for _ in WRAPPERS:
        inner = [name for name in WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(name), Mapping)]
        if not inner:
            break
        wrapper = inner[0]
        ignored += [str(name) for name in content if name != wrapper]
        content = content[wrapper]
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        is_dict = isinstance(content, Mapping)
        got = f"a dict with the keys {[*map(str, content)][:8]}" if is_dict else type(content).__name__
        raise ValueError(f"file='{path}' holds no state dict: expected tensors by name, got {got}.")
    state: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        # Wrappers of several GPUs and of torch.compile put their own names in front.
        bare = re.sub(r"^(module\.|_orig_mod\.)+", "", str(name))
        if not isinstance(value, torch.Tensor) or NOT_WEIGHTS.fullmatch(bare):
            ignored.append(str(name))
            continue
        if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.device.type != "cpu":
            raise ValueError(f"file='{path}': {name} is no tensor of plain numbers ({value.layout}, {value.dtype}).")
        state[bare] = value
    return state, ignored


def _unpickle(path: Path) -> Any:
    """Tensors and plain containers; torch's words for all else are replaced, as they advise to run what is in there."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("it is no file of torch, or holds other objects than tensors, none of which was run") from None


def clip_names(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """The same weights under the names and in the shapes of transformers' `CLIPModel`.

    Names that are not known stay as they are.

    Args:
        state: Weights of GOAL (transformers' names already), Long-CLIP, open_clip or OpenAI.

    Returns:
        The weights, and the layout they had: `transformers`, `long-clip` or `open_clip`.

    Raises:
        ValueError: A fused tensor does not divide into query, key and value, or a table of Long-CLIP is missing.
    """
    if any(name.startswith(("text_model.", "vision_model.")) for name in state):
        return dict(state), "transformers"
    named: dict[str, torch.Tensor] = {}
    # open_clip's models with a text tower of their own put `text.` in front of its names.
    source = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    if len(source) < len(state):
        raise ValueError("The file has the text tower's weights twice, with and without `text.` in front.")
    layout = "open_clip"
    stretched = source.pop("positional_embedding_res", None)
    if stretched is not None:
        layout = "long-clip"
        kept = source.get("positional_embedding")
        if kept is None or kept.shape != stretched.shape or kept.ndim != 2:
            raise ValueError(
                "`positional_embedding_res` needs a `positional_embedding` of its shape "
                f"{tuple(stretched.shape)} beside it, got {None if kept is None else tuple(kept.shape)}."
            )
        # CLIP's first rows are in one table, and the stretched rest in the other.
        source["positional_embedding"] = torch.cat([kept[:KEPT_POSITIONS], stretched[KEPT_POSITIONS:]])
    for name, tensor in source.items():
        block = _BLOCK.fullmatch(name)
        if block is not None:
            named.update(_layer(name, block, tensor))
        elif name in _TRANSPOSED and tensor.ndim == 2:
            named[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif name == "logit_scale" and tensor.numel() == 1:
            named[name] = tensor.reshape(())
        else:
            module, _, kind = name.rpartition(".")
            named[f"{_MODULES[module]}.{kind}" if module in _MODULES else _PARAMETERS.get(name, name)] = tensor
    return named, layout


def _layer(name: str, block: re.Match[str], tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One tensor of a transformer block; the fused attention input becomes three."""
    tower = "vision_model" if block["visual"] else "text_model"
    prefix = f"{tower}.encoder.layers.{block['layer']}"
    rest = block["rest"]
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        if tensor.ndim == 0 or len(tensor) % 3:
            raise ValueError(f"`{name}` must hold query, key and value in 3 equal parts, got {tuple(tensor.shape)}.")
        kind = rest.removeprefix("attn.in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}.self_attn.{letter}_proj.{kind}": part.contiguous() for letter, part in parts}
    module, _, kind = rest.rpartition(".")
    return {f"{prefix}.{_LAYERS[module]}.{kind}" if module in _LAYERS else name: tensor}


def _check(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size], file: str, base: str, drop_unmatched: bool
) -> list[str]:
    """Compare names and shapes with the model's; returns the names that have no place in it."""
    unmatched = sorted(set(state) - set(expected))
    missing = sorted(set(expected) - set(state))
    shapes = [
        f"{name} is {tuple(state[name].shape)} and must be {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    problems = []
    if shapes:
        problems.append(f"{len(shapes)} wrong shapes: {_few(shapes)}")
    if missing:
        problems.append(f"{len(missing)} weights are missing: {_few(missing)}")
    if unmatched and (problems or not drop_unmatched):
        problems.append(f"{len(unmatched)} names have no place in it: {_few(unmatched)}")
    if not problems:
        return unmatched
    way_out = "To leave these out, say so with drop_unmatched (--drop-unmatched)."
    if shapes or missing:
        way_out = "Name the CLIP that the weights were trained from as the base."
    raise ValueError(f"file='{file}' does not fit a CLIP like base={base!r}. {'. '.join(problems)}. {way_out}")


def _few(items: list[str], limit: int = 20) -> str:
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return "; ".join(items[:limit]) + rest
