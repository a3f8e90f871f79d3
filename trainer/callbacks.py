"""Callbacks of a training: the bound of the logit scale, L2-SP, epochs for samplers, and a summary at the start."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import SaveStrategy, has_length

from .batches.rows import TrainingData
from .summary import TrainingRun, log_text, start_lines


class LogitScaleLimit(TrainerCallback):
    """Keep the logit scale between 1 and a limit after each step, as CLIP's and open_clip's training do.

    Args:
        limit: Upper bound of `exp(model.logit_scale)`, not of its logarithm.
    """

    def __init__(self, limit: float):
        self.limit = limit

    @torch.no_grad()
    def on_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        if model.logit_scale.requires_grad:  # with an adapter the scale is frozen
            model.logit_scale.clamp_(0.0, math.log(self.limit))

    on_train_begin = on_optimizer_step


class TowardsBase(TrainerCallback):
    """Add the gradient of `weight * |w - w_start|^2` of all trained weights before each step (L2-SP).

    Gradients are complete by then: averaged over processes and clipped, for whole and for sharded weights.

    Args:
        weight: Weight of the squared distance.
        model: The model with the weights that the training starts from.
    """

    def __init__(self, weight: float, model: nn.Module):
        self.weight = weight
        self.start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        for name, value in model.named_parameters():
            if value.grad is not None:
                start = self.start[name] = _placed_like(value, self.start[name])
                value.grad.add_(value - start, alpha=2 * self.weight)


def _placed_like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return `other` on the device of `value`, in the same shards."""
    other = other.to(value.device)
    if isinstance(value, DTensor) and not isinstance(other, DTensor):
        return distribute_tensor(other, value.device_mesh, value.placements)
    return other


class Epochs(TrainerCallback):
    """Tell the sampler and the rows which epoch begins, however deep they are wrapped.

    Data loaders that skip batches after a resume, or that accelerate shares between processes, do not pass it on.
    """

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        batches: Any = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        sampler: Any = getattr(batches, "sampler", None)
        rows: Any = getattr(train_dataloader, "dataset", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(state.epoch or 0))
        while hasattr(rows, "dataset") and not isinstance(rows, TrainingData):
            rows = rows.dataset
        if isinstance(rows, TrainingData):
            rows.begin_epoch(int(state.epoch or 0))


class StepCheckpoints(TrainerCallback):
    """Save a checkpoint every `save_steps` steps of an epoch too, if `save_strategy` is `epoch`.

    Attributes:
        steps_per_epoch: Number of steps of an epoch.
    """

    steps_per_epoch: int = 0

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if args.save_strategy == SaveStrategy.EPOCH and args.save_steps and self.steps_per_epoch:
            step = state.global_step % self.steps_per_epoch  # 0 at the end of an epoch, where `Trainer` saves itself
            control.should_save |= step > 0 and step % state.save_steps == 0


class ProgressWithTables(ProgressCallback):
    """Show progress bars, and evaluations as small tables."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        bar: Any = self.training_bar
        if state.is_world_process_zero and bar is not None:
            bar.write(log_text(logs))


class LogWithTables(PrinterCallback):
    """Show the lines of the log without progress bars, and evaluations as small tables."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_local_process_zero:
            tqdm.write(log_text(logs))


def with_tables(callback: TrainerCallback) -> TrainerCallback:
    """Return the callback that shows the log with tables in place of one of transformers; return others unchanged."""
    ours: dict[type, type] = {ProgressCallback: ProgressWithTables, PrinterCallback: LogWithTables}
    return ours[type(callback)]() if type(callback) in ours else callback


class StartLines(TrainerCallback):
    """Print what a training is about to do.

    Args:
        run: The training.
        devices: What it runs on, in words.
        count_tokens: Returns the number of tokens of training captions before they are truncated.
    """

    def __init__(self, run: TrainingRun, devices: str, count_tokens: Callable[[], Sequence[int]]):
        self.run, self.devices, self.count_tokens = run, devices, count_tokens

    def on_train_begin(
        self, args: Any, state: TrainerState, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            # As `Trainer` counts them, so that epochs here are those of the log.
            batches = len(train_dataloader) if has_length(train_dataloader) else 0
            steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
            lengths = self.count_tokens()
            tqdm.write(start_lines(self.run, self.devices, state.max_steps, steps_per_epoch, lengths))
