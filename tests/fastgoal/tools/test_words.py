"""Numbers as a person says them, and what a push says."""

import pytest

from fastgoal.hub_cards.pushing import Pushed
from fastgoal.tools.words import counted, decimals, describe_push, size_in_words


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


def test_a_single_file_is_not_called_files(tmp_path):
    pushed = Pushed("model", "me/clip", ["config.json"], [], "https://hub/me/clip")
    assert describe_push(pushed, tmp_path) == "https://hub/me/clip: 1 file"
    left_out = ["old/a.bin", "old/b.bin", "run.log"]
    pushed = Pushed("model", "me/clip", ["config.json", "README.md"], left_out, "https://hub/me/clip")
    assert describe_push(pushed, tmp_path) == "https://hub/me/clip: 2 files\nnot sent: old/, run.log"
