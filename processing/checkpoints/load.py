"""Loading any supported checkpoint or adapter, or saying in one line what is wrong with it and what to do.

Code that comes with a checkpoint is never run.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalModel
from fastgoal.modeling_fastgoal.families_fastgoal import family_of
from fastgoal.modeling_fastgoal.loading_fastgoal import load_whole
from fastgoal.modeling_fastgoal.positions_fastgoal import target_length
from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.names import ASKED_HUB, check_model_name
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.tokens import require_tokens, set_text_length

from .adapters import about_base, has_processor, is_adapter, load_adapter, read_base
from .devices import choose_device, choose_dtype
from .errors import DAMAGED, loading
from .fingerprints import check_image_processor, refuse_not_finite


def check_model(name: str, argument: str = "model") -> Any:
    """Read the configuration of a checkpoint, or of an adapter's base model, and nothing else.

    Args:
        name: Folder or Hub id of the model or adapter.
        argument: Name of the argument that `name` was given for, for messages.

    Raises:
        ValueError: The configuration cannot be loaded, or the model's family is not supported.
    """
    check_model_name(name, argument)
    label = f"`{argument}={name}`"
    way_out = DAMAGED if Path(name).is_dir() else ASKED_HUB
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
    dtype: str | None = "float32",
    argument: str = "model",
    stretch: bool = False,
    max_text_length: int | None = None,
) -> tuple[FastGoalModel, FastGoalProcessor]:
    """Load a checkpoint, or an adapter merged into its base model, and its processor.

    Args:
        name: Folder or Hub id of the model or adapter.
        device: Name of a device as for `choose_device`.
        dtype: Name of a dtype as for `choose_dtype`; None keeps the one that the weights are stored in.
        argument: Name of the argument that `name` was given for, for messages.
        stretch: Stretch the text positions to `max_text_length`, as `FastGoalModel.from_base` does.
        max_text_length: Number of tokens that a stretched model reads, as for `FastGoalModel.from_base`. An adapter
            keeps its own length by default.

    Returns:
        The model in eval mode, on its device, and the processor.

    Raises:
        ValueError: The device is not available, or the checkpoint cannot be loaded, is damaged, is missing weights, has
            weights that are NaN or infinite or an image processor that does not fit, or belongs to a family that is not
            supported.
    """
    check_model_name(name, argument)
    device = choose_device(device)
    torch_dtype: Any = "auto" if dtype is None else getattr(torch, choose_dtype(dtype, device))
    label = f"`{argument}={name}`"
    if is_adapter(name):
        model, stretch = load_adapter(name, argument), False
        model = model if dtype is None else model.to(torch_dtype)
        if max_text_length is not None:
            model = FastGoalModel.from_base(model, max_text_length)
    else:
        config = check_model(name, argument)
        model_class = FastGoalModel.class_for(config)
        if stretch:
            target_length(text_positions(config), max_text_length, family_of(config))
        with loading(label, name):
            if stretch:
                model = model_class.from_base(name, max_text_length, dtype=torch_dtype)
            else:
                model = load_whole(model_class, name, dtype=torch_dtype)
    with loading(f"the tokenizer and image processor of {label}", name):
        processor = load_processor(name, stretch, max_text_length)
        processor.require_model(model.config)
        set_text_length(processor.tokenizer, text_positions(model))
    check_image_processor(processor.image_processor, label, model.config.vision_config.image_size)
    refuse_not_finite(model.named_parameters(), label)
    return model.to(device).eval(), processor


def check_whole(name: str, argument: str = "model") -> None:
    """Check a saved model without reading its weights: configuration, names and shapes of all weights, and processor.

    Args:
        name: Folder or Hub id of the model.
        argument: Name of the argument that `name` was given for, for messages.

    Raises:
        ValueError: One of them is missing, damaged, or of a family that is not supported.
    """
    label = f"`{argument}={name}`"
    config = check_model(name, argument)
    with loading(label, name):
        load_whole(FastGoalModel.class_for(config), name, device_map="meta")
    with loading(f"the tokenizer and image processor of {label}", name):
        processor = load_processor(name)
        processor.require_model(config)
    check_image_processor(processor.image_processor, label, config.vision_config.image_size)


def load_processor(
    name: str, stretch: bool = False, max_text_length: int | None = None, base: str | None = None
) -> FastGoalProcessor:
    """Load the processor of a checkpoint, for its own text length or for that of a stretched model.

    The arguments are those of `load_model`, and the base model of an adapter if it is not where the adapter says. An
    adapter without a processor has that of its base. Errors are those of transformers.

    Raises:
        ValueError: The tokenizer has no tokens: transformers makes an empty one if its files are missing.
    """
    if is_adapter(name) and not has_processor(name):
        known = read_base(name, base)
        name, stretch, max_text_length = known.base, True, known.max_text_length
    if stretch:
        return FastGoalProcessor.from_base(name, max_text_length)
    processor: FastGoalProcessor = FastGoalProcessor.from_pretrained(name, trust_remote_code=False)
    require_tokens(processor.tokenizer)
    return processor
