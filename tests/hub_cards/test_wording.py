import pytest

from fastgoal.hub_cards.wording import count, number, percent, size_in_words


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (-0.0001, 3, "0.000"),
        (-0.0, 2, "0.00"),
        (-0.0006, 3, "-0.001"),
        (1234.5, 1, "1,234.5"),
        (7, 0, "7"),
        (-0.4, 0, "0"),
    ],
)
def test_values_that_round_to_zero_have_no_sign(value, digits, text):
    assert number(value, digits) == text


def test_plurals():
    assert [count(many, "file") for many in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]
    assert count(2, "query", "queries") == "2 queries"


def test_percent():
    assert [percent(share) for share in (0, 0.0001, 0.1234, 1)] == ["0.0 %", "<0.1 %", "12.3 %", "100.0 %"]


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (10**15, "1000.0 TB")]
)
def test_sizes(size, words):
    assert size_in_words(size) == words
