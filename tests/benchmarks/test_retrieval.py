"""The straightforward script finds the numbers of the package."""

from argparse import Namespace

import pytest

from benchmarks import retrieval


@pytest.mark.parametrize("noise", [1.5, 4.0])
def test_both_find_the_same(noise):
    args = Namespace(items=60, width=16, noise=noise, k=10, repeats=2)
    ours, script = (retrieval.measure(which, args) for which in ("ours", "script"))
    assert ours["metrics"] == pytest.approx(script["metrics"], abs=1e-9)
    assert 0 < min(ours["metrics"].values()) < 1
    assert ours["seconds"] > 0
    assert ours["gib"] > 0.01
