"""Both ways that the benchmark compares give the same numbers."""

from argparse import Namespace

import pytest

from benchmarks import retrieval


@pytest.mark.parametrize("ways", [("recall fastgoal", "recall clip-benchmark"), ("joint fastgoal", "joint script")])
@pytest.mark.parametrize("noise", [1.5, 4.0])
def test_both_ways_give_the_same_numbers(noise, ways):
    args = Namespace(images=60, captions_each=3, items=60, width=16, noise=noise, k=10, repeats=2)
    ours, theirs = (retrieval.measure(way, args) for way in ways)
    assert {key: ours["metrics"][key] for key in theirs["metrics"]} == pytest.approx(theirs["metrics"], abs=1e-9)
    assert 0 < min(theirs["metrics"].values()) < 1
    assert ours["seconds"] > 0
    assert ours["gib"] > 0.01
