"""Loading any checkpoint that is known here, or saying in a line what is wrong with it and what to do.

Code that comes with a checkpoint is never run, and nobody is asked whether it should be.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalModel, load_whole
from fastgoal.modeling_fastgoal.families_fastgoal import family_of
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.tokens import require_tokens

from .adapters import about_base, is_adapter, load_adapter
from .devices import choose_device, choose_dtype
from .errors import DAMAGED, loading
from .fingerprints import refuse_not_finite


def check_clip(name: str, option: str) -> Any:
    """The configuration of a CLIP (any family), or of an adapter's base; a `ValueError` for what is none.

    Nothing else is looked at.
    """
    what, way_out = f"{option} {name}", _way_out(name)
    if is_adapter(name):
        with loading(what, name):
            name, what, way_out = about_base(name, what)
    with loading(what, name, way_out):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    family_of(config, f"{option} {name}")
    return config


def load_clip(
    name: str,
    device: str | None = None,
    dtype: str = "float32",
    option: str = "--model",
    stretch: int | bool = False,
) -> tuple[FastGoalModel, FastGoalProcessor]:
    """The model of a checkpoint or adapter (a folder or a Hub id), ready to be asked, and its processor.

    Args:
        name: Folder or Hub id.
        device: As for `choose_device`.
        dtype: As for `choose_dtype`.
        option: What messages call the checkpoint.
        stretch: Text length in tokens as for `FastGoalModel.from_base`; True for the longest one. False keeps the
            checkpoint's own length, and so does an adapter.

    Raises:
        ValueError: The device is not there, or the checkpoint is of no family that is known, is damaged, lacks weights,
            has some that are no numbers, needs a package that is not there, or cannot be reached.
    """
    device = choose_device(device)
    kind: Any = getattr(torch, choose_dtype(dtype, device))
    if is_adapter(name):
        model, stretch = load_adapter(name, option).to(kind), False
    else:
        model_class = FastGoalModel.class_for(check_clip(name, option))
        with loading(f"{option} {name}", name):
            if stretch is False:
                model = load_whole(model_class, name, dtype=kind)
            else:
                model = FastGoalModel.from_base(name, None if stretch is True else stretch, dtype=kind)
    with loading(f"the tokenizer and image processor of {option} {name}", name):
        processor = load_processor(name, stretch)
        processor.require_family(family_of(model))
        words, known = len(processor.tokenizer), model.config.text_config.vocab_size
        if words > known:
            raise ValueError(f"the tokenizer has {words} tokens and the model knows {known}: they are of two models")
    refuse_not_finite(model.named_parameters(), f"{option} {name}")
    return model.to(device).eval(), processor


def load_processor(name: str, stretch: int | bool = False) -> FastGoalProcessor:
    """The processor of a checkpoint, for its own text length or another; raises what the libraries raise.

    Where there are no tokens, of which they make an empty tokenizer, it is a `ValueError`.
    """
    processor: FastGoalProcessor
    if stretch is False:
        processor = FastGoalProcessor.from_pretrained(name, trust_remote_code=False)
    else:
        processor = FastGoalProcessor.from_base(name, None if stretch is True else stretch)
    require_tokens(processor.tokenizer)
    return processor


def _way_out(name: str) -> str:
    return DAMAGED if Path(name).is_dir() else "Name the folder of a model that save_pretrained wrote, or a Hub id."
