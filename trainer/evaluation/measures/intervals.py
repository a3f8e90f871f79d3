"""Bootstrap intervals of results, and the paired comparison of two models on the same queries or items.

Resamples draw images with all their captions, as the captions of one image succeed and fail together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .cutoffs import KS
from .outcomes import Outcomes
from .retrieval import DIRECTIONS, Ranks

Results = Ranks | Mapping[str, Outcomes]
"""The results of a retrieval test, or those of an accuracy test by the names of its metrics."""


class Interval(NamedTuple):
    """The middle 95 % of a metric over resamples, from `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same queries.

    Attributes:
        ours: Value of the first model.
        theirs: Value of the second model.
        difference: `ours - theirs`.
        interval: 95 % interval of the difference, with the same resamples for both models; None without resamples.
        only_ours: Number of queries (items) that only the first model answers correctly; 0 for mean and median ranks.
        only_theirs: Number of queries (items) that only the second model answers correctly, in the same way.
    """

    ours: float
    theirs: float
    difference: float
    interval: Interval | None
    only_ours: int = 0
    only_theirs: int = 0

    @property
    def certain(self) -> bool | None:
        """Whether the interval excludes 0; None without an interval."""
        return None if self.interval is None else self.interval.low > 0 or self.interval.high < 0

    @property
    def verdict(self) -> str:
        """Whether the first model gained or lost, for a metric of which more is better; empty without an interval."""
        if self.interval is None:
            return ""
        if not self.certain:
            return "not told apart from 0"
        return "gained" if self.difference > 0 else "lost"


def accuracies(outcomes: Mapping[str, Outcomes]) -> dict[str, float]:
    """Return the accuracies of an accuracy test as fractions, by the names of its metrics."""
    sampler = _OutcomeResampler(outcomes)
    return dict(zip(sampler.keys, sampler.values(), strict=True))


def bootstrap_intervals(
    results: Results, ks: Sequence[int] = KS, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Compute 95 % percentile intervals of recall@k, mean rank and median rank in both directions, or of accuracies.

    Args:
        results: Ranks from `retrieval_ranks`, or the outcomes of an accuracy test by the names of its metrics.
        ks: Values of k, as for `retrieval_metrics`. The keys of the result are the same.
        resamples: Number of times that the images (or items) are drawn with replacement.
        seed: Seed of the draws.

    Raises:
        ValueError: `resamples` is less than 2.
    """
    sampler = _resampler(results, ks)
    return dict(zip(sampler.keys, _intervals(sampler.resampled(resamples, seed)), strict=True))


def compare(
    ours: Results, theirs: Results, ks: Sequence[int] = KS, resamples: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """Compare the metrics of two models on the same images and captions, with intervals of the differences.

    Only ranks or outcomes are compared, so the embeddings of the models may have different widths. With `resamples=0`
    there are no intervals.

    Raises:
        ValueError: The results belong to different queries or items, or `resamples` is 1 or negative.
    """
    _require_same_queries(ours, theirs)
    first, second = _resampler(ours, ks), _resampler(theirs, ks)
    intervals: list[Interval] | list[None] = [None] * len(first.keys)
    if resamples != 0:
        intervals = _intervals(first.resampled(resamples, seed) - second.resampled(resamples, seed))
    result = {}
    for key, value, other_value, interval in zip(first.keys, first.values(), second.values(), intervals, strict=True):
        only = (0, 0)
        correct, other_correct = _correct(ours, key), _correct(theirs, key)
        if correct is not None and other_correct is not None:
            only = (int((correct & ~other_correct).sum()), int((other_correct & ~correct).sum()))
        result[key] = Difference(value, other_value, value - other_value, interval, *only)
    return result


def _require_same_queries(ours: Results, theirs: Results) -> None:
    """Raise `ValueError` if two results belong to different queries or items."""
    if isinstance(ours, Ranks) and isinstance(theirs, Ranks):
        queries, other_queries = ((len(ranks.text_to_image), len(ranks.image_to_text)) for ranks in (ours, theirs))
        if queries != other_queries or not torch.equal(
            ours.text_to_image_owner.cpu(), theirs.text_to_image_owner.cpu()
        ):
            raise ValueError(
                "`ours` and `theirs` must belong to the same queries in the same order, got"
                f" {queries[0]} captions of {queries[1]} images and {other_queries[0]} of {other_queries[1]}."
            )
        return
    items, other_items = (
        {} if isinstance(results, Ranks) else {key: len(entry.correct) for key, entry in results.items()}
        for results in (ours, theirs)
    )
    if items != other_items or not items:
        raise ValueError(f"`ours` and `theirs` must belong to the same items, got {items} and {other_items}.")


def _correct(results: Results, key: str) -> Tensor | None:
    """Return which queries count for a metric such as `text_to_image_R@5`; None for mean and median ranks."""
    if not isinstance(results, Ranks):
        return results[key].correct.bool()
    direction, is_recall, k = key.partition("_R@")
    if not is_recall:
        return None
    rank: Tensor = getattr(results, direction).cpu()
    return (rank > 0) & (rank <= int(k))


def _resampler(results: Results, ks: Sequence[int]) -> "_RankResampler | _OutcomeResampler":
    return _RankResampler(results, ks) if isinstance(results, Ranks) else _OutcomeResampler(results)


def _draws(count: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Yield `(count,)` int64, how often each of `count` images is drawn in each resample."""
    if isinstance(resamples, bool) or resamples < 2:
        raise ValueError(f"`resamples` must be an integer of at least 2, got {resamples!r}.")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(resamples):
        yield torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count)


class _OutcomeResampler:
    """The accuracies of a test with the owners of its items resampled, each metric by itself."""

    def __init__(self, outcomes: Mapping[str, Outcomes]) -> None:
        self.keys = [*outcomes]
        self.outcomes = [*outcomes.values()]

    def values(self) -> list[float]:
        """Return the accuracies without resampling."""
        return [float(_accuracy(entry, torch.ones(len(entry.correct)))) for entry in self.outcomes]

    def resampled(self, resamples: int, seed: int) -> Tensor:
        """Return `(resamples, metrics)`; the draws depend on the seed and on the number of owners alone."""
        columns = []
        for entry in self.outcomes:
            owner = torch.arange(len(entry.correct)) if entry.owner is None else entry.owner
            draws = _draws(int(owner.max()) + 1, resamples, seed)
            columns.append(torch.stack([_accuracy(entry, times[owner]) for times in draws]))
        return torch.stack(columns, dim=1)


def _accuracy(outcomes: Outcomes, times: Tensor) -> Tensor:
    """Return the accuracy with each item taken `times` times; NaN if all are taken 0 times."""
    times = times.double()
    right = times * outcomes.correct
    if outcomes.classes is None:
        return right.sum() / times.sum()
    zeros = torch.zeros(int(outcomes.classes.max()) + 1, dtype=torch.float64)
    taken = zeros.index_add(0, outcomes.classes, times)
    share = zeros.index_add(0, outcomes.classes, right) / taken
    return share[taken > 0].mean()


class _RankResampler:
    """The metrics of a retrieval test with its images resampled.

    Recalls and mean ranks are ratios of sums over images, so a resample is one product with the counts of the images. A
    median rank is read from the sorted ranks, each counted as often as its image was drawn.
    """

    def __init__(self, ranks: Ranks, ks: Sequence[int]) -> None:
        image = ranks.image_to_text.cpu()
        is_query = image.nonzero().flatten()  # 0 is the rank of an image that is not a query
        text = ranks.text_to_image.cpu()
        zeros = torch.zeros(len(image), dtype=torch.float64)
        self.keys: list[str] = []
        sums, counts = [], []
        self.sorted: list[tuple[Tensor, Tensor]] = []  # ranks in order, and the image of each
        queries = ((text, ranks.text_to_image_owner.cpu(), len(image)), (image[is_query], is_query, len(text)))
        for direction, (rank, owner, candidates) in zip(DIRECTIONS, queries, strict=True):
            values = {f"{direction}_R@{k}": (rank <= k).double() for k in ks if k <= candidates}
            values[f"{direction}_mean_rank"] = rank.double()
            self.keys += values
            sums += [zeros.index_add(0, owner, value) for value in values.values()]
            counts += [zeros.index_add(0, owner, torch.ones(len(rank), dtype=torch.float64))] * len(values)
            order = rank.argsort()
            self.sorted.append((rank[order].double(), owner[order]))
        self.keys += [f"{direction}_median_rank" for direction in DIRECTIONS]
        self.table = torch.stack([*sums, *counts], dim=1)  # (images, 2 x metrics without the medians)

    def values(self) -> list[float]:
        """Return the metrics without resampling."""
        return self._metrics(torch.ones(len(self.table), dtype=torch.int64)).tolist()

    def resampled(self, resamples: int, seed: int) -> Tensor:
        """Return `(resamples, metrics)`; the draws depend on the seed and on the number of images alone."""
        return torch.stack([self._metrics(times) for times in _draws(len(self.table), resamples, seed)])

    def _metrics(self, times: Tensor) -> Tensor:
        """Return `(metrics,)` with each image drawn `times` times; NaN if no query was drawn."""
        sums = times.double() @ self.table
        half = len(sums) // 2
        medians = [_median(ranks, times[owners]) for ranks, owners in self.sorted]
        return torch.cat([sums[:half] / sums[half:], torch.stack(medians)])


def _median(values: Tensor, times: Tensor) -> Tensor:
    """Return the median of sorted values, each taken `times` times; of an even number the mean of the middle two."""
    reached = times.cumsum(0)
    count = int(reached[-1]) if len(reached) else 0
    if count == 0:
        return torch.tensor(float("nan"), dtype=torch.float64)
    middle = torch.searchsorted(reached, torch.tensor([(count - 1) // 2, count // 2]), right=True)
    return values[middle].mean()


def _intervals(values: Tensor) -> list[Interval]:
    """Return the middle 95 % of each metric of `(resamples, metrics)`."""
    low, high = torch.nanquantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype), dim=0).tolist()
    return [Interval(*ends) for ends in zip(low, high, strict=True)]
