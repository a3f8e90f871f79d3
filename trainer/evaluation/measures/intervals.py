"""How sure a retrieval result is: bootstrap intervals, and the paired comparison of two models on the same queries.

What is drawn again is the image with all its captions, as captions of one image succeed and fail together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .cutoffs import KS
from .retrieval import DIRECTIONS, Ranks


class Interval(NamedTuple):
    """The middle 95 % of a metric over resamples: `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same queries.

    Attributes:
        difference: `ours - theirs`.
        interval: 95 % interval of the difference, both models resampled together; None without resamples.
        only_ours: Queries that only the first model gets right; 0 for ranks.
        only_theirs: Queries that only the second gets right, likewise.
    """

    ours: float
    theirs: float
    difference: float
    interval: Interval | None
    only_ours: int = 0
    only_theirs: int = 0

    @property
    def certain(self) -> bool | None:
        """Whether the interval leaves out 0; None without one."""
        return None if self.interval is None else self.interval.low > 0 or self.interval.high < 0


def bootstrap_intervals(
    ranks: Ranks, ks: Sequence[int] = KS, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """95 % percentile intervals of recall@k, mean rank and median rank, both ways.

    Args:
        ranks: Of `retrieval_ranks`.
        ks: As for `retrieval_metrics`, whose keys are returned.
        resamples: How often the images are drawn again, with replacement.
        seed: Of the random numbers; the same seed gives the same intervals.

    Raises:
        ValueError: `resamples` is less than 2.
    """
    sums = _Resampler(ranks, ks)
    return dict(zip(sums.keys, _intervals(sums.resampled(resamples, seed)), strict=True))


def compare(
    ours: Ranks, theirs: Ranks, ks: Sequence[int] = KS, resamples: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """The metrics of two models on the same images and captions, with intervals of their differences.

    The models' embeddings may have different widths: only ranks are compared. With `resamples` 0 there are no
    intervals.

    Raises:
        ValueError: The ranks belong to different captions or images, or `resamples` is 1 or negative.
    """
    asked, theirs_asked = ((len(ranks.text_to_image), len(ranks.image_to_text)) for ranks in (ours, theirs))
    if asked != theirs_asked or not torch.equal(ours.text_to_image_owner.cpu(), theirs.text_to_image_owner.cpu()):
        raise ValueError(
            f"the first model was asked {asked[0]} captions of {asked[1]} images and the second {theirs_asked[0]} of"
            f" {theirs_asked[1]}, or in another order; a paired comparison needs the same queries."
        )
    mine, others = _Resampler(ours, ks), _Resampler(theirs, ks)
    intervals: list[Interval] | list[None] = [None] * len(mine.keys)
    if resamples != 0:
        intervals = _intervals(mine.resampled(resamples, seed) - others.resampled(resamples, seed))
    result = {}
    for key, first, second, interval in zip(mine.keys, mine.values(), others.values(), intervals, strict=True):
        only = (0, 0)
        if "_R@" in key:
            right, theirs_right = _right(ours, key), _right(theirs, key)
            only = (int((right & ~theirs_right).sum()), int((theirs_right & ~right).sum()))
        result[key] = Difference(first, second, first - second, interval, *only)
    return result


def _right(ranks: Ranks, key: str) -> Tensor:
    """Which queries count for a recall such as `text_to_image_R@5`."""
    way, k = key.split("_R@")
    rank: Tensor = getattr(ranks, way).cpu()
    return (rank > 0) & (rank <= int(k))


class _Resampler:
    """The metrics of a test whose images are drawn again.

    Recalls and mean ranks are ratios of sums over images, so that a resample is one product with the images' counts. A
    median rank is found in the sorted ranks, each counted as often as its image was drawn.
    """

    def __init__(self, ranks: Ranks, ks: Sequence[int]) -> None:
        image = ranks.image_to_text.cpu()
        asked = image.nonzero().flatten()  # 0 stands for an image that was not asked for
        text = ranks.text_to_image.cpu()
        none = torch.zeros(len(image), dtype=torch.float64)
        self.keys: list[str] = []
        sums, counts = [], []
        self.sorted: list[tuple[Tensor, Tensor]] = []  # ranks in order, and the image of each
        questions = ((text, ranks.text_to_image_owner.cpu(), len(image)), (image[asked], asked, len(text)))
        for way, (found, owner, candidates) in zip(DIRECTIONS, questions, strict=True):
            values = {f"{way}_R@{k}": (found <= k).double() for k in ks if k <= candidates}
            values[f"{way}_mean_rank"] = found.double()
            self.keys += values
            sums += [none.index_add(0, owner, value) for value in values.values()]
            counts += [none.index_add(0, owner, torch.ones(len(found), dtype=torch.float64))] * len(values)
            order = found.argsort()
            self.sorted.append((found[order].double(), owner[order]))
        self.keys += [f"{way}_median_rank" for way in DIRECTIONS]
        self.table = torch.stack([*sums, *counts], dim=1)  # (images, 2 x metrics without the medians)

    def values(self) -> list[float]:
        return self._metrics(torch.ones(len(self.table), dtype=torch.int64)).tolist()

    def resampled(self, resamples: int, seed: int) -> Tensor:
        """`(resamples, metrics)`; the same draws for the same seed and number of images."""
        if isinstance(resamples, bool) or resamples < 2:
            raise ValueError(f"resamples is {resamples!r}; it must be an integer of at least 2.")
        generator = torch.Generator().manual_seed(seed)
        images = len(self.table)
        results = []
        for _ in range(resamples):
            drawn = torch.randint(images, (images,), generator=generator)
            results.append(self._metrics(torch.bincount(drawn, minlength=images)))
        return torch.stack(results)

    def _metrics(self, times: Tensor) -> Tensor:
        """`(metrics,)` of a draw with each image so many times; NaN where no query was drawn."""
        sums = times.double() @ self.table
        half = len(sums) // 2
        medians = [_median(ranks, times[owners]) for ranks, owners in self.sorted]
        return torch.cat([sums[:half] / sums[half:], torch.stack(medians)])


def _median(values: Tensor, times: Tensor) -> Tensor:
    """Median of sorted values, each taken so many times; the mean of the middle two where their number is even."""
    reached = times.cumsum(0)
    count = int(reached[-1]) if len(reached) else 0
    if count == 0:
        return torch.tensor(float("nan"), dtype=torch.float64)
    middle = torch.searchsorted(reached, torch.tensor([(count - 1) // 2, count // 2]), right=True)
    return values[middle].mean()


def _intervals(values: Tensor) -> list[Interval]:
    """Of `(resamples, metrics)`, the middle 95 % of each metric."""
    low, high = torch.nanquantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype), dim=0).tolist()
    return [Interval(*ends) for ends in zip(low, high, strict=True)]
