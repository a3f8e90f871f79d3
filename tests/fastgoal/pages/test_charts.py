import pytest

from fastgoal.pages.charts import BOTTOM, CURVE_BOX, LEFT, RIGHT, TOP, curve, histogram


def test_two_histograms_in_percent_of_their_own_totals():
    chart = histogram(
        {"all": [1, 3, 0], "best": [0, 1, 1]}, [-1.0, 0.0, 1.0, 2.0], "cosine", [(1.9, "late"), (9, "no")]
    )
    # 25 and 75 % of four, 50 and 50 % of two; the axis ends at a round number above 75.
    assert [(style, title) for style, *_, title in chart["bars"]] == [
        ("first", "all, -1 to 0: 1 (25.0 %)"),
        ("first", "all, 0 to 1: 3 (75.0 %)"),
        ("second", "best, 0 to 1: 1 (50.0 %)"),
        ("second", "best, 1 to 2: 1 (50.0 %)"),
    ]
    assert [text for _, text in chart["rows"]] == ["0", "20", "40", "60", "80"]
    heights = [height for _, _, _, _, height, _ in chart["bars"]]
    assert heights == pytest.approx([(BOTTOM - TOP) * share / 80 for share in (25, 75, 50, 50)], abs=0.02)
    _, x, _, width, _, _ = chart["bars"][1]
    assert (x, width) == pytest.approx((LEFT + (RIGHT - LEFT) / 3 + 0.5, (RIGHT - LEFT) / 3 - 1), abs=0.02)
    assert [text for _, text in chart["columns"]] == ["-1", "-0.5", "0", "0.5", "1", "1.5", "2"]  # no -0
    assert chart["marks"] == [(pytest.approx(LEFT + (RIGHT - LEFT) * 2.9 / 3, abs=0.01), "late", True)]


def test_whole_numbers_are_the_middles_of_their_bins():
    chart = histogram({"images": [2, 1]}, [0.5, 1.5, 2.5], "sentences", whole=True)
    assert [(style, title) for style, *_, title in chart["bars"]] == [
        ("only", "images, 1: 2 (66.7 %)"),
        ("only", "images, 2: 1 (33.3 %)"),
    ]
    assert chart["columns"] == [(LEFT + (RIGHT - LEFT) / 4, "1"), (LEFT + 3 * (RIGHT - LEFT) / 4, "2")]


def test_a_curve_and_its_names():
    left, top, right, bottom = CURVE_BOX
    chart = curve([50, 60, 80], [10, 9, 1], ["1", "0.5", "0"], "kept", "gained")
    # A tenth of the range is free on each side: from 47 to 83, and from 0.1 to 10.9.
    assert chart["points"][0][:2] == pytest.approx(
        (left + (right - left) * 3 / 36, bottom - (bottom - top) * 9.9 / 10.8), abs=0.01
    )
    assert chart["points"][2][2] == "0: 80, 1"
    assert [text for _, text in chart["columns"]] == ["50", "60", "70", "80"]
    assert [text for _, text in chart["rows"]] == ["2", "4", "6", "8", "10"]
    assert [text for _, _, text in chart["names"]] == ["1", "0.5", "0"]
    # Names never cover each other: of five points in one place, some remain without a name.
    names = curve([1.0] * 9, [2.0] * 9, [f"0.{digit}" for digit in range(9)], "", "")["names"]
    assert 1 < len(names) < 9
    for index, (x, y, _) in enumerate(names):
        assert all(abs(x - other_x) >= 21 or abs(y - other_y) >= 14 for other_x, other_y, _ in names[:index])
