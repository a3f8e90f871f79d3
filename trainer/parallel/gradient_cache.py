"""Gradient caching: the loss and gradients of a large batch with the memory of a small one (arXiv 2101.06983).

A contrastive loss needs the embeddings of the whole batch, but not the activations behind them. So the batch is
embedded in mini-batches without gradients, and the loss over all embeddings gives the gradient of each. Then every
mini-batch is embedded again, with gradients, and its share is propagated through the model. This costs one more
forward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils.checkpoint import get_device_states, set_device_states

Rows = dict[str, torch.Tensor]
Batch = Mapping[str, torch.Tensor]


def split_batch(batch: Batch, size: int) -> list[Rows]:
    """Split a batch into mini-batches of at most `size` rows, in order, along the first dimension of each tensor.

    Raises:
        ValueError: The tensors differ in their number of rows.
    """
    rows = {name: len(value) for name, value in batch.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"All tensors of a batch must have the same number of rows, got {rows}.")
    parts = {name: value.split(size) for name, value in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def cached_backward(
    batch: Batch,
    size: int,
    embed: Callable[[Batch], tuple[Rows, Sequence[torch.Tensor]]],
    loss: Callable[..., dict[str, torch.Tensor]],
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Compute the loss of a batch and its gradients, with the activations of one mini-batch in memory at a time.

    Args:
        batch: Tensors with one row per sample.
        size: Number of rows of a mini-batch.
        embed: Runs the model on a mini-batch; returns tensors with one row per sample (embeddings, losses of rows,
            masks), and the logit scale, optionally followed by the bias.
        loss: Computes the parts of the loss, with `loss` as their sum, from these rows of the whole batch, scale and
            bias.
        backward: Runs a backward pass from a scalar.
        no_sync: Prevents the exchange of gradients between processes; used for all mini-batches but the last.
        scale: Factor of the gradients, such as 1 / number of accumulated batches.

    Returns:
        The parts of the loss, detached.
    """
    batches = split_batch(batch, size)
    states, outputs = [], []
    with torch.no_grad():
        for part in batches:
            first = next(iter(part.values()))
            states.append((torch.get_rng_state(), *get_device_states(first if first.is_cuda else None)))
            outputs.append(embed(part))
    rows = {name: torch.cat([output[name] for output, _ in outputs]) for name in outputs[0][0]}
    leaves = {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in rows.items()}
    logits = [value.detach().requires_grad_() for value in outputs[0][1]]
    del rows, outputs
    parts = loss(leaves, *logits)
    (parts["loss"] * scale).backward()

    gradients = split_batch({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, size)
    for index, (part, gradient, (state, devices, device_states)) in enumerate(
        zip(batches, gradients, states, strict=True)
    ):
        last = index == len(batches) - 1
        # Both forward passes use the same random numbers (dropout); the generators then continue where they were.
        with nullcontext() if last else no_sync(), torch.random.fork_rng(devices):
            torch.set_rng_state(state)
            set_device_states(devices, device_states)
            again, new_logits = embed(part)
            # The gradient of this sum at each embedding is that of the loss of the whole batch.
            terms = [(again[name] * value).sum().float() for name, value in gradient.items()]
            if last:
                pairs = zip(new_logits, logits, strict=True)
                terms += [(value * whole.grad).sum().float() for value, whole in pairs if whole.grad is not None]
            backward(torch.stack(terms).sum())
    return {name: value.detach() for name, value in parts.items()}
