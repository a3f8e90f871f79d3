"""Both ways that the benchmark compares give the same recalls."""

from argparse import Namespace

import pytest

from benchmarks import retrieval


@pytest.mark.parametrize("noise", [1.5, 4.0])
def test_both_ways_give_the_same_recalls(noise):
    args = Namespace(images=60, captions_each=3, width=16, noise=noise, ks=[1, 5, 10], repeats=2)
    ours, theirs = (retrieval.measure(name, args) for name in ("fastgoal", "clip-benchmark"))
    assert len(theirs["metrics"]) == 6
    assert {key: ours["metrics"][key] for key in theirs["metrics"]} == pytest.approx(theirs["metrics"], abs=1e-12)
    assert 0 < min(theirs["metrics"].values()) < 1
    assert ours["seconds"] > 0
    assert ours["gib"] > 0.01
