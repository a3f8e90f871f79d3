"""What happens beside the steps: the epoch told to all who draw, the limit of the logit scale, a word at the start."""

import math
from typing import Any

import torch
from torch import nn
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
