"""Choose the files of a folder that go to a repository of the Hub, and check that they are complete."""

import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from fastgoal import modeling_fastgoal
from fastgoal.processing.checkpoints.adapters import BASE_FILE, base_name, is_adapter
from fastgoal.processing.checkpoints.load import check_whole
from fastgoal.processing.data.locations import missing_shards, refuse_two_runs
from fastgoal.processing.data.pairs_dataset import MANIFEST
from fastgoal.processing.files import WORK_FOLDER, lies_inside, parse_json

from .cards import CARD
from .data_card import open_finished


def _any_of(*names: str, patterns: Sequence[str] = ()) -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, names), *patterns]))


# Complete names, so that a file that somebody put next to the model is not sent because of its suffix.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
CODE_FILES = (
    *sorted(path.name for path in Path(modeling_fastgoal.__path__[0]).glob("*_fastgoal.py")),
    *("processing_fastgoal.py", "geometry.py", "images.py", "texts.py", "tokens.py"),
)
GRAPHS = ("model", "text_model", "vision_model")
ONNX = rf"onnx/({'|'.join(GRAPHS)})(_fp16|_quantized)?\.onnx(_data(_\d+)?)?"
# The folder of `fastgoal export --to diffusion`; the single file is optional.
DIFFUSION_FILES = (
    *(
        f"{name}/{file}"
        for name in ("text_encoder", "text_encoder_with_projection")
        for file in ("config.json", "model.safetensors")
    ),
    *(f"tokenizer/{file}" for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")),
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
MODEL_FILES = _any_of(
    *(CARD, *LICENSE_FILES, "config.json", "generation_config.json", INDEX),
    *(ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, BASE_FILE),
    *("processor_config.json", "preprocessor_config.json", *TOKENIZER_FILES, "handler.py", *CODE_FILES),
    *("examples/pairs.jpg", "drift.json", *DIFFUSION_FILES),
    patterns=(r"clip_[lhg]\.safetensors", r"model(-\d{5}-of-\d{5})?\.safetensors", r"examples/\d+\.jpg", ONNX),
)
SHARD = r"data/train-\d{5}-of-\d{5}\.parquet"
DATA_FILES = _any_of(CARD, *LICENSE_FILES, "examples/pairs.jpg", patterns=(SHARD,))
FOLDERS = {
    "model": ("examples", "onnx", "text_encoder", "text_encoder_with_projection", "tokenizer"),
    "dataset": ("data", "examples"),
}
# Files that a model cannot do without: one group of each line. Messages name the first one.
_NEEDED = (
    [{"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"}, {"sentencepiece.bpe.model"}],
    [{"tokenizer_config.json"}],
    [{"processor_config.json"}, {"preprocessor_config.json"}],
)


def find_repo_type(folder: Path) -> str:
    """Return whether a folder holds a `model` or a `dataset`.

    Raises:
        ValueError: It holds neither, has no weights in safetensors, or is an adapter of a base on this machine.
    """
    has_config = (folder / "config.json").is_file() or (folder / "config.json").is_symlink()
    has_shards = any(re.fullmatch(SHARD, f"data/{path.name}") for path in folder.glob("data/*"))
    if (folder / MANIFEST).is_file() or (has_shards and not has_config and not is_adapter(folder)):
        return "dataset"
    if is_adapter(folder):
        base = base_name(folder)
        if os.path.isabs(base) or os.path.isdir(base):
            raise ValueError(
                f"{folder}: the base model of this adapter is a folder on this machine ({base}), which others do not "
                "have. Run `fastgoal merge`, and push the merged model."
            )
    elif not has_config and not is_diffusion(folder):
        raise ValueError(
            f"{folder}: the folder has neither a saved model (config.json) nor a dataset of `fastgoal pairs` "
            f"({MANIFEST})."
        )
    if not any(folder.glob("*.safetensors")) and not is_export(folder):
        raise ValueError(f"{folder}: the folder has no weights in safetensors, and other formats are not sent.")
    return "model"


def is_export(folder: Path) -> bool:
    """Return whether a folder is one of `fastgoal export`: ONNX files only, or a text encoder for diffusion models."""
    return is_diffusion(folder) or (any(folder.glob("onnx/*.onnx")) and not any(folder.glob("*.safetensors")))


def is_diffusion(folder: Path) -> bool:
    """Return whether a folder holds the text encoder of a model for diffusion models."""
    return (folder / "text_encoder").is_dir() and not (folder / "config.json").exists()


def choose_files(folder: Path, repo_type: str) -> tuple[list[str], list[str]]:
    """Return the files to send and the files left out, as paths inside the folder with forward slashes.

    Only files with the names that this package writes are sent. Links are followed inside the folder, and from a
    snapshot in the cache of the Hub to the files of that cache.

    Raises:
        ValueError: A file to send is a link to somewhere else or to nothing, or its folder is a link.
    """
    wanted = MODEL_FILES if repo_type == "model" else DATA_FILES
    roots = [folder, *_blob_folders(folder)]
    sent: list[str] = []
    left_out: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_wanted = wanted.fullmatch(name) is not None
        if name.partition("/")[0] == WORK_FOLDER:
            continue
        if path.is_symlink() and name in FOLDERS[repo_type]:
            raise ValueError(f"{path}: links to folders are not followed. Replace the link by the folder itself.")
        if path.is_symlink() and is_wanted and not (path.is_file() and any(lies_inside(path, each) for each in roots)):
            raise ValueError(
                f"{path}: the link leads out of the folder or to no file. Replace the link by the file itself."
            )
        if path.is_file():
            (sent if is_wanted else left_out).append(name)
    return sent, left_out


def _blob_folders(folder: Path) -> list[Path]:
    """Return the folders that the links of a snapshot in the Hub's cache lead to; none for another folder."""
    snapshots = Path(os.path.abspath(folder)).parent
    repo = snapshots.parent
    if snapshots.name == "snapshots" and re.fullmatch("(models|datasets)--.+", repo.name):
        return [repo / "blobs", repo.parent / "blobs"]
    return []


def refuse_incomplete(folder: Path, repo_type: str, names: Collection[str]) -> None:
    """Raise a `ValueError` that names what is missing, unless these files of a folder make a complete repository.

    A model has its configuration, its processor, and all weights: every one that its index names and that its
    configuration needs, in the right shape. A dataset has all shards that the names of its shards count, and all rows
    that its manifest counts.
    """
    if repo_type == "dataset":
        _refuse_incomplete_dataset(folder, [name for name in names if re.fullmatch(SHARD, name)])
        return
    missing = [min(groups[0]) for groups in _NEEDED if not any(g <= {*names} for g in groups)]
    if "processing_fastgoal.py" in names and "processor_config.json" not in names:
        missing.append("processor_config.json")  # `preprocessor_config.json` does not have all of it
    if is_diffusion(folder):
        missing = [name for name in DIFFUSION_FILES if name not in names]
    elif is_export(folder):
        missing += [name for name in _onnx_files(folder, names) if name not in names]
    elif is_adapter(folder):
        missing += [ADAPTER_SAFE_WEIGHTS_NAME] if ADAPTER_SAFE_WEIGHTS_NAME not in names else []
    else:
        missing += [name for name in ["config.json", *_weight_files(folder, names)] if name not in names]
    if missing:
        raise ValueError(
            f"{folder}: the model is incomplete without {', '.join(missing)} and is not sent. Save the model and its "
            "processor again, or download all files."
        )
    for name in names:
        if name.endswith(".safetensors"):
            [*read_tensors(folder / name, headers_only=True)]
    if not is_adapter(folder) and not is_export(folder):
        check_whole(str(folder), "folder")


def _onnx_files(folder: Path, names: Collection[str]) -> list[str]:
    """Return the names of the files that an exported model must have, besides those of its processor.

    Raises:
        ValueError: The configuration is damaged.
    """
    if "config.json" not in names:
        return ["config.json"]
    config = parse_json((folder / "config.json").read_bytes(), str(folder / "config.json"))
    settings = config.get("transformers.js_config") if isinstance(config, dict) else None
    external = (settings or {}).get("use_external_data_format") or {}
    graphs = [f"onnx/{graph}.onnx" for graph in GRAPHS]
    data = [f"onnx/{name}_data" for name in external if f"onnx/{name}" in names]
    suffixes = ("", "_fp16", "_quantized")  # one precision is enough
    whole = any(all(f"onnx/{graph}{suffix}.onnx" in names for graph in GRAPHS) for suffix in suffixes)
    return [*([] if whole else graphs), *data]


def _weight_files(folder: Path, names: Collection[str]) -> list[str]:
    """Return the names of the files that must hold the weights of a model.

    Raises:
        ValueError: The index is damaged, or a file does not have the weights that the index says.
    """
    if WEIGHTS in names or not any(name.endswith(".safetensors") for name in names):
        return [WEIGHTS]
    if INDEX not in names:
        return [INDEX]
    try:
        where = json.loads((folder / INDEX).read_bytes())["weight_map"]
        files = sorted({*where.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / INDEX}: the file is damaged ({error}) and is not sent. Save the model again."
        ) from None
    for file in set(files).intersection(names):
        stored = {name for name, _ in read_tensors(folder / file, headers_only=True)}
        if lost := sorted(name for name, place in where.items() if place == file and name not in stored):
            raise ValueError(
                f"{folder / file}: the file lacks {lost[0]}, which {INDEX} says it has, and is not sent. Save the "
                "model again."
            )
    return files


def _refuse_incomplete_dataset(folder: Path, shards: Sequence[str]) -> None:
    refuse_two_runs(folder / name for name in shards)
    missing = [f"data/{name}" for name in missing_shards(folder / name for name in shards)]
    if missing or not shards:
        raise ValueError(
            f"{folder}: the dataset is incomplete without {', '.join(missing) or 'data/train-*.parquet'} and is not "
            "sent. Run `fastgoal pairs` again, which writes missing shards, or download all files."
        )
    if not (folder / MANIFEST).is_file():  # a copy from the Hub, where the manifest is not sent
        return
    if others := {path.relative_to(folder).as_posix() for path in open_finished(folder).files} - {*shards}:
        raise ValueError(
            f"{folder / min(others)}: the rows of this file are not sent. Name all shards like "
            "data/train-00000-of-00002.parquet."
        )


def read_tensors(path: Path, headers_only: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the names and tensors of a safetensors file, with None for each tensor if only headers are read.

    Raises:
        ValueError: The file is truncated or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, None if headers_only else file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path}: the file is truncated or damaged ({error}) and is not sent.") from None
