"""Loading any CLIP checkpoint, or saying in a line what is wrong with it and what to do.

Code that comes with a checkpoint is never run, and nobody is asked whether it should be.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from fastgoal.modeling_fastgoal.modeling_fastgoal import FastGoalCLIPModel, require_all_weights
from fastgoal.processing.devices import choose_device, choose_dtype
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.weights import refuse_not_finite

LFS_POINTER = b"version https://git-lfs"


@contextmanager
def loading(what: str, name: str = "") -> Iterator[None]:
    """Turn whatever the libraries raise over the files of a checkpoint into a `ValueError` of one line.

    Args:
        what: What is loaded, in words that begin the message: `--model clip/`.
        name: Its folder or Hub id, to look for what often is wrong with the files.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # files that are damaged make the libraries raise nearly anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        # Some libraries only announce in the first line what they say in the second.
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        kind = "" if isinstance(error, OSError | ValueError) and reason else f"{type(error).__name__}: "
        raise ValueError(f"{what} cannot be loaded: {kind}{reason.rstrip('.')}.{_hint(name)}") from error


def check_clip(name: str, option: str) -> Any:
    """The configuration of a CLIP checkpoint; a `ValueError` for what is none. Nothing else is looked at."""
    with loading(f"{option} {name}", name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type != "clip":
        raise ValueError(f"{option} {name} is a checkpoint of type {config.model_type!r}; it must be a CLIP.")
    return config


def load_clip(
    name: str,
    device: str | None = None,
    dtype: str = "float32",
    option: str = "--model",
    max_text_length: int | None = None,
) -> tuple[FastGoalCLIPModel, FastGoalProcessor]:
    """The model of a CLIP checkpoint (a folder or a Hub id), ready to be asked, and its processor.

    Args:
        name: Folder or Hub id.
        device: As for `choose_device`.
        dtype: As for `choose_dtype`.
        option: What messages call the checkpoint.
        max_text_length: Tokens that it shall read, as for `FastGoalCLIPModel.from_clip`; None leaves its own length.

    Raises:
        ValueError: The device is not there, or the checkpoint is no CLIP, is damaged, lacks weights, has some that
            are no numbers, or cannot be reached.
    """
    device = choose_device(device)
    check_clip(name, option)
    kind: Any = getattr(torch, choose_dtype(dtype, device))
    with loading(f"{option} {name}", name):
        if max_text_length is None:
            loaded: Any = FastGoalCLIPModel.from_pretrained(name, dtype=kind, output_loading_info=True)
            model, found = loaded
            require_all_weights(found, "it")
        else:
            model = FastGoalCLIPModel.from_clip(name, max_text_length, dtype=kind)
    with loading(f"the tokenizer and image processor of {option} {name}", name):
        processor = load_processor(name, max_text_length)
        words, known = len(processor.tokenizer), model.config.text_config.vocab_size
        if words > known:
            raise ValueError(f"the tokenizer has {words} tokens and the model knows {known}: they are of two models")
    refuse_not_finite(model.state_dict().items(), f"{option} {name}")
    return model.to(device).eval(), processor


def load_processor(name: str, max_text_length: int | None = None) -> FastGoalProcessor:
    """The processor of a CLIP checkpoint, for its own text length or another; raises what the libraries raise.

    Where there are no tokens, of which they make an empty tokenizer, it is a `ValueError`.
    """
    processor: FastGoalProcessor
    if max_text_length is None:
        processor = FastGoalProcessor.from_pretrained(name, trust_remote_code=False)
    else:
        processor = FastGoalProcessor.from_clip(name, max_text_length, trust_remote_code=False)
    if len(processor.tokenizer) <= len(processor.tokenizer.all_special_tokens):
        raise ValueError("there are no tokens: tokenizer.json, or vocab.json and merges.txt, is missing")
    return processor


def _hint(name: str) -> str:
    """What else a message says, for files that are there and hold something else."""
    folder = Path(name)
    if not name or not folder.is_dir():
        return " Name the folder of a CLIP that save_pretrained wrote, or a Hub id."
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                return f" {path.name} is but a pointer of git-lfs: fetch the file itself with `git lfs pull`."
    return " Its files are damaged or do not belong together: make or download them again."
