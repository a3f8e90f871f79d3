"""Fingerprints of models, in memory and on disk, and checks of weights and of image processors."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgoal.processing.names import ASKED_HUB, EXPECTED_MODEL, check_model_name

from .errors import first_line, loading

if TYPE_CHECKING:
    import torch

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
WEIGHTS = (".safetensors", ".bin")
SAMPLED_VALUES = 1024


def fingerprint(weights: "Mapping[str, torch.Tensor]", texts: Iterable[str] = ()) -> str:
    """Return a hash of weights in memory, such as `model.state_dict()`; use `checkpoint_fingerprint` for files.

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


def embedder_fingerprint(model: Any, processor: Any) -> str:
    """Return a fingerprint of all that image embeddings depend on: the weights in memory and the image processor."""
    settings = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    return fingerprint(model.state_dict(), [settings])


def checkpoint_fingerprint(name: str, argument: str = "model") -> str:
    """Return a name that changes when the files of a checkpoint change; use `fingerprint` for weights in memory.

    Args:
        name: File, folder or Hub id.
        argument: Name of the argument that `name` was given for, for messages.

    Returns:
        `NAME#HASH` with the last part of the path for files here, `OWNER/NAME@REVISION` for the Hub.

    Raises:
        ValueError: There are no weights, or the Hub does not have them.
    """
    label, path = f"`{argument}={name}`", Path(name)
    if path.is_file():
        return f"{path.name}#{hash_files([path])}"
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (*WEIGHTS, ".json", ".txt"))
        if not any(file.suffix in WEIGHTS for file in files):
            raise ValueError(f"{label} has no weights (no .safetensors or .bin file). {EXPECTED_MODEL}")
        return f"{path.resolve().name}#{hash_files(files)}"
    check_model_name(name, argument)
    from transformers.utils.hub import cached_file, extract_commit_hash
    from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

    with loading(label, way_out=ASKED_HUB):
        file = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
        revision = extract_commit_hash(file or cached_file(name, ADAPTER_CONFIG_NAME), None)
    return f"{name}@{revision}" if revision else name


def hash_files(paths: Iterable[Path], folder: Path | None = None, blocks: int = 16, block_size: int = 2**16) -> str:
    """Hash the names, sizes and some evenly spaced blocks of files. Large files are not read in full.

    Args:
        paths: The files. Only the names of others, such as pipes and broken links, are hashed.
        folder: Hash the paths in this folder instead of the names.
        blocks: Number of blocks of each file, at least 2.
        block_size: Number of bytes of a block.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder) if folder else path.name}\n".encode())
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{size}\n".encode())
        with path.open("rb") as file:
            for block in range(blocks):
                file.seek(max(0, size - block_size) * block // (blocks - 1))
                digest.update(file.read(block_size))
    return digest.hexdigest()[:32]


def check_detector_file(detector: str, *data_folders: str) -> None:
    """Raise `ValueError` for a pickled detector inside a data folder, which may have come with the data."""
    if not detector.lower().endswith(PICKLES):
        return
    for folder in data_folders:
        for resolve in (os.path.abspath, os.path.realpath):
            if Path(resolve(detector)).is_relative_to(resolve(folder)) and os.path.isdir(folder):
                raise ValueError(
                    f"`detector={detector}` is inside the data folder '{folder}'. Such a file is a pickle, which can "
                    "run code when it is loaded. If you trust its source, move the file out of that folder."
                )


def refuse_not_finite(tensors: "Iterable[tuple[str, torch.Tensor]]", label: str) -> None:
    """Raise `ValueError`, which calls the checkpoint `label`, if a weight is NaN or infinite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{label} has weights that are NaN or infinite (in {name}). Download or create it again. After your "
                "own training, use an earlier checkpoint, or train with a lower learning rate."
            )


def check_image_processor(image_processor: Any, label: str, side: int | None = None) -> None:
    """Raise `ValueError` if the image processor of the checkpoint `label` makes no finite values of an image.

    Args:
        image_processor: An image processor of transformers.
        label: Name of the checkpoint for messages.
        side: Side in pixels of the images that the model reads, if there is only one.
    """
    import torch
    from PIL import Image

    settings = "Check `image_mean`, `image_std`, `rescale_factor` and the sizes in its settings."
    try:
        inputs = image_processor(images=Image.new("RGB", (side or 64, side or 64)), return_tensors="pt")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{label}: its image processor cannot process an image ({reason}) {settings}") from error
    for value in inputs.values():
        if isinstance(value, torch.Tensor) and not value.isfinite().all():
            raise ValueError(f"{label}: its image processor makes values that are NaN or infinite. {settings}")
    shape = tuple(inputs["pixel_values"].shape) if side else ()
    if side and shape != (1, 3, side, side):
        raise ValueError(
            f"{label}: its image processor makes an input of shape {shape} of an image, and the model reads "
            f"{(1, 3, side, side)}. {settings}"
        )
