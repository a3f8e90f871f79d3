import statistics

import numpy as np
import pytest
import torch

from fastgoal.trainer.evaluation.measures.intervals import accuracies, bootstrap_intervals, compare
from fastgoal.trainer.evaluation.measures.outcomes import Outcomes
from fastgoal.trainer.evaluation.measures.retrieval import Ranks, retrieval_ranks


def ranks_of(text, image, owner=None):
    owner = range(len(text)) if owner is None else owner
    return Ranks(torch.tensor(text), torch.tensor(image), torch.tensor(list(owner)))


def test_interval_of_a_share_is_the_binomial_one():
    """100 images, half of them right: the share of a resample has the standard deviation 0.05."""
    ranks = ranks_of([1, 2] * 50, [1] * 100)
    interval = bootstrap_intervals(ranks, ks=(1,), resamples=2000)["text_to_image_R@1"]
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)
    always = bootstrap_intervals(ranks, ks=(1,))["image_to_text_R@1"]
    assert (always.low, always.high) == (1.0, 1.0)


def test_captions_of_an_image_are_drawn_together():
    """Ten images whose 50 captions succeed or fail as one: the interval is that of 10, not of 500, queries."""
    ranks = ranks_of([1] * 250 + [2] * 250, [1] * 10, [i for i in range(10) for _ in range(50)])
    interval = bootstrap_intervals(ranks, ks=(1,))["text_to_image_R@1"]
    assert interval.high - interval.low > 0.4


def test_resamples_are_the_metrics_of_the_images_drawn():
    """Against Python's median and a mean over the queries of each resample, one by one."""
    generator = torch.Generator().manual_seed(1)
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    text, image = torch.randint(1, 9, (10,), generator=generator), torch.randint(1, 9, (7,), generator=generator)
    image[6] = 0  # an image without a caption is no query
    found = bootstrap_intervals(Ranks(text, image, owner), ks=(3,), resamples=300, seed=5)

    generator, expected = torch.Generator().manual_seed(5), []
    for _ in range(300):
        drawn = torch.randint(7, (7,), generator=generator).tolist()
        texts = [int(rank) for number in drawn for rank in text[owner == number]]
        images = [int(image[number]) for number in drawn if image[number] > 0]
        values = {}
        for way, ranks in (("text_to_image", texts), ("image_to_text", images)):
            values[f"{way}_R@3"] = sum(rank <= 3 for rank in ranks) / len(ranks)
            values[f"{way}_mean_rank"] = statistics.fmean(ranks)
            values[f"{way}_median_rank"] = statistics.median(ranks)
        expected.append(values)
    assert set(found) == set(expected[0])
    for key, interval in found.items():
        low, high = np.quantile([values[key] for values in expected], (0.025, 0.975))
        assert (interval.low, interval.high) == pytest.approx((low, high))


def test_interval_of_a_median_rank():
    """The median of 100 ranks 1 to 100: its interval is that of the 40th to the 60th, by the binomial distribution."""
    ranks = list(range(1, 101))
    interval = bootstrap_intervals(ranks_of(ranks, ranks), resamples=2000)["image_to_text_median_rank"]
    assert interval.low == pytest.approx(40.5, abs=1.5)
    assert interval.high == pytest.approx(60.5, abs=1.5)


def test_same_seed_same_interval():
    ranks = ranks_of([1, 2, 3, 1], [1, 1, 2, 4])
    assert bootstrap_intervals(ranks, seed=3) == bootstrap_intervals(ranks, seed=3)
    with pytest.raises(ValueError, match=r"`resamples` .* got 1"):
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
    median = result["text_to_image_median_rank"]
    assert (median.ours, median.theirs, median.difference) == (1.0, 5.0, -4.0)


def test_models_of_different_widths_can_be_compared_but_not_different_queries():
    generator = torch.Generator().manual_seed(0)
    wide = retrieval_ranks(torch.randn(5, 8, generator=generator), torch.randn(5, 8, generator=generator))
    narrow = retrieval_ranks(torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator))
    assert set(compare(wide, narrow, ks=(1,))) == {
        f"{way}_{name}" for way in ("text_to_image", "image_to_text") for name in ("R@1", "mean_rank", "median_rank")
    }
    with pytest.raises(ValueError, match="5 captions of 5 images and 4 of 4"):
        compare(wide, retrieval_ranks(torch.eye(4), torch.eye(4)))


def outcomes_of(correct, **fields):
    return Outcomes(torch.tensor(correct) > 0, **{name: torch.tensor(value) for name, value in fields.items()})


def test_accuracies():
    """Three of four items; by class 1/2 and 1, and a class without items does not count."""
    correct = [1, 0, 1, 1]
    outcomes = {"all": outcomes_of(correct), "per_class": outcomes_of(correct, classes=[0, 0, 2, 2])}
    assert accuracies(outcomes) == {"all": 0.75, "per_class": 0.75}
    uneven = {"all": outcomes_of(correct), "per_class": outcomes_of(correct, classes=[0, 0, 2, 0])}
    assert accuracies(uneven) == {"all": 0.75, "per_class": pytest.approx((2 / 3 + 1) / 2)}


def test_interval_of_an_accuracy_is_the_binomial_one():
    """100 items, half of them right: a resample's share has the standard deviation 0.05. Of 10 owners it is 0.16."""
    half = [0] * 50 + [1] * 50
    outcomes = {"all": outcomes_of(half), "owned": outcomes_of(half, owner=[item // 10 for item in range(100)])}
    intervals = bootstrap_intervals(outcomes, resamples=2000)
    for key, deviation in (("all", 0.05), ("owned", 0.158)):
        assert intervals[key].low == pytest.approx(0.5 - 1.96 * deviation, abs=0.02)
        assert intervals[key].high == pytest.approx(0.5 + 1.96 * deviation, abs=0.02)


def test_resamples_of_a_mean_per_class_are_those_of_the_items_drawn():
    """Against means of Python over the items of each resample, one by one."""
    correct, classes = [1, 0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 1, 2, 2]
    found = bootstrap_intervals({"m": outcomes_of(correct, classes=classes)}, resamples=200, seed=3)["m"]
    generator, expected = torch.Generator().manual_seed(3), []
    for _ in range(200):
        drawn = torch.randint(7, (7,), generator=generator).tolist()
        groups = [[correct[item] for item in drawn if classes[item] == label] for label in range(3)]
        expected.append(statistics.fmean(statistics.fmean(group) for group in groups if group))
    low, high = np.quantile(expected, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_compare_accuracies():
    ours, theirs = {"a": outcomes_of([1] * 60 + [0] * 40)}, {"a": outcomes_of([1] * 30 + [0] * 65 + [1] * 5)}
    found = compare(ours, theirs)["a"]
    assert (found.ours, found.theirs, found.only_ours, found.only_theirs) == (0.6, 0.35, 30, 5)
    assert found.interval.low < 0.25 < found.interval.high
    assert found.certain
    for other in ({"a": outcomes_of([1])}, {"b": ours["a"]}, ranks_of([1], [1])):
        with pytest.raises(ValueError, match="the same items"):
            compare(ours, other)
