"""Merge an adapter into its base: the result is a model like any other, and needs neither."""

import os

from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalModel
from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.adapters import base_name, is_adapter, load_adapter
from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import refuse_not_finite
from fastgoal.processing.checkpoints.load import load_processor
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.tokens import set_text_length

from .model_folder import require_new_folder, write_model_folder


def merge(adapter: str, output: str | os.PathLike[str], base: str | None = None) -> int:
    """Merge an adapter into its base and write a folder that `AutoModel.from_pretrained` loads.

    Args:
        adapter: Folder or Hub id of an adapter that a training or peft wrote.
        output: Folder to write, new or empty.
        base: Folder or Hub id of the base model, if it is not where the adapter says.

    Returns:
        Number of tokens that the model reads.

    Raises:
        ValueError: `adapter` is not an adapter or damaged, or it was trained on another base.
        ImportError: peft is not installed.
    """
    path = require_new_folder(output)
    if not os.path.exists(adapter):  # on the Hub, which says why it has no such file, or cannot be reached
        with loading(f"`adapter={adapter}`", way_out=""):
            cached_file(adapter, ADAPTER_CONFIG_NAME)
    if not is_adapter(adapter):
        raise ValueError(f"`adapter={adapter}` is not an adapter. Name a folder that a training with `lora_r` wrote.")
    model, processor = load_merged(adapter, "adapter", base)
    write_model_folder(path, model, processor, base_model=base or base_name(adapter), merged_from=adapter)
    return text_positions(model)


def load_merged(adapter: str, argument: str, base: str | None) -> tuple[FastGoalModel, FastGoalProcessor]:
    """Load an adapter, merged into its base, and the processor.

    Args:
        adapter: Folder or Hub id of an adapter.
        argument: Name of the argument that `adapter` was given for, for messages.
        base: Folder or Hub id of the base model, if it is not where the adapter says.

    Raises:
        ValueError: The adapter is damaged, or it was trained on another base.
        ImportError: peft is not installed.
    """
    model = load_adapter(adapter, argument, base)
    refuse_not_finite(model.named_parameters(), f"`{argument}={adapter}`")
    with loading(f"the tokenizer and image processor of {adapter}", adapter):
        processor = load_processor(adapter, base=base)
        processor.require_model(model.config)
        set_text_length(processor.tokenizer, text_positions(model))
    return model, processor
