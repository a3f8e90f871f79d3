"""What several processes do with the weights: each has them all (DDP), or each a shard of them (FSDP2)."""

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


def prepare_shards(accelerator: Accelerator, model: Any) -> bool:
    """Make a model fit to be cut into shards by FSDP2; to be called before accelerate prepares it.

    `logit_scale`, and a SigLIP's `logit_bias`, stay whole, as shards hold no scalars, and their gradients are averaged
    here. With a lower precision gradients are still averaged in float32, as DDP does under autocast, and outputs are
    left as they are. What is cut are the layers of the model's own family, whatever the configuration names.

    Returns:
        Whether there are to be shards at all.
    """
    if not accelerator.is_fsdp2:
        return False
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.transformer_cls_names_to_wrap = [type(_own(model).text_model.encoder.layers[0]).__name__]
    whole = logit_parameters(model)
    plugin.ignored_modules = [nn.ParameterList(whole)]
    for parameter in whole:
        parameter.data = parameter.data.to(accelerator.device)  # FSDP moves only what it cuts
        if parameter.requires_grad and not parameter._backward_hooks:
            parameter.register_hook(_mean_over_processes)
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
    return True


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """A model under its own class, for saving: FSDP2 sets one of its own, whose name and code would be saved."""
    from torch.distributed.fsdp import FSDPModule

    kind = type(model)
    own: Any = next(base for base in kind.__mro__ if not issubclass(base, FSDPModule))
    model.__class__ = own
    try:
        yield
    finally:
        model.__class__ = kind


def _own(model: Any) -> Any:
    """The model in what peft wraps around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logit_parameters(model: Any) -> list[nn.Parameter]:
    """What makes logits of cosines: the scale, and a SigLIP's bias."""
    bias = logit_bias(model)
    return [model.logit_scale] if bias is None else [model.logit_scale, bias]


def group_of_its_own(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Give parameters a group: one operation on all of a group takes shards or whole tensors, not both."""
    for group in list(optimizer.param_groups):
        others = [other for other in group["params"] if all(other is not some for some in parameters)]
        apart = [other for other in group["params"] if any(other is some for some in parameters)]
        if others and apart:
            group["params"] = others
            optimizer.add_param_group({**group, "params": apart})


def describe(accelerator: Accelerator, batch: int) -> str:
    """What really runs, in a line: processes, strategy, number format, batch per process.

    Args:
        accelerator: Of the trainer.
        batch: Pairs of one process in a step.
    """
    processes = accelerator.num_processes
    if accelerator.is_fsdp2:
        strategy = "weights in shards (FSDP2)"
    elif accelerator.distributed_type == DistributedType.FSDP:
        strategy = "weights in shards (FSDP1)"
    else:
        strategy = "all weights in each (DDP)" if processes > 1 else ""
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            strategy += " (not FSDP, which was asked for: accelerate has it for several processes on GPUs)"
    parts = [f"{processes} process{'es' if processes > 1 else ''} on {accelerator.device.type}", strategy]
    parts.append({"no": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(accelerator.mixed_precision, ""))
    parts.append(f"{batch * processes:,} pairs a step" + (f" ({processes} x {batch:,})" if processes > 1 else ""))
    return ", ".join(part.strip() for part in parts if part)


def _mean_over_processes(gradient: torch.Tensor) -> torch.Tensor:
    mean = gradient.clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()
