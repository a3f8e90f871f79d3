"""Gradient caching: the loss and gradients of a large batch at the memory of a small one (arXiv 2101.06983).

A contrastive loss needs the embeddings of the whole batch, but not the activations behind them. So the batch is
embedded in chunks without gradients; the loss over all embeddings gives the gradient of each; then every chunk is
embedded again, with gradients, and its share is sent back through the model. Costs one more forward.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils.checkpoint import get_device_states, set_device_states

Rows = dict[str, torch.Tensor]
Batch = Mapping[str, torch.Tensor]


def split_batch(batch: Batch, chunk: int) -> list[Rows]:
    """The batch in pieces of at most `chunk` rows, in order; each tensor is split along its first dimension.

    Raises:
        ValueError: The tensors differ in their number of rows.
    """
    rows = {name: len(value) for name, value in batch.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"All tensors of a batch must have the same number of rows, got {rows}.")
    pieces = {name: value.split(chunk) for name, value in batch.items()}
    return [dict(zip(pieces, values, strict=True)) for values in zip(*pieces.values(), strict=True)]


def cached_backward(
    batch: Batch,
    chunk: int,
    embed: Callable[[Batch], tuple[Rows, Sequence[torch.Tensor]]],
    loss: Callable[..., dict[str, torch.Tensor]],
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Loss of a batch, with its gradients left in the parameters, never holding the activations of more than a chunk.

    Args:
        batch: Tensors with one row per sample.
        chunk: Rows that go through the model at once.
        embed: Runs the model on a piece of the batch; returns tensors with one row per sample (embeddings, losses of
            single rows, masks), and the logit scale, to which a bias may be added.
        loss: From these rows of the whole batch, and scale and bias, to the parts of the loss, with `loss` their sum.
        backward: Runs a backward pass from a scalar.
        no_sync: Keeps the gradients of several processes from being exchanged; entered for all chunks but the last.
        scale: Factor on the gradients, such as 1 / number of accumulated batches.

    Returns:
        The parts of the loss, without gradients.
    """
    pieces = split_batch(batch, chunk)
    states, outputs = [], []
    with torch.no_grad():
        for piece in pieces:
            first = next(iter(piece.values()))
            states.append((torch.get_rng_state(), *get_device_states(first if first.is_cuda else None)))
            outputs.append(embed(piece))
    rows = {name: torch.cat([output[name] for output, _ in outputs]) for name in outputs[0][0]}
    leaves = {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in rows.items()}
    logits = [value.detach().requires_grad_() for value in outputs[0][1]]
    del rows, outputs
    parts = loss(leaves, *logits)
    (parts["loss"] * scale).backward()

    gradients = split_batch({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, chunk)
    for index, (piece, gradient, (state, devices, device_states)) in enumerate(
        zip(pieces, gradients, states, strict=True)
    ):
        last = index == len(pieces) - 1
        # Dropout drops the same units in both forwards; afterwards the random numbers that were due go on.
        with nullcontext() if last else no_sync(), torch.random.fork_rng(devices):
            torch.set_rng_state(state)
            set_device_states(devices, device_states)
            again, chunk_logits = embed(piece)
            # A sum whose gradient at each embedding is the one that the loss of the whole batch has there.
            terms = [(again[name] * value).sum().float() for name, value in gradient.items()]
            if last:
                pairs = zip(chunk_logits, logits, strict=True)
                terms += [(value * whole.grad).sum().float() for value, whole in pairs if whole.grad is not None]
            backward(torch.stack(terms).sum())
    return {name: value.detach() for name, value in parts.items()}
