"""Orders of the rows of an epoch: batches of captions of like length, and of images that look alike in twos."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

SPREAD = 9
"""Batches over which a row may move from its place by length: of two rows in a batch about one in eleven meets the
other again in the next epoch, where an epoch has so many batches and more. Fewer make batches of liker length that come
again; with pools of 50 batches, as often used for speed, a small dataset has the same batches in every epoch."""
PASSED_OVER = 0.3


class CaptionLengthSampler(Sampler[int]):
    """Row numbers in an order in which every batch holds captions of like length.

    Rows are sorted by length, each moved by up to nine batches (at most half of the rows) from its place at random,
    and cut into batches, which are shuffled. So batches differ from epoch to epoch. The negatives of a contrastive
    loss are then of like length too, which takes a clue away that tells nothing about the image. A last batch that is
    not full is taken out of the order at another place in every epoch.

    Args:
        lengths: Length of each row's caption, in any unit.
        batch_size: Rows of a batch over all processes.
        seed: Of the shuffling; the epoch is added to it.
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
        """Set the epoch that the next pass is."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return self._shuffle_batches(self._by_length(self.lengths, SPREAD * self.batch_size, generator), generator)

    @staticmethod
    def _by_length(lengths: torch.Tensor, spread: float, generator: torch.Generator) -> torch.Tensor:
        """Numbers of the lengths, the longest first, each moved by up to `spread` places; equal ones at random."""
        spread = min(spread, len(lengths) / 2)
        shuffled = torch.randperm(len(lengths), generator=generator)
        order = shuffled[lengths[shuffled].argsort(descending=True)]
        return order[(torch.arange(len(order)) + spread * torch.rand(len(order), generator=generator)).argsort()]

    def _shuffle_batches(self, rows: torch.Tensor, generator: torch.Generator, unit: int = 1) -> Iterator[int]:
        """The rows cut into batches, the batches in a new order; rows stay together in units where they can."""
        short = len(rows) % self.batch_size
        run = min(len(rows), -(-short // unit) * unit)
        start = unit * int(torch.randint((len(rows) - run) // unit + 1, (), generator=generator))
        rows = torch.cat([rows[:start], rows[start + run :], rows[start : start + run]])
        # A batch that is not full can only be the last one: whoever cuts the order into batches cuts it there.
        full = rows[: len(rows) - short].reshape(-1, self.batch_size)
        yield from full[torch.randperm(len(full), generator=generator)].flatten().tolist()
        yield from rows[len(rows) - short :].tolist()


class HardNegativeSampler(CaptionLengthSampler):
    """Row numbers in an order in which most rows stand beside one that looks like them.

    In every epoch rows are visited at random, and each takes the nearest neighbor that nobody has taken; a nearer one
    is passed over with a chance of 0.3, so that pairs differ from epoch to epoch. Batches are made of such pairs, of
    captions of like length if lengths are given; rows left alone come after them in the cutting. The contrastive loss
    cannot tell such twos apart by background or subject: it has to look at the details (hard negatives).

    Args:
        neighbors: Each row's neighbors, the nearest first, -1 for none, `(rows, count)`; see
            `neighbors.nearest_rows`.
        batch_size: Rows of a batch over all processes.
        seed: Of the shuffling; the epoch is added to it.
        lengths: Length of each row's caption, in any unit; None leaves lengths out of account.
        renew: From the number of an epoch that begins to the neighbors from then on, or None where they stay.
    """

    def __init__(
        self,
        neighbors: torch.Tensor,
        batch_size: int,
        seed: int = 0,
        lengths: Sequence[int] | None = None,
        renew: Callable[[int], torch.Tensor | None] | None = None,
    ):
        super().__init__(lengths if lengths is not None else [0] * len(neighbors), batch_size, seed)
        self.neighbors = neighbors
        self.renew = renew

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next pass is; others may be neighbors from it on."""
        super().set_epoch(epoch)
        if self.renew is not None and (found := self.renew(epoch)) is not None:
            self.neighbors = found

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        pairs, alone = self._pair_up(generator)
        by_length = self._by_length(self.lengths[pairs].amax(dim=1), SPREAD * self.batch_size / 2, generator)
        rows = [pairs[by_length].flatten(), alone[self.lengths[alone].argsort(descending=True, stable=True)]]
        return self._shuffle_batches(torch.cat(rows), generator, unit=2)

    def _pair_up(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs of near rows, `(pairs, 2)`, and the rows that found no partner, `(rows,)`."""
        free = set(range(len(self.neighbors)))
        pairs: list[tuple[int, int]] = []
        alone: list[int] = []
        kept = torch.rand(self.neighbors.shape, generator=generator) >= PASSED_OVER
        table = self.neighbors.tolist()
        for row in torch.randperm(len(self.neighbors), generator=generator).tolist():
            if row not in free:
                continue
            free.discard(row)
            choices = zip(table[row], kept[row].tolist(), strict=True)
            partner = next((other for other, keep in choices if keep and other in free), None)
            if partner is None:
                alone.append(row)
            else:
                free.discard(partner)
                pairs.append((row, partner))
        return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2), torch.tensor(alone, dtype=torch.long)
