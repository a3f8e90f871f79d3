"""What happens beside the steps: the limit of the logit scale, and a word at the start on what runs."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .parallel.strategy import describe


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
        scale.clamp_(0.0, math.log(self.limit))


class StartLine(TrainerCallback):
    """Prints what a training runs on: processes, who holds the weights, number format, pairs a step."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            tqdm.write(describe(self.accelerator, args.train_batch_size * args.gradient_accumulation_steps))
