"""Adapters: LoRA weights next to a model with frozen weights, by peft (https://huggingface.co/docs/peft).

Their folder holds peft's two files, the processor, and `fastgoal_base.json`, which describes the base model. An adapter
that peft itself saved has no such file: its configuration names the base.
"""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_origin

from torch import nn
from transformers import AutoConfig
from transformers.utils import logging
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, find_adapter_config_file

from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalModel
from fastgoal.modeling_fastgoal.configuration_fastgoal import LossSettings
from fastgoal.modeling_fastgoal.families_fastgoal import LONGEST, family_of
from fastgoal.modeling_fastgoal.towers_fastgoal import embedding_width, text_positions
from fastgoal.processing.files import parse_json, write_json
from fastgoal.processing.texts import shortened

from .errors import loading
from .fingerprints import fingerprint

logger = logging.get_logger(__name__)

BASE_FILE = "fastgoal_base.json"
FORMAT = 1
"""Version of the contents of `fastgoal_base.json`."""
ADAPTER_FOLDER = "adapter"
"""Folder of the adapter inside the folder of the merged model."""
TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
TOWERS = {"vision": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}
PEFT_FIELDS = (
    *("r", "lora_alpha", "target_modules", "exclude_modules", "lora_dropout", "use_rslora", "use_dora"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
)
"""Fields of a `peft.LoraConfig` that a training may set."""
# Fields of a configuration that peft matches with names of modules as regular expressions.
_PATTERNS = (
    *("target_modules", "exclude_modules", "modules_to_save", "target_parameters"),
    *("layers_pattern", "rank_pattern", "alpha_pattern"),
)


@dataclass(frozen=True)
class AdapterBase:
    """The base model of an adapter, and the losses that the adapter was trained with.

    Attributes:
        base: Folder or Hub id of the base model.
        fingerprint: Fingerprint of its weights, once it reads `max_text_length` tokens; empty if nobody computed one.
        max_text_length: Number of tokens that it reads.
        image_size: Side of its input in pixels.
        patch_size: Side of a patch in pixels.
        dim: Width of the embeddings.
        model_type: Model type of its configuration.
        losses: The values of `LossSettings` in the configuration of the trained model; empty for those of the base.
    """

    base: str
    fingerprint: str
    max_text_length: int
    image_size: int
    patch_size: int
    dim: int
    model_type: str
    losses: dict[str, Any]


def require_peft() -> Any:
    """Return the package peft.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "Adapters need the package peft. Install it with: pip install 'fastgoal[adapters]'"
        ) from error
    return peft


def lora_config(
    model: FastGoalModel,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = TARGETS,
    freeze: str | None = None,
    freeze_layers: int = 0,
) -> Any:
    """Return the `peft.LoraConfig` of an adapter for some linear layers (arXiv 2106.09685).

    Args:
        model: The model.
        rank: Rank of the two matrices that are added to each weight.
        alpha: Their product is scaled by `alpha / rank`; the rank by default.
        targets: Suffixes of the names of the linear layers.
        freeze: `vision` or `text`, a tower without adapters.
        freeze_layers: Number of first layers of both towers without adapters.

    Raises:
        ImportError: peft is not installed.
        ValueError: No layer has such a name.
    """
    layers = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    weights = frozen_parameters(model, freeze, freeze_layers)
    frozen = [name.removesuffix(".weight") for name in weights if name.removesuffix(".weight") in layers]
    suffixes = {name.rpartition(".")[2] for name in layers}
    trained = {name.rpartition(".")[2] for name in layers.difference(frozen)}
    unknown = sorted({*targets} - suffixes)
    if unknown or not trained.intersection(targets):
        wrong = f"{', '.join(unknown)} cannot have an adapter" if unknown else "no layer that is trained is among them"
        raise ValueError(f"`lora_target_modules`: {wrong}. The linear layers are {', '.join(sorted(suffixes))}.")
    return require_peft().LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=[*targets],
        exclude_modules=frozen or None,
    )


def add_adapter(model: FastGoalModel, config: Any) -> Any:
    """Return a model of peft: the model with frozen weights, and trainable LoRA weights next to them.

    Layers inside `nn.MultiheadAttention`, as in SigLIP's pooling head, get none: it reads their weights without calling
    them.

    Args:
        model: The model, which is changed in place.
        config: A `peft.LoraConfig`.

    Raises:
        ImportError: peft is not installed.
        TypeError: `config` is not a `peft.LoraConfig`.
        ValueError: It trains something other than LoRA weights, or matches no layer.
    """
    peft = require_peft()
    check_peft_config(config)
    config = copy.deepcopy(config)
    is_pattern = isinstance(config.target_modules, str) or isinstance(config.exclude_modules, str)
    attentions = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    uncalled = [f"{name}.out_proj" for name in attentions]
    if isinstance(config.exclude_modules, str):
        config.exclude_modules = "|".join([f"({config.exclude_modules})", *map(re.escape, uncalled)])
    elif uncalled:
        config.exclude_modules = {*(config.exclude_modules or ()), *uncalled}
    if config.target_modules is None:
        config.target_modules = {*TARGETS}
    adapted = peft.get_peft_model(model, config)
    if is_pattern:  # saved as names, see `_refuse_patterns`
        config.target_modules = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
        config.exclude_modules = None
    return adapted


def merged_copy(model: Any) -> FastGoalModel:
    """Return a copy of a model of peft on the CPU, with its adapter merged into its weights."""
    merged: FastGoalModel = copy.deepcopy(model).cpu().merge_and_unload(safe_merge=True)
    return merged.eval()


def check_peft_config(config: Any) -> None:
    """Raise `TypeError` or `ValueError` unless a configuration is a `peft.LoraConfig` that trains LoRA weights only."""
    peft = require_peft()
    if not isinstance(config, peft.LoraConfig):
        raise TypeError(f"`peft_config` must be a peft.LoraConfig, got {type(config).__name__}.")
    plain = vars(peft.LoraConfig())
    for name, value in vars(config).items():
        if name not in PEFT_FIELDS and value != plain.get(name):
            raise ValueError(
                f"`peft_config` must leave {name} at {plain.get(name)!r}, got {value!r}. It may set "
                f"{', '.join(PEFT_FIELDS)}."
            )
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal"):
        raise ValueError(
            "`peft_config` must have init_lora_weights True, False, gaussian or orthogonal, which keep the base's "
            f"weights, got {config.init_lora_weights!r}."
        )
    _refuse_patterns({**vars(config), "target_modules": None, "exclude_modules": None}, "`peft_config`")


def _refuse_patterns(config: Mapping[str, Any], label: str) -> None:
    """Raise `ValueError` if a field that must name modules holds a regular expression, which could take forever."""
    for field in _PATTERNS:
        value = config.get(field)
        for name in [value] if isinstance(value, str) else value or ():
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(
                    f"{label}: {field} must be names or suffixes of modules, got the regular expression {name!r}. "
                    "Replace it by a list of the names that it matches."
                )


def peft_settings(config: Any) -> dict[str, Any]:
    """Return the fields of a `peft.LoraConfig` that a resumed training must not change, as JSON; None without one."""
    values = {name: getattr(config, name, None) for name in PEFT_FIELDS}
    return {f"peft_config.{name}": sorted(v) if isinstance(v, set) else v for name, v in values.items()}


def frozen_parameters(model: nn.Module, freeze: str | None, freeze_layers: int) -> list[str]:
    """Return the names of the parameters to freeze.

    Args:
        model: The model.
        freeze: `vision` or `text`: the whole tower and its projection.
        freeze_layers: Number of first layers of both towers, with the embeddings before them.

    Raises:
        ValueError: A tower has fewer layers.
    """
    towers: Any = {"vision": model.vision_model, "text": model.text_model}
    for name, tower in towers.items():
        if freeze_layers > len(tower.encoder.layers):
            raise ValueError(
                f"`freeze_layers` must be at most {len(tower.encoder.layers)}, the number of layers of the {name} "
                f"tower, got {freeze_layers}."
            )
    layers = "|".join(map(str, range(freeze_layers)))
    first = rf"\w+_model\.(embeddings\.|pre_layrnorm\.|encoder\.layers\.({layers})\.).*" if freeze_layers else r"(?!)"
    whole = tuple(f"{part}." for part in TOWERS.get(freeze or "", ()))
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if (whole and name.startswith(whole)) or re.fullmatch(first, name)]


def is_adapted(model: Any) -> bool:
    """Return whether a model is one of peft's, which wraps another model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_of(model: Any) -> Any:
    """Return the model inside a model of peft; any other model as it is."""
    return model.get_base_model() if is_adapted(model) else model


def is_adapter(name: str | os.PathLike[str]) -> bool:
    """Return whether a folder or a repository of the Hub holds an adapter and not a model."""
    if os.path.isdir(name):
        folder = Path(name)
        return (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / "config.json").is_file()
    if os.path.exists(name):
        return False
    try:
        return find_adapter_config_file(os.fspath(name)) is not None and _file(name, "config.json") is None
    except (OSError, ValueError):  # it does not exist, which loading it explains better
        return False


def base_fingerprint(model: nn.Module) -> str:
    """Return the `fingerprint` of a model's own weights, without the LoRA weights that peft may have added to it."""
    weights = {name.replace("base_layer.", ""): value for name, value in model.state_dict().items()}
    return fingerprint({name: value for name, value in weights.items() if "lora_" not in name})


def describe_base(model: Any, base: str | None = None) -> AdapterBase:
    """Describe the base of a model of peft.

    Args:
        model: The model of peft.
        base: Folder or Hub id of the base model; the one that peft knows by default.
    """
    inner = base_of(model)
    config, vision = inner.config, inner.config.vision_config
    base = base or model.peft_config[model.active_adapter].base_model_name_or_path or ""
    return AdapterBase(
        base=os.path.abspath(base) if os.path.isdir(base) else base,
        fingerprint=base_fingerprint(inner),
        max_text_length=text_positions(inner),
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        dim=embedding_width(inner),
        model_type=family_of(inner).model_type,
        losses={setting.name: getattr(config, setting.name) for setting in fields(LossSettings)},
    )


def write_base(folder: Path, base: AdapterBase) -> None:
    """Write `fastgoal_base.json` into an adapter's folder."""
    write_json(folder / BASE_FILE, {"format": FORMAT, **asdict(base)})


def read_base(name: str | os.PathLike[str], base: str | None = None) -> AdapterBase:
    """Read what a folder or repository with an adapter says about the base model.

    Without `fastgoal_base.json`, this reads the configuration of the base, and the text length of the processor next to
    the adapter; without a processor, the text length is that of the base.

    Args:
        name: Folder or Hub id of the adapter.
        base: Folder or Hub id of the base model, if it is not where the adapter says.

    Raises:
        ValueError: The file is damaged.
        OSError: A file cannot be read.
    """
    path = _file(name, BASE_FILE)
    if path is None:
        return _base_of_peft(name, base or base_name(name))
    values = parse_json(Path(path).read_bytes(), BASE_FILE)
    if isinstance(values, dict) and (version := values.pop("format", None)) != FORMAT:
        raise ValueError(
            f"{BASE_FILE}: `format` must be {FORMAT}, got {version!r}. Load the adapter with the version of fastgoal "
            "that wrote it."
        )
    types: dict[str, Any] = {field.name: get_origin(field.type) or field.type for field in fields(AdapterBase)}
    if not isinstance(values, dict) or values.keys() != types.keys():
        raise ValueError(f"{BASE_FILE} must be an object with {', '.join(types)}, got {shortened(str(values), 100)}.")
    for key, value in values.items():
        if not isinstance(value, types[key]):
            raise ValueError(f"{BASE_FILE}: {key} must be of type {types[key].__name__}, got {value!r:.100}.")
    if values["losses"].keys() != {setting.name for setting in fields(LossSettings)}:
        raise ValueError(f"{BASE_FILE}: losses must be those of a FAST-GOAL model, got {values['losses']!r:.100}.")
    return AdapterBase(**values)


def base_name(name: str | os.PathLike[str]) -> str:
    """Return the folder or Hub id of an adapter's base model.

    Raises:
        ValueError: The adapter does not say.
    """
    if _file(name, BASE_FILE) is not None:
        return read_base(name).base
    base = _json(name, ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
    if not (base and isinstance(base, str)):
        raise ValueError(
            f"{ADAPTER_CONFIG_NAME} must name the base model in base_model_name_or_path, got {base!r}. Name it with "
            f"`fastgoal merge {name} --output DIR --base MODEL`."
        )
    return base


def _base_of_peft(name: str | os.PathLike[str], base: str) -> AdapterBase:
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    family = family_of(config, base)
    length = _json(name, "tokenizer_config.json").get("model_max_length")
    own_length = text_positions(config)
    if not (isinstance(length, int) and own_length <= length <= LONGEST):
        length = own_length
    return AdapterBase(
        base=base,
        fingerprint="",
        max_text_length=length,
        image_size=config.vision_config.image_size,
        patch_size=config.vision_config.patch_size,
        dim=embedding_width(config),
        model_type=family.model_type,
        losses={},
    )


def has_processor(name: str | os.PathLike[str]) -> bool:
    """Return whether an adapter comes with the processor of its model, as those of this package do."""
    files = (BASE_FILE, "processor_config.json", "preprocessor_config.json")
    return any(_file(name, file) is not None for file in files)


def about_base(name: str, label: str, base: str | None = None) -> tuple[str, str, str]:
    """Return the name of an adapter's base, its label for messages, and what to do if it cannot be loaded.

    Args:
        name: Folder or Hub id of the adapter.
        label: Label of the adapter in messages.
        base: Folder or Hub id of the base model, if it is not where the adapter says.
    """
    found = base or base_name(name)
    way_out = (
        f"The adapter needs the model that it was trained on. Name it with `fastgoal merge {name} --output DIR --base "
        "MODEL`."
    )
    return found, f"{found}, the base of {label},", way_out


def load_adapter(name: str, argument: str = "model", base: str | None = None) -> FastGoalModel:
    """Load an adapter and merge it into its base, in float32 on the CPU.

    Args:
        name: Folder or Hub id of the adapter.
        argument: Name of the argument that `name` was given for, for messages.
        base: Folder or Hub id of the base model, if it is not where the adapter says.

    Returns:
        The model, with the loss settings of the adapter's training in its configuration.

    Raises:
        ValueError: The adapter or its base is damaged, or the adapter was trained on another base.
        ImportError: peft is not installed.
    """
    peft = require_peft()
    label = f"`{argument}={name}`"
    with loading(label, name):
        _refuse_patterns(_json(name, ADAPTER_CONFIG_NAME), ADAPTER_CONFIG_NAME)
        found, base_label, way_out = about_base(name, label, base)
    with loading(base_label, found, way_out):
        known = read_base(name, base)
        model = FastGoalModel.from_base(found, known.max_text_length, trust_remote_code=False)
    if not known.fingerprint:
        logger.warning(
            f"{label} has no {BASE_FILE}, so nothing checks that it was trained on {found} with a text length of "
            f"{known.max_text_length} tokens."
        )
    elif base_fingerprint(model) != known.fingerprint:
        raise ValueError(f"{found} is not the model that {label} was trained on: its weights differ. {way_out}")
    with loading(label, name):
        for setting, value in known.losses.items():
            setattr(model.config, setting, value)
        adapted = peft.PeftModel.from_pretrained(model, name)
        _refuse_missing(adapted, name)
        merged: FastGoalModel = adapted.merge_and_unload(safe_merge=True)
    merged.stretched_from = None  # the adapter was trained with these positions
    return merged.requires_grad_(True)  # peft froze the base


def _refuse_missing(adapted: Any, name: str) -> None:
    """Raise `ValueError` if an adapter's file lacks weights, which peft would leave at zero."""
    from safetensors import safe_open

    file = _file(name, "adapter_model.safetensors")
    if file is None:
        raise ValueError("adapter_model.safetensors is missing")
    with safe_open(file, "pt") as opened:
        stored = set(opened.keys())
    expected = require_peft().get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if missing := sorted(expected.keys() - stored):
        raise ValueError(f"{missing[0]} is missing in adapter_model.safetensors")


def _json(name: str | os.PathLike[str], file: str) -> dict[str, Any]:
    """Return the object in a JSON file of a folder or repository, an empty one without the file."""
    path = _file(name, file)
    values = {} if path is None else parse_json(Path(path).read_bytes(), file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} must be a JSON object, got {values!r:.100}.")
    return values


def _file(name: str | os.PathLike[str], file: str) -> str | None:
    path: str | None = cached_file(os.fspath(name), file, _raise_exceptions_for_missing_entries=False)
    return path
