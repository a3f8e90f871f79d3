"""Gathering rows over processes so that a contrastive loss sees the whole batch: one exchange there, one back."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.distributed as dist

from fastgoal.modeling_fastgoal.losses_fastgoal import WholeBatch

Rows = Mapping[str, torch.Tensor]

# torch 2.14 has new names for both, and warns of the old ones.
_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_REDUCE_SCATTER: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)


def several_processes() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_with_gradient(tensor: torch.Tensor, sizes: list[int] | None = None) -> torch.Tensor:
    """Rows of all processes in the order of their ranks, `(sum of rows, ...)`, with gradients to every process.

    The backward adds up what all processes ask of a row. Without several processes the tensor comes back as it is.

    Args:
        tensor: `(rows, ...)`; the number of rows may differ between processes, as in an uneven last batch.
        sizes: Each process's number of rows, where they are known; else they are asked for, which waits for the device.
    """
    if not several_processes():
        return tensor
    sizes = sizes or gather_sizes(len(tensor), tensor.device)
    longest = max(sizes)
    if min(sizes) == longest:
        return _Gathered.apply(tensor)
    # The collective wants equal shapes: shorter ones are filled up, and the filling is dropped again.
    filling = tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])
    parts = _Gathered.apply(torch.cat([tensor, filling])).split(longest)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """A number of each process, in the order of their ranks."""
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([size], device=device))
    return torch.cat(sizes).tolist()


def gather_batch(
    rows: Rows, names: Collection[str], even: bool = False, last: int | None = None
) -> tuple[Rows, WholeBatch | None]:
    """This process's rows, and what their losses need of the rows of all processes; None where there are no others.

    A loss of which each process computes the share of its own rows gets, times the number of processes and after the
    usual averaging of gradients over them, exactly the gradient that one process with the whole batch has.

    Args:
        rows: As `loss_rows` gives them, the embeddings of one floating type.
        names: Which of them all processes need, masks aside.
        even: All processes are known to have the same number of rows.
        last: The rows of all processes from this number on repeat others and are left out.

    Returns:
        The rows that are no repetitions, and the whole batch without them.
    """
    if not several_processes():
        return {name: value[:last] for name, value in rows.items()}, None
    some = next(iter(rows.values()))
    sizes = [len(some)] * dist.get_world_size() if even else gather_sizes(len(some), some.device)
    first = sum(sizes[: dist.get_rank()])
    # All in one tensor, masks as numbers: one exchange for all of them.
    wanted = {name: value for name, value in rows.items() if name in names or value.dtype == torch.bool}
    columns = [value.reshape(len(value), -1) for value in wanted.values()]
    kind = next((value.dtype for value in columns if value.is_floating_point()), torch.float32)
    gathered = gather_with_gradient(torch.cat([value.to(kind) for value in columns], dim=1), sizes)[:last]
    parts = gathered.split([value.shape[1] for value in columns], dim=1)
    whole = {
        name: part[:, 0] > 0 if value.dtype == torch.bool else part
        for (name, value), part in zip(wanted.items(), parts, strict=True)
    }
    own = None if last is None else max(0, last - first)
    return {name: value[:own] for name, value in rows.items()}, WholeBatch(whole, first)


class _Gathered(torch.autograd.Function):
    """`all_gather` of tensors of one shape along the first dimension; its backward is a `reduce_scatter` of sums."""

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
