"""Numbers as a person says them."""

import pytest

from fastgoal.tools.words import counted, decimals, size_in_words


def test_numbers():
    assert counted(1, "file") == "1 file"
    assert counted(0, "file") == "0 files"
    assert counted(1200, "row") == "1,200 rows"
    assert decimals(-0.00004, 4) == "0.0000"
    assert decimals(-0.00006, 4) == "-0.0001"


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (10**15, "1000.0 TB")]
)
def test_sizes(size, words):
    assert size_in_words(size) == words
