"""Loading any CLIP checkpoint, or saying in a line what is wrong with it and what to do.

Code that comes with a checkpoint is never run, and nobody is asked whether it should be.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from fastgoal.modeling_fastgoal.modeling_fastgoal import FastGoalCLIPModel, load_whole
from fastgoal.processing.adapters import about_base, is_adapter, load_adapter
from fastgoal.processing.devices import choose_device, choose_dtype
from fastgoal.processing.loading import DAMAGED, loading
from fastgoal.processing.processing_fastgoal import FastGoalProcessor, require_tokens
from fastgoal.processing.weights import refuse_not_finite


def check_clip(name: str, option: str) -> Any:
    """The configuration of a CLIP checkpoint, or of an adapter's base; a `ValueError` for what is none.

    Nothing else is looked at.
    """
    what, way_out = f"{option} {name}", _way_out(name)
    if is_adapter(name):
        with loading(what, name):
            name, what, way_out = about_base(name, what)
    with loading(what, name, way_out):
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
    """The model of a CLIP checkpoint or adapter (a folder or a Hub id), ready to be asked, and its processor.

    Args:
        name: Folder or Hub id.
        device: As for `choose_device`.
        dtype: As for `choose_dtype`.
        option: What messages call the checkpoint.
        max_text_length: Tokens that it shall read, as for `FastGoalCLIPModel.from_clip`; None leaves its own length,
            and so does an adapter.

    Raises:
        ValueError: The device is not there, or the checkpoint is no CLIP, is damaged, lacks weights, has some that
            are no numbers, or cannot be reached.
    """
    device = choose_device(device)
    kind: Any = getattr(torch, choose_dtype(dtype, device))
    if is_adapter(name):
        model, max_text_length = load_adapter(name, option).to(kind), None
    else:
        check_clip(name, option)
        with loading(f"{option} {name}", name):
            if max_text_length is None:
                model = load_whole(FastGoalCLIPModel, name, dtype=kind)
            else:
                model = FastGoalCLIPModel.from_clip(name, max_text_length, dtype=kind)
    with loading(f"the tokenizer and image processor of {option} {name}", name):
        processor = load_processor(name, max_text_length)
        words, known = len(processor.tokenizer), model.config.text_config.vocab_size
        if words > known:
            raise ValueError(f"the tokenizer has {words} tokens and the model knows {known}: they are of two models")
    refuse_not_finite(model.named_parameters(), f"{option} {name}")
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
    require_tokens(processor.tokenizer)
    return processor


def _way_out(name: str) -> str:
    return DAMAGED if Path(name).is_dir() else "Name the folder of a CLIP that save_pretrained wrote, or a Hub id."
