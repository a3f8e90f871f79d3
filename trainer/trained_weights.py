"""Which weights a training trains: all, those of an adapter, or all but some."""

from typing import Any

from torch import nn
from transformers import set_seed

from fastgoal.modeling_fastgoal.towers_fastgoal import is_sigmoid
from fastgoal.processing.checkpoints.adapters import TARGETS, add_adapter, frozen_parameters, is_adapted

from .training_arguments import FastGoalTrainingArguments


def prepare_weights(model: Any, args: FastGoalTrainingArguments) -> Any:
    """The model with the adapter that the arguments ask for, or with some of its weights frozen; else as it is.

    A bias in the logits is not trained with softmax losses, which do not change by it.

    Raises:
        ValueError: The model has no such layers, or an adapter already.
    """
    if not isinstance(model, nn.Module):
        return model
    frozen: set[str] = set()
    if hasattr(model, "logit_bias") and not is_sigmoid(model, args.contrastive):
        frozen.add("logit_bias")
    if args.lora_r or args.freeze or args.freeze_layers:
        if is_adapted(model):
            raise ValueError("the model has an adapter already: leave `lora_r`, `freeze` and `freeze_layers` out.")
        if args.lora_r:
            targets = args.lora_target_modules or TARGETS
            set_seed(args.seed)  # the same weights to begin with in all processes, and each time
            how = (args.lora_r, args.lora_alpha, targets, args.freeze, args.freeze_layers)
            return add_adapter(model, *how)  # type: ignore[arg-type]
        frozen |= set(frozen_parameters(model, args.freeze, args.freeze_layers))
    if frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
    return model
