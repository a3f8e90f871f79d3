"""Gather rows over processes so that a contrastive loss sees the whole batch: one exchange forward, one backward."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist

from fastgoal.modeling_fastgoal.losses_fastgoal import WholeBatch

Rows = Mapping[str, torch.Tensor]

# torch 2.14 renames both, and warns about the old names.
_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_REDUCE_SCATTER: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)


def several_processes() -> bool:
    """Return whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_with_gradient(tensor: torch.Tensor, sizes: list[int] | None = None) -> torch.Tensor:
    """Return the rows of all processes in the order of their ranks, `(sum of rows, ...)`, with gradients.

    The backward pass adds up the gradients of all processes. With one process the tensor is returned unchanged.

    Args:
        tensor: `(rows, ...)`; processes may have different numbers of rows, as in an uneven last batch.
        sizes: Number of rows of each process. If None, they are exchanged, which waits for the device.
    """
    if not several_processes():
        return tensor
    sizes = sizes or gather_sizes(len(tensor), tensor.device)
    longest = max(sizes)
    if min(sizes) == longest:
        return _Gathered.apply(tensor)
    # The collective needs equal shapes: pad, and drop the padding afterwards.
    padding = tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])
    parts = _Gathered.apply(torch.cat([tensor, padding])).split(longest)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """Return the number that each process passes, in the order of their ranks."""
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([size], device=device))
    return torch.cat(sizes).tolist()


def gather_batch(
    rows: Rows, names: Collection[str], even: bool = False, last: int | None = None
) -> tuple[Rows, WholeBatch | None]:
    """Return this process's rows, and the rows of all processes that their losses need, None with one process.

    Each process computes the share of the loss of its own rows. Times the number of processes, and with gradients
    averaged over them as usual, this has exactly the gradient of one process with the whole batch.

    Args:
        rows: Rows as `loss_rows` returns them, the embeddings in one floating dtype.
        names: Names of the rows to gather, in addition to masks.
        even: Whether all processes are known to have the same number of rows.
        last: Number of rows of the whole batch that are not repeated; later ones are left out.
    """
    if not several_processes():
        return {name: value[:last] for name, value in rows.items()}, None
    some = next(iter(rows.values()))
    sizes = [len(some)] * dist.get_world_size() if even else gather_sizes(len(some), some.device)
    first = sum(sizes[: dist.get_rank()])
    # One exchange for all of them, with masks as numbers.
    wanted = {name: value for name, value in rows.items() if name in names or value.dtype == torch.bool}
    columns = [value.reshape(len(value), -1) for value in wanted.values()]
    dtype = next((value.dtype for value in columns if value.is_floating_point()), torch.float32)
    gathered = gather_with_gradient(torch.cat([value.to(dtype) for value in columns], dim=1), sizes)[:last]
    parts = gathered.split([value.shape[1] for value in columns], dim=1)
    whole = {
        name: part[:, 0] > 0 if value.dtype == torch.bool else part
        for (name, value), part in zip(wanted.items(), parts, strict=True)
    }
    own = None if last is None else max(0, last - first)
    return {name: value[:own] for name, value in rows.items()}, WholeBatch(whole, first)


def in_any_process(flag: bool, device: torch.device) -> bool:
    """Return whether the flag of any process is set."""
    if not several_processes():
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Average the gradients of all processes, as DDP does; those that a process does not have count as 0."""
    if not several_processes():
        return
    exchanges = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= dist.get_world_size()
            exchanges.append(dist.all_reduce(parameter.grad, async_op=True))
    for exchange in exchanges:
        cast(Any, exchange).wait()


class _Gathered(torch.autograd.Function):
    """`all_gather` of tensors of equal shape along the first dimension; the backward pass is a `reduce_scatter`."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        gathered = tensor.new_empty(dist.get_world_size() * len(tensor), *tensor.shape[1:])
        _ALL_GATHER(gathered, tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        _REDUCE_SCATTER(own, gradient.contiguous())
        return own
