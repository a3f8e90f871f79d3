import pytest
import torch

from fastgoal.trainer.intervals import bootstrap_intervals, compare
from fastgoal.trainer.retrieval import Ranks, retrieval_ranks


def ranks_of(text, image, owner=None):
    owner = range(len(text)) if owner is None else owner
    return Ranks(torch.tensor(text), torch.tensor(image), torch.tensor(list(owner)))


def test_interval_of_a_share_is_the_binomial_one():
    """100 images, half of them right: the share of a resample has the standard deviation 0.05."""
    ranks = ranks_of([1, 2] * 50, [1] * 100)
    interval = bootstrap_intervals(ranks, ks=(1,), resamples=4000)["text_to_image_R@1"]
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)
    always = bootstrap_intervals(ranks, ks=(1,))["image_to_text_R@1"]
    assert (always.low, always.high) == (1.0, 1.0)


def test_captions_of_an_image_are_drawn_together():
    """Ten images whose 50 captions succeed or fail as one: the interval is that of 10, not of 500, queries."""
    ranks = ranks_of([1] * 250 + [2] * 250, [1] * 10, [i for i in range(10) for _ in range(50)])
    interval = bootstrap_intervals(ranks, ks=(1,))["text_to_image_R@1"]
    assert interval.high - interval.low > 0.4


def test_same_seed_same_interval():
    ranks = ranks_of([1, 2, 3, 1], [1, 1, 2, 4])
    assert bootstrap_intervals(ranks, seed=3) == bootstrap_intervals(ranks, seed=3)
    with pytest.raises(ValueError, match="resamples is 1"):
        bootstrap_intervals(ranks, resamples=1)


def test_compare():
    ours, theirs = ranks_of([1] * 60 + [5] * 40, [1] * 100), ranks_of([1] * 30 + [5] * 65 + [1] * 5, [1] * 100)
    result = compare(ours, theirs, ks=(1, 5))
    first = result["text_to_image_R@1"]
    assert (first.ours, first.theirs, first.only_ours, first.only_theirs) == (0.6, 0.35, 30, 5)
    assert first.difference == pytest.approx(0.25)
    assert first.interval.low < 0.25 < first.interval.high
    assert first.certain
    assert not result["text_to_image_R@5"].certain
    assert result["text_to_image_mean_rank"].difference == pytest.approx(2.6 - 3.6)


def test_models_of_different_widths_can_be_compared_but_not_different_queries():
    generator = torch.Generator().manual_seed(0)
    wide = retrieval_ranks(torch.randn(5, 8, generator=generator), torch.randn(5, 8, generator=generator))
    narrow = retrieval_ranks(torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator))
    assert set(compare(wide, narrow, ks=(1,))) == {
        f"{way}_{name}" for way in ("text_to_image", "image_to_text") for name in ("R@1", "mean_rank")
    }
    with pytest.raises(ValueError, match="asked 5 captions of 5 images and the second 4 of 4"):
        compare(wide, retrieval_ranks(torch.eye(4), torch.eye(4)))
