"""Loading any checkpoint that is known here, or saying in a line what is wrong with it and what to do.

Code that comes with a checkpoint is never run, and nobody is asked whether it should be.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalModel
from fastgoal.modeling_fastgoal.families_fastgoal import family_of
from fastgoal.modeling_fastgoal.loading_fastgoal import load_whole
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.tokens import require_tokens

from .adapters import about_base, is_adapter, load_adapter
from .devices import choose_device, choose_dtype
from .errors import DAMAGED, loading
from .fingerprints import refuse_not_finite


def check_model(name: str, argument: str = "model") -> Any:
    """Read the configuration of a checkpoint, or of an adapter's base model, and nothing else.

    Args:
        name: Folder or Hub id of the model or adapter.
        argument: Name of the argument that `name` was given for, for messages.

    Raises:
        ValueError: The configuration cannot be loaded, or the model's family is not supported.
    """
    label, way_out = f"`{argument}={name}`", _way_out(name)
    if is_adapter(name):
        with loading(label, name):
            name, label, way_out = about_base(name, label)
    with loading(label, name, way_out):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    family_of(config, label)
    return config


def load_model(
    name: str,
    device: str | None = None,
    dtype: str = "float32",
    argument: str = "model",
    stretch: bool = False,
    max_text_length: int | None = None,
) -> tuple[FastGoalModel, FastGoalProcessor]:
    """The model of a checkpoint or adapter (a folder or a Hub id), ready to be asked, and its processor.

    Args:
        name: Folder or Hub id.
        device: As for `choose_device`.
        dtype: As for `choose_dtype`.
        argument: Name of the argument that `name` was given for, for messages.
        stretch: Stretch the text positions to `max_text_length`, as `FastGoalModel.from_base` does. An adapter keeps
            its own length.
        max_text_length: Tokens that a stretched model reads; by default the most that its family allows.

    Raises:
        ValueError: The device is not there, or the checkpoint is of no family that is known, is damaged, lacks weights,
            has some that are no numbers, needs a package that is not there, or cannot be reached.
    """
    device = choose_device(device)
    torch_dtype: Any = getattr(torch, choose_dtype(dtype, device))
    label = f"`{argument}={name}`"
    if is_adapter(name):
        model, stretch = load_adapter(name, argument).to(torch_dtype), False
    else:
        model_class = FastGoalModel.class_for(check_model(name, argument))
        with loading(label, name):
            if stretch:
                model = FastGoalModel.from_base(name, max_text_length, dtype=torch_dtype)
            else:
                model = load_whole(model_class, name, dtype=torch_dtype)
    with loading(f"the tokenizer and image processor of {label}", name):
        processor = load_processor(name, stretch, max_text_length)
        processor.require_family(family_of(model))
        words, known = len(processor.tokenizer), model.config.text_config.vocab_size
        if words > known:
            raise ValueError(f"the tokenizer has {words} tokens and the model knows {known}: they are of two models")
    refuse_not_finite(model.named_parameters(), label)
    return model.to(device).eval(), processor


def load_processor(name: str, stretch: bool = False, max_text_length: int | None = None) -> FastGoalProcessor:
    """The processor of a checkpoint, for its own text length or another; raises what the libraries raise.

    Where there are no tokens, of which they make an empty tokenizer, it is a `ValueError`.
    """
    processor: FastGoalProcessor
    if stretch:
        processor = FastGoalProcessor.from_base(name, max_text_length)
    else:
        processor = FastGoalProcessor.from_pretrained(name, trust_remote_code=False)
    require_tokens(processor.tokenizer)
    return processor


def _way_out(name: str) -> str:
    return DAMAGED if Path(name).is_dir() else "Name the folder of a model that save_pretrained wrote, or a Hub id."
