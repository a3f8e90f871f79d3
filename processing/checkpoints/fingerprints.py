"""Fingerprints of models, in memory and on disk, and checks of files of weights."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import loading

if TYPE_CHECKING:
    import torch

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
WEIGHTS = (".safetensors", ".bin")
SAMPLED_VALUES = 1024


def fingerprint(weights: "Mapping[str, torch.Tensor]", texts: Iterable[str] = ()) -> str:
    """Return a hash of weights in memory, such as `model.state_dict()`; use `mark_weights` for files.

    Every value counts, on any device and in any dtype: a sum over the bits of all values as float32, which does not
    depend on their order, and some values of each weight in order. That takes one pass over the memory.

    Args:
        weights: Tensors by name.
        texts: Other texts that the fingerprint depends on.

    Returns:
        64 hexadecimal digits.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = tensor.detach().float().flatten()
        sample = values[:: max(1, len(values) // SAMPLED_VALUES)][:SAMPLED_VALUES].cpu()
        # Two float32 values fill one integer; the sum wraps around.
        bits = torch.nn.functional.pad(values, (0, 1)) if len(values) % 2 else values
        checksum = int(bits.view(torch.int64).sum())
        digest.update(f"{name} {tuple(tensor.shape)} {checksum}".encode() + sample.numpy().tobytes())
    for text in texts:
        digest.update(text.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def mark_weights(name: str, what: str = "model") -> str:
    """A name that changes when the files behind it change: file name and hash here, id and revision for the Hub.

    Raises:
        ValueError: There are no weights, or the Hub has no answer; calls it `what`.
    """
    path = Path(name)
    if path.is_file():
        return f"{path.name}#{hash_files([path])}"
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (*WEIGHTS, ".json", ".txt"))
        if not any(file.suffix in WEIGHTS for file in files):
            raise ValueError(
                f"'{name}' has no weights in it (no .safetensors or .bin file). Expected a folder written by "
                "save_pretrained, or a Hub id."
            )
        return f"{path.resolve().name}#{hash_files(files)}"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"'{name}' does not exist. Expected a folder written by save_pretrained, or a Hub id.")
    from transformers.utils.hub import cached_file, extract_commit_hash
    from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

    with loading(f"the {what} '{name}'", way_out="It is no folder here, and the Hub has no answer."):
        file = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
        revision = extract_commit_hash(file or cached_file(name, ADAPTER_CONFIG_NAME), None)
    return f"{name}@{revision}" if revision else name


def check_detector_file(detector: str, *data_folders: str) -> None:
    """Refuse a pickled detector that lies inside a data folder: it may have come with somebody else's data."""
    if not detector.lower().endswith(PICKLES):
        return
    for folder in data_folders:
        for resolve in (os.path.abspath, os.path.realpath):
            if Path(resolve(detector)).is_relative_to(resolve(folder)) and os.path.isdir(folder):
                raise ValueError(
                    f"detector='{detector}' lies inside the data folder '{folder}'. Such a file is a pickle that runs "
                    "code when it is loaded, so one that came with data is refused. If you know where it is from and "
                    "trust it, move it to another place and name it there."
                )


def refuse_not_finite(tensors: Iterable[tuple[str, Any]], what: str) -> None:
    """Raise `ValueError` if a weight is infinite or no number; `tensors` are torch's by their names."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{what} has weights that are infinite or no numbers (in {name}) and is of no use. Make or download it "
                "again; of a training of your own take an earlier checkpoint, or train with a lower rate."
            )


def hash_files(paths: Iterable[Path]) -> str:
    """Names, sizes and 16 evenly spaced blocks of 64 kB of some files as one hash: large files are not read in full."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}\n{size}\n".encode())
        with path.open("rb") as file:
            for block in range(16):
                file.seek(max(0, size - 2**16) * block // 15)
                digest.update(file.read(2**16))
    return digest.hexdigest()[:32]
