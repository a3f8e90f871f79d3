"""What happens beside the steps: the epoch told to all who draw, the limit of the logit scale, a word at the start."""

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .summary import start_lines


class LogitScaleLimit(TrainerCallback):
    """Keeps the factor in the logits between 1 and a limit after each step, as CLIP's and open_clip's training does.

    Args:
        limit: The largest factor, `exp(model.logit_scale)`, not its logarithm.
    """

    def __init__(self, limit: float):
        self.limit = limit

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self.on_optimizer_step(args, state, control, model)

    @torch.no_grad()
    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        scale: Any = model.logit_scale if model is not None else torch.zeros(())
        if scale.requires_grad:  # beside an adapter it stays as it is
            scale.clamp_(0.0, math.log(self.limit))


class TowardsBase(TrainerCallback):
    """Adds the gradient of `weight * |w - w_start|^2`, of all trained weights, before each step (L2-SP).

    Gradients are then those of the whole batch, averaged and clipped, in whole copies and in shards alike.

    Args:
        weight: Of the squared distance.
        model: Whose weights the training starts with, and is to stay near to.
    """

    def __init__(self, weight: float, model: nn.Module):
        self.weight = weight
        self.start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in model.named_parameters() if model is not None else ():
            if value.grad is not None:
                start = self.start[name] = _laid_out_as(value, self.start[name])
                value.grad.add_(value - start, alpha=2 * self.weight)


def _laid_out_as(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`other` where `value` is, and in such shards."""
    other = other.to(value.device)
    if isinstance(value, DTensor) and not isinstance(other, DTensor):
        return distribute_tensor(other, value.device_mesh, value.placements)
    return other


class Epochs(TrainerCallback):
    """Tells the order of rows and the collator which epoch begins, whatever is wrapped around them.

    A data loader that skips what a checkpoint has seen, and one that is shared by several processes, do not.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        batches: Any = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        listeners: list[Any] = [getattr(batches, "sampler", None), getattr(train_dataloader, "collate_fn", None)]
        for what in listeners:
            if hasattr(what, "set_epoch"):
                what.set_epoch(int(state.epoch or 0))


class StartLines(TrainerCallback):
    """Prints what a training is about to do.

    Args:
        trainer: The `FastGoalTrainer`.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            tqdm.write(start_lines(self.trainer, state.max_steps))
