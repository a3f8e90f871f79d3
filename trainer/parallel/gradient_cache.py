"""Gradient caching: the loss and gradients of a large batch with the memory of a small one (arXiv 2101.06983).

A contrastive loss needs the embeddings of the whole batch, but not the activations behind them. So the batch is
embedded in mini-batches without gradients, and the loss over all embeddings gives the gradient of each. Then every
mini-batch is embedded again, with gradients, and its share is propagated through the model. This costs one more
forward pass, unless the batch is a single mini-batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
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
    alone: Callable[[], AbstractContextManager] = nullcontext,
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
        alone: Wraps the two parts that run the model; see `fails_together`.

    Returns:
        The parts of the loss, detached.
    """
    batches = split_batch(batch, size)
    states, outputs = [], []
    with alone(), torch.set_grad_enabled(len(batches) == 1):
        for part in batches:
            states.append(_random_states(part))
            outputs.append(embed(part))
    rows = {name: torch.cat([output[name] for output, _ in outputs]) for name in outputs[0][0]}
    leaves = {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in rows.items()}
    logits = [value.detach().requires_grad_() for value in outputs[0][1]]
    embedded = outputs[0] if len(batches) == 1 else None
    del rows, outputs
    parts = loss(leaves, *logits)
    (parts["loss"] * scale).backward()

    gradients = split_batch({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, size)
    with alone():
        for index, (part, gradient, states_before) in enumerate(zip(batches, gradients, states, strict=True)):
            last = index == len(batches) - 1
            # Both forward passes use the same random numbers (dropout); the generators then continue where they were.
            with nullcontext() if last else no_sync(), torch.random.fork_rng(states_before[1]):
                _set_random_states(states_before)
                again, new_logits = embedded or embed(part)
                # The gradient of this sum at each embedding is that of the loss of the whole batch.
                terms = [(again[name] * value).sum().float() for name, value in gradient.items()]
                if last:
                    pairs = zip(new_logits, logits, strict=True)
                    terms += [(value * whole.grad).sum().float() for value, whole in pairs if whole.grad is not None]
                backward(torch.stack(terms).sum())
    return {name: value.detach() for name, value in parts.items()}


def _random_states(batch: Batch) -> tuple[Any, ...]:
    first = next(iter(batch.values()))
    return (torch.get_rng_state(), *get_device_states(first if first.is_cuda else None))


def _set_random_states(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    set_device_states(*states[1:])


class OutOfMemoryInAny(torch.OutOfMemoryError):
    """An out-of-memory error that all processes raise at the same point."""


@contextmanager
def fails_together(in_any: Callable[[bool], bool]) -> Iterator[None]:
    """Raise an out-of-memory error if the memory of any process is too small for what it runs inside.

    Inside, processes must not wait for each other: one that stopped would leave the others waiting.

    Args:
        in_any: Returns whether the flag of any process is set.

    Raises:
        OutOfMemoryInAny: In all processes.
    """
    message = ""
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = str(error) or "out of memory"
    if in_any(bool(message)):
        raise OutOfMemoryInAny(message or "Another process is out of memory.")


class HalvedOnError:
    """Run steps with the largest number of rows at once that the memory allows.

    Args:
        size: Number of rows to start with.
        several: Whether there are several processes, which can only halve the number together.

    Attributes:
        size: Number of rows at once, halved after every out-of-memory error.
    """

    def __init__(self, size: int, several: bool = False):
        self.size = size
        self._error = OutOfMemoryInAny if several else torch.OutOfMemoryError

    def run(
        self,
        step: Callable[[int], torch.Tensor],
        batch: Batch,
        parameters: Iterable[torch.nn.Parameter],
        note: Callable[[int], None],
    ) -> torch.Tensor:
        """Return the result of `step`, called with the number of rows at once.

        Gradients and random numbers are those of a step that never failed.

        Args:
            step: Adds the gradients of the batch. Several processes raise its errors together, see `fails_together`.
            batch: The rows of the step.
            parameters: The parameters with gradients.
            note: Called with every new size.

        Raises:
            torch.OutOfMemoryError: The memory is too small for a single row.
        """
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        states = _random_states(batch)
        # Of the batches accumulated before; there are none in the first batch of an update.
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
        while True:
            try:
                return step(self.size)
            except self._error:
                if self.size == 1:
                    raise
            # After the handler, since the error keeps the tensors of the failed step.
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            _set_random_states(states)
            clear_device_cache(garbage_collection=True)
            self.size //= 2
            note(self.size)
