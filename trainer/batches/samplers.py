"""Orders of the rows of an epoch: batches of captions of similar length, and batches with hard negatives."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

SPREAD = 9
"""Number of batches over which a row may move in the order by length. With 9, a row meets about one in eleven of the
rows of its batch again in the next epoch, if an epoch has that many batches or more. A smaller spread gives batches of
more equal lengths that repeat more often. Pools of 50 batches, a common choice for speed, repeat all batches of a small
dataset in every epoch."""
SKIPPED = 0.3
"""Probability that a row skips a neighbor, so that hard-negative pairs differ between epochs."""


class CaptionLengthSampler(Sampler[int]):
    """Sample rows so that each batch has captions of similar length.

    Rows are sorted by length, moved at random by up to nine batches (at most half of the rows), and cut into batches,
    which are shuffled. Batches differ between epochs. There is less padding, and the negatives of a contrastive loss
    have similar lengths too, which removes a cue that says nothing about the image. If the last batch is not full, its
    rows come from another part of the order in each epoch.

    Args:
        lengths: Length of each row's caption, in any unit.
        batch_size: Number of rows in a batch of all processes.
        seed: The seed of the order; the epoch is added to it.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be positive, got {batch_size}.")
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return self._shuffle_batches(self._by_length(self.lengths, SPREAD * self.batch_size, generator), generator)

    @staticmethod
    def _by_length(lengths: torch.Tensor, spread: float, generator: torch.Generator) -> torch.Tensor:
        """Return indices by length, longest first, ties in random order, each moved by up to `spread` positions."""
        spread = min(spread, len(lengths) / 2)
        shuffled = torch.randperm(len(lengths), generator=generator)
        order = shuffled[lengths[shuffled].argsort(descending=True)]
        return order[(torch.arange(len(order)) + spread * torch.rand(len(order), generator=generator)).argsort()]

    def _shuffle_batches(self, rows: torch.Tensor, generator: torch.Generator, unit: int = 1) -> Iterator[int]:
        """Cut rows into batches and shuffle the batches. Units of rows stay together where possible."""
        rest = len(rows) % self.batch_size
        removed = min(len(rows), -(-rest // unit) * unit)
        start = unit * int(torch.randint((len(rows) - removed) // unit + 1, (), generator=generator))
        rows = torch.cat([rows[:start], rows[start + removed :], rows[start : start + removed]])
        # The batch that is not full must be the last one: that is where batch samplers cut the order.
        full = rows[: len(rows) - rest].reshape(-1, self.batch_size)
        yield from full[torch.randperm(len(full), generator=generator)].flatten().tolist()
        yield from rows[len(rows) - rest :].tolist()


class HardNegativeSampler(CaptionLengthSampler):
    """Sample rows so that most of them share a batch with a row whose image looks similar.

    In each epoch, rows are visited in random order, and each takes its nearest neighbor that is still free; a neighbor
    is skipped with probability 0.3, so that pairs differ between epochs. Batches are made of these pairs, with captions
    of similar length if lengths are given, and then of rows without a partner. Background or subject do not tell such
    images apart, so the contrastive loss has to use the details (hard negatives).

    Args:
        neighbors: Each row's neighbors, nearest first, -1 for none, `(rows, count)`; see `hard_negatives.nearest_rows`.
        batch_size: Number of rows in a batch of all processes.
        seed: The seed of the order; the epoch is added to it.
        lengths: Length of each row's caption, in any unit; None to ignore lengths.
        renew: A function from the epoch that begins to the neighbors from then on, or None to keep them.
    """

    def __init__(
        self,
        neighbors: torch.Tensor,
        batch_size: int,
        seed: int = 0,
        lengths: Sequence[int] | None = None,
        renew: Callable[[int], torch.Tensor | None] = lambda epoch: None,
    ):
        super().__init__(lengths if lengths is not None else [0] * len(neighbors), batch_size, seed)
        self.neighbors = neighbors
        self.renew = renew

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, and renew the neighbors if it is time."""
        super().set_epoch(epoch)
        if (neighbors := self.renew(epoch)) is not None:
            self.neighbors = neighbors

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        pairs, single = self._pair_up(generator)
        by_length = self._by_length(self.lengths[pairs].amax(dim=1), SPREAD * self.batch_size / 2, generator)
        rows = [pairs[by_length].flatten(), single[self.lengths[single].argsort(descending=True, stable=True)]]
        return self._shuffle_batches(torch.cat(rows), generator, unit=2)

    def _pair_up(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pairs of neighbors, `(pairs, 2)`, and the rows without a partner, `(rows,)`."""
        free = set(range(len(self.neighbors)))
        pairs: list[tuple[int, int]] = []
        single: list[int] = []
        kept = torch.rand(self.neighbors.shape, generator=generator) >= SKIPPED
        table = self.neighbors.tolist()
        for row in torch.randperm(len(self.neighbors), generator=generator).tolist():
            if row not in free:
                continue
            free.discard(row)
            choices = zip(table[row], kept[row].tolist(), strict=True)
            partner = next((other for other, keep in choices if keep and other in free), None)
            if partner is None:
                single.append(row)
            else:
                free.discard(partner)
                pairs.append((row, partner))
        return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2), torch.tensor(single, dtype=torch.long)
