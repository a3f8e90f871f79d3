"""Weights in several processes: a copy in each (DDP), or a shard in each (FSDP2)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import nn

from fastgoal.modeling_fastgoal.towers_fastgoal import logit_bias
from fastgoal.processing.checkpoints.adapters import base_of


def prepare_shards(accelerator: Accelerator, model: Any) -> bool:
    """Prepare a model for FSDP2 before accelerate shards it; return whether it will be sharded.

    `logit_scale` and SigLIP's `logit_bias` stay whole, since scalars cannot be sharded, and their gradients are
    averaged here. With mixed precision gradients are reduced in float32, as DDP does under autocast, and outputs keep
    their dtype. The layers to shard are those of the model's family, whatever the configuration of accelerate names.
    """
    if not accelerator.is_fsdp2:
        return False
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.transformer_cls_names_to_wrap = [type(base_of(model).text_model.encoder.layers[0]).__name__]
    whole = logit_parameters(model)
    plugin.ignored_modules = [nn.ParameterList(whole)]
    for parameter in whole:
        parameter.data = parameter.data.to(accelerator.device)  # FSDP moves only what it shards
        if parameter.requires_grad and not parameter._backward_hooks:
            parameter.register_hook(_mean_over_processes)
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
    return True


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Give a model its own class while it is saved, instead of the subclass that FSDP2 sets."""
    from torch.distributed.fsdp import FSDPModule

    wrapped = type(model)
    own: Any = next(base for base in wrapped.__mro__ if not issubclass(base, FSDPModule))
    model.__class__ = own
    try:
        yield
    finally:
        model.__class__ = wrapped


def logit_parameters(model: Any) -> list[nn.Parameter]:
    """Return the logit scale, and SigLIP's logit bias."""
    bias = logit_bias(model)
    return [model.logit_scale] if bias is None else [model.logit_scale, bias]


def group_of_its_own(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Give parameters an optimizer group of their own: fused steps take sharded or whole tensors, not both."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        others = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        apart = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if others and apart:
            group["params"] = others
            optimizer.add_param_group({**group, "params": apart})


def describe(accelerator: Accelerator, batch: int) -> str:
    """Describe in a line what runs: processes, strategy, precision and batch size.

    Args:
        accelerator: The accelerator of the trainer.
        batch: Number of pairs of one process in a step.
    """
    processes = accelerator.num_processes
    if accelerator.is_fsdp2:
        strategy = "sharded weights (FSDP2)"
    elif accelerator.distributed_type == DistributedType.FSDP:
        strategy = "sharded weights (FSDP1)"
    else:
        strategy = "data parallel (DDP)" if processes > 1 else ""
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            strategy += " (not FSDP, which accelerate supports for several processes on GPUs only)"
    parts = [f"{processes} process{'es' if processes > 1 else ''} on {accelerator.device.type}", strategy]
    parts.append({"no": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(accelerator.mixed_precision, ""))
    parts.append(f"{batch * processes:,} pairs a step" + (f" ({processes} x {batch:,})" if processes > 1 else ""))
    return ", ".join(part.strip() for part in parts if part)


def _mean_over_processes(gradient: torch.Tensor) -> torch.Tensor:
    mean = gradient.clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()
