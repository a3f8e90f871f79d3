"""Batches in which images that look alike come in twos, so that only the details of a caption tell them apart."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from .length_groups import POOL_BATCHES, CaptionLengthSampler

NEIGHBOURS = 50
SAME_PICTURE = 0.9999
PASSED_OVER = 0.3


def nearest_rows(embeds: torch.Tensor, count: int = NEIGHBOURS, chunk: int = 2048) -> torch.Tensor:
    """The most similar other rows of each row, by cosine, the nearest first.

    Rows that are the same picture (a cosine above 0.9999) are no neighbours: their captions are both right.

    Args:
        embeds: `(rows, dim)`, of any length.
        count: Neighbours wanted; with fewer other rows there are fewer.
        chunk: Rows compared with all others at a time: the memory is `chunk * rows` numbers.

    Returns:
        Row numbers `(rows, count)`, -1 where there is none.
    """
    embeds = F.normalize(embeds.float(), dim=-1)
    found = []
    for start in range(0, len(embeds), chunk):
        similarity = embeds[start : start + chunk] @ embeds.T
        similarity[similarity > SAME_PICTURE] = -torch.inf
        own = torch.arange(len(similarity), device=similarity.device)
        similarity[own, start + own] = -torch.inf
        values, rows = similarity.topk(min(count, max(len(embeds) - 1, 0)), dim=1)
        found.append(rows.masked_fill(values.isneginf(), -1))
    return torch.cat(found) if found else torch.empty(0, 0, dtype=torch.long)


class NearPairSampler(CaptionLengthSampler):
    """Row numbers in an order in which most rows stand beside one that looks like them.

    In every epoch rows are visited at random, and each takes the nearest neighbour that nobody has taken; a nearer one
    is passed over with a chance of 0.3, so that pairs differ from epoch to epoch. Batches are made of such pairs, of
    captions of like length if lengths are given; rows left alone come last in the cutting. The contrastive loss
    cannot tell such twos apart by background or subject: it has to look at the details (hard negatives).

    Args:
        neighbours: Each row's neighbours, the nearest first, -1 for none, `(rows, count)`; see `nearest_rows`.
        batch_size: Rows of a batch over all processes.
        seed: Of the shuffling; the epoch is added to it.
        lengths: Length of each row's caption, in any unit; None leaves lengths out of account.
    """

    def __init__(self, neighbours: torch.Tensor, batch_size: int, seed: int = 0, lengths: Sequence[int] | None = None):
        super().__init__(lengths if lengths is not None else [0] * len(neighbours), batch_size, seed)
        self.neighbours = neighbours

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        pairs, alone = self._pair_up(generator)
        rows = []
        for pool in pairs.split(POOL_BATCHES * max(1, self.batch_size // 2)):
            longest = self.lengths[pool].amax(dim=1)
            rows.append(pool[longest.argsort(descending=True, stable=True)].flatten())
        rows.append(alone[self.lengths[alone].argsort(descending=True, stable=True)])
        return self._shuffle_batches(torch.cat(rows), generator)

    def _pair_up(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs of near rows, `(pairs, 2)`, and the rows that found no partner, `(rows,)`."""
        free = set(range(len(self.neighbours)))
        pairs: list[tuple[int, int]] = []
        alone: list[int] = []
        kept = torch.rand(self.neighbours.shape, generator=generator) >= PASSED_OVER
        table = self.neighbours.tolist()
        for row in torch.randperm(len(self.neighbours), generator=generator).tolist():
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
