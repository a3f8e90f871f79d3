"""Prepare the model of a training: load it, check it, add an adapter or freeze weights, and note the losses in it."""

from collections.abc import Sequence
from dataclasses import asdict
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalModel
from fastgoal.modeling_fastgoal.losses_fastgoal import TERMS, LossWeights
from fastgoal.processing.checkpoints.adapters import (
    TARGETS,
    add_adapter,
    base_of,
    frozen_parameters,
    is_adapted,
    is_adapter,
    lora_config,
)
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.processing_fastgoal import FastGoalProcessor

from .training_arguments import FastGoalTrainingArguments


def load_trainable(
    name: str, max_text_length: int | None = None, adds_adapter: bool = False
) -> tuple[FastGoalModel, FastGoalProcessor]:
    """Load the model to train and its processor, with text positions stretched as in `FastGoalModel.from_base`.

    Args:
        name: Folder or Hub id of any supported checkpoint, or of an adapter, whose weights are merged into its base.
        max_text_length: Number of tokens to read, as for `FastGoalModel.from_base`.
        adds_adapter: Whether the training adds an adapter, which must not be on top of another one.

    Raises:
        ValueError: The checkpoint cannot be loaded, or it is an adapter and `adds_adapter` is set.
    """
    if adds_adapter and is_adapter(name):
        raise ValueError(
            f"`model` {name} is an adapter, and another one cannot be trained on top of it. Merge it first: `fastgoal "
            f"merge {name} --output DIR`."
        )
    return load_model(name, "cpu", stretch=True, max_text_length=max_text_length)


def check_trainable(model: Any) -> None:
    """Raise `TypeError` unless a model takes the inputs of FAST-GOAL's losses."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a FAST-GOAL model, a name or a folder, got {type(model).__name__}.")
    # Not by class: a checkpoint that was loaded with its own code has another class of the same name.
    if isinstance(model, PreTrainedModel) and "region_mask" not in signature(model.forward).parameters:
        raise TypeError(
            f"`model` must be a FAST-GOAL model, got {type(model).__name__}. Convert it with "
            "`FastGoalModel.from_base(model)`."
        )


def contrasts_rows(weights: LossWeights) -> bool:
    """Return whether a loss in use contrasts the rows of a batch with each other."""
    return any(term.contrasts and getattr(weights, term.weight) for term in TERMS)


def unused_parameters(weights: LossWeights, is_sigmoid: bool) -> set[str]:
    """Return the names of the parameters of any family that the losses in use do not depend on."""
    contrasts, unused = contrasts_rows(weights), set()
    if not (contrasts and is_sigmoid):
        unused.add("logit_bias")
    if not (contrasts or weights.sparc_weight):
        unused.add("logit_scale")
    if not (contrasts or weights.tsl_weight):  # SPARC embeds patches, each without its attention to the others
        unused.add("vision_model.head.probe")
    return unused


def prepare_weights(
    model: Any, args: FastGoalTrainingArguments, weights: LossWeights, is_sigmoid: bool, peft_config: Any = None
) -> Any:
    """Return the model with the adapter that the arguments ask for, or with some of its weights frozen.

    Parameters that the losses do not depend on are frozen: with several processes they would get a gradient of 0, and
    weight decay would change them.

    Raises:
        ValueError: The model already has an adapter, an argument does not fit it, or both `peft_config` and arguments
            for the trained weights are given.
    """
    given = [name for name in ("lora_r", "freeze", "freeze_layers") if getattr(args, name)]
    if peft_config is not None and given:
        raise ValueError(f"`peft_config` cannot be combined with `{given[0]}`, got {getattr(args, given[0])!r}.")
    if is_adapted(model) and (given or peft_config is not None):
        raise ValueError(f"The model already has an adapter: leave out `{given[0] if given else 'peft_config'}`.")
    if args.lora_r or peft_config is not None:
        if args.lora_r:
            targets = args.lora_target_modules or TARGETS
            peft_config = lora_config(model, args.lora_r, args.lora_alpha, targets, args.freeze, args.freeze_layers)
        set_seed(args.seed)  # all processes start from the same weights
        return add_adapter(model, peft_config)
    frozen = unused_parameters(weights, is_sigmoid)
    frozen |= set(frozen_parameters(model, args.freeze, args.freeze_layers)) if given else set()
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return model


def check_dims(dims: Sequence[int] | None, width: int) -> None:
    """Raise `ValueError` unless `matryoshka_dims` are different positive numbers up to the width of the embeddings."""
    if dims is None:
        return
    valid = all(type(value) is int and 0 < value <= width for value in dims)
    if not dims or not valid or len({*dims}) < len(dims):
        raise ValueError(
            f"`matryoshka_dims` must be different integers from 1 to {width}, the width of the embeddings, got {dims}."
        )


def refuse_foreign_optimizer(optimizer: torch.optim.Optimizer | None, model: nn.Module) -> None:
    """Raise `ValueError` if an optimizer holds none of the weights that are trained."""
    if optimizer is None:
        return
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if not any(id(parameter) in trained for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            "`optimizers` holds none of the trained weights: the trainer loaded the model or added an adapter itself. "
            "Use `optimizer_cls_and_kwargs` instead."
        )


def write_losses(model: Any, weights: LossWeights, args: FastGoalTrainingArguments) -> None:
    """Write the losses into a model's configuration: a saved model then computes the loss it was trained with."""
    config = base_of(model).config
    others = {name: getattr(args, name) for name in ("contrastive", "matryoshka_dims", "crop_size")}
    for name, value in {**asdict(weights), **others}.items():
        setattr(config, name, value)
