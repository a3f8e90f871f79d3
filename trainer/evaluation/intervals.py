"""How sure a retrieval result is: bootstrap intervals, and the paired comparison of two models on the same queries.

What is drawn again is the image with all its captions, as captions of one image succeed and fail together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .retrieval import KS, Ranks


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of a metric over resamples: `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same queries.

    Attributes:
        ours: Of the first model.
        theirs: Of the second.
        difference: `ours - theirs`.
        interval: 95 % interval of the difference, both models resampled together.
        only_ours: Queries that only the first model gets right; 0 for ranks.
        only_theirs: Queries that only the second gets right.
    """

    ours: float
    theirs: float
    difference: float
    interval: Interval
    only_ours: int = 0
    only_theirs: int = 0

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval.low > 0 or self.interval.high < 0


def bootstrap_intervals(
    ranks: Ranks, ks: Sequence[int] = KS, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """95 % percentile intervals of recall@k, mean rank and median rank, both ways.

    Args:
        ranks: Of `retrieval_ranks`.
        ks: The k of recall@k; one greater than the number of candidates is left out.
        resamples: How often the images are drawn again, with replacement.
        seed: Of the random numbers; the same seed gives the same intervals.

    Returns:
        The keys of `retrieval_metrics`.

    Raises:
        ValueError: `resamples` is less than 2.
    """
    sums = _Resampler(ranks, ks)
    low, high = _quantiles(sums.resampled(resamples, seed))
    return {key: Interval(float(a), float(b)) for key, a, b in zip(sums.keys, low.tolist(), high.tolist(), strict=True)}


def compare(
    ours: Ranks, theirs: Ranks, ks: Sequence[int] = KS, resamples: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """The metrics of two models on the same images and captions, with intervals of their differences.

    The models' embeddings may have different widths: only ranks are compared.

    Raises:
        ValueError: The ranks belong to different captions or images, or `resamples` is less than 2.
    """
    if not torch.equal(ours.text_to_image_owner.cpu(), theirs.text_to_image_owner.cpu()) or len(
        ours.image_to_text
    ) != len(theirs.image_to_text):
        raise ValueError(
            f"the first model was asked {len(ours.text_to_image)} captions of {len(ours.image_to_text)} images and the"
            f" second {len(theirs.text_to_image)} of {len(theirs.image_to_text)}, or in another order; a paired"
            " comparison needs the same queries."
        )
    mine, others = _Resampler(ours, ks), _Resampler(theirs, ks)
    low, high = _quantiles(mine.resampled(resamples, seed) - others.resampled(resamples, seed))
    result = {}
    values = zip(mine.keys, mine.values(), others.values(), low.tolist(), high.tolist(), strict=True)
    for key, first, second, a, b in values:
        only = (0, 0)
        if "_R@" in key:
            k = int(key.split("@")[1])
            right = [
                (rank <= k) & (rank > 0)
                for rank in (getattr(which, key.split("_R@")[0]).cpu() for which in (ours, theirs))
            ]
            only = (int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
        result[key] = Difference(first, second, first - second, Interval(a, b), *only)
    return result


class _Resampler:
    """The metrics of a test whose images are drawn again.

    Recalls and mean ranks are ratios of sums over images, so that a resample is one product with the images' counts. A
    median rank is found in the sorted ranks, each counted as often as its image was drawn.
    """

    def __init__(self, ranks: Ranks, ks: Sequence[int]) -> None:
        owner, text = ranks.text_to_image_owner.cpu(), ranks.text_to_image.cpu()
        image = ranks.image_to_text.cpu()
        asked = (image > 0).double()
        images, texts = len(image), len(text)
        per_image = torch.zeros(images, dtype=torch.float64)
        captions = per_image.index_add(0, owner, torch.ones(texts, dtype=torch.float64))
        self.keys: list[str] = []
        sums, counts = [], []
        self.sorted: list[tuple[Tensor, Tensor]] = []  # ranks in order, and the image of each
        for direction, candidates in (("text_to_image", images), ("image_to_text", texts)):
            for k in (*ks, None):
                if k is not None and k > candidates:
                    continue
                self.keys.append(f"{direction}_mean_rank" if k is None else f"{direction}_R@{k}")
                if direction == "text_to_image":
                    value = text.double() if k is None else (text <= k).double()
                    sums.append(per_image.index_add(0, owner, value))
                    counts.append(captions)
                else:
                    sums.append((image.double() if k is None else (image <= k).double()) * asked)
                    counts.append(asked)
            values, owners = (text, owner) if direction == "text_to_image" else (image, torch.arange(images))
            order = values.argsort()[(values == 0).sum() :]  # 0 stands for an image that was not asked for
            self.sorted.append((values[order].double(), owners[order]))
        self.keys += [f"{direction}_median_rank" for direction in ("text_to_image", "image_to_text")]
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


def _quantiles(values: Tensor) -> tuple[Tensor, Tensor]:
    quantiles = torch.nanquantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype), dim=0)
    return quantiles[0], quantiles[1]
