"""Batches of captions of like length, so that little of a batch is padding."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

POOL_BATCHES = 50


class CaptionLengthSampler(Sampler[int]):
    """Row numbers in an order in which every batch holds captions of like length.

    Rows are shuffled, sorted by length within pools of 50 batches, cut into batches, and the batches are shuffled. So
    batches differ from epoch to epoch. The negatives of a contrastive loss are then of like length too, which takes a
    clue away that tells nothing about the image.

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
        """Set the epoch that the next pass is; the Trainer calls it, also when it goes on from a checkpoint."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        pools = shuffled.split(POOL_BATCHES * self.batch_size)
        rows = torch.cat([pool[self.lengths[pool].argsort(descending=True)] for pool in pools])
        return self._shuffle_batches(rows, generator)

    def _shuffle_batches(self, rows: torch.Tensor, generator: torch.Generator) -> Iterator[int]:
        """The rows cut into batches, the batches in a new order."""
        batches = list(rows.split(self.batch_size))
        # A batch that is not full can only be the last one: whoever cuts the order into batches cuts it there.
        short = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        order = torch.randperm(len(batches), generator=generator).tolist()
        for batch in [*(batches[i] for i in order), *short]:
            yield from batch.tolist()
