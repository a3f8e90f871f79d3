import pytest
from PIL import ImageColor

from fastgoal.hub_cards.card_images import COLORS
from fastgoal.pages.charts import BOTTOM, CURVE_BOX, LEFT, RIGHT, TOP, curve, draw_curve, histogram


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


def test_lines_from_one_point_to_the_others_on_axes_from_zero():
    left, top, right, bottom = CURVE_BOX
    labels = ("short", "long")
    chart = curve([50, 0, 30], [1, 6, 10], ["before", "one", "other"], *labels, lines=[(0, 1), (0, 2)], from_zero=True)
    # A tenth is free beyond the largest values: the axes end at 55 and at 11.
    points = [
        (left + (right - left) * x / 55, bottom - (bottom - top) * y / 11) for x, y in ((50, 1), (0, 6), (30, 10))
    ]
    assert [point[:2] for point in chart["points"]] == [pytest.approx(point, abs=0.01) for point in points]
    assert chart["lines"] == [[chart["points"][0][:2], chart["points"][number][:2]] for number in (1, 2)]
    assert (chart["columns"][0], chart["rows"][0]) == ((left, "0"), (bottom, "0"))
    assert {text for _, _, text in chart["names"]} == {"before", "one", "other"}
    image = draw_curve(chart, 3)
    assert image.size == (3 * chart["width"], 3 * chart["height"])
    color = ImageColor.getrgb(COLORS[0])

    def colors_at(x: float, y: float) -> set:
        return {image.getpixel((round(3 * x) + dx, round(3 * y) + dy)) for dx in (-2, 0, 2) for dy in (-2, 0, 2)}

    for x, y, _ in chart["points"]:
        assert image.getpixel((round(3 * x), round(3 * y))) == color
    middle = [
        tuple((a + b) / 2 for a, b in zip(points[i], points[j], strict=True)) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert color in colors_at(*middle[0])
    assert color in colors_at(*middle[1])
    assert color not in colors_at(*middle[2])  # no line joins the two others
