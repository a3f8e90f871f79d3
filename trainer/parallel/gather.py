"""Gathering embeddings over processes so that a contrastive loss sees the whole batch."""

import torch
import torch.distributed as dist


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of all processes in the order of their ranks, `(sum of rows, ...)`, with gradients to every process.

    Processes may hold different numbers of rows, as in an uneven last batch. Without several processes the
    tensor comes back as it is.

    A loss that every process computes on the gathered rows gets, after the usual averaging of gradients over
    processes, exactly the gradient that one process with the whole batch has: the backward of the gathering adds
    up what all processes ask for.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    from torch.distributed.nn.functional import all_gather

    rows = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.zeros_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, rows)
    sizes = [int(count) for count in counts]
    longest = max(sizes)
    # The collective wants equal shapes: shorter ones are filled up, and the filling is dropped again.
    filling = tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])
    gathered = all_gather(torch.cat([tensor, filling]).contiguous())
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
