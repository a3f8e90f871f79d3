"""Gradient caching: the loss and gradients of a large batch at the memory of a small one (arXiv 2101.06983).

A contrastive loss needs the embeddings of the whole batch, but not the activations behind them. So the batch is
embedded in chunks without gradients; the loss over all embeddings gives the gradient of each; then every chunk is
embedded again, with gradients, and its share is sent back through the model. Costs one more forward.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

Rows = dict[str, torch.Tensor]
Batch = Mapping[str, torch.Tensor]


def split_batch(batch: Batch, chunk: int) -> list[dict[str, torch.Tensor]]:
    """The batch in pieces of at most `chunk` rows, in order; each tensor is split along its first dimension.

    Raises:
        ValueError: `chunk` is not positive, or the tensors differ in their number of rows.
    """
    if chunk < 1:
        raise ValueError(f"`gradient_cache_chunk` must be positive, got {chunk}.")
    rows = {name: len(value) for name, value in batch.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"All tensors of a batch must have the same number of rows, got {rows}.")
    pieces = {name: value.split(chunk) for name, value in batch.items()}
    return [dict(zip(pieces, values, strict=True)) for values in zip(*pieces.values(), strict=True)]


def cached_backward(
    batch: Batch,
    chunk: int,
    embed: Callable[[Batch], tuple[Rows, torch.Tensor]],
    loss: Callable[[Rows, torch.Tensor], dict[str, torch.Tensor]],
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Loss of a batch, with its gradients left in the parameters, never holding the activations of more than a chunk.

    Args:
        batch: Tensors with one row per sample.
        chunk: Rows that go through the model at once.
        embed: Runs the model on a piece of the batch; returns tensors with one row per sample (embeddings, losses of
            single rows, masks) and the logit scale.
        loss: From these rows of the whole batch and the logit scale to the parts of the loss, with `loss` their sum.
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
            states.append(_RandomState(next(iter(piece.values())).device))
            outputs.append(embed(piece))
    rows = {name: torch.cat([output[name] for output, _ in outputs]) for name in outputs[0][0]}
    leaves = {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in rows.items()}
    logit_scale = outputs[0][1].detach().requires_grad_()
    del rows, outputs
    parts = loss(leaves, logit_scale)
    (parts["loss"] * scale).backward()

    gradients = split_batch({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, chunk)
    for index, (piece, gradient, state) in enumerate(zip(pieces, gradients, states, strict=True)):
        last = index == len(pieces) - 1
        with nullcontext() if last else no_sync(), state.replayed():
            again, chunk_scale = embed(piece)
            # A sum whose gradient at each embedding is the one that the loss of the whole batch has there.
            terms = [(again[name] * value).sum().float() for name, value in gradient.items()]
            if last and logit_scale.grad is not None:
                terms.append((chunk_scale * logit_scale.grad).float())
            backward(torch.stack(terms).sum())
    return {name: value.detach() for name, value in parts.items()}


class _RandomState:
    """The state of the random numbers at one moment, so that dropout drops the same units in both forwards."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within, the random numbers of that moment come again; afterwards those that were due go on."""
        devices = [] if self.cuda is None else [self.device]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield
