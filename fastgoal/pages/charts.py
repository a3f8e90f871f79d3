"""The layout of charts: the macros `histogram` and `curve` of the templates draw SVG, `draw_curve` an image."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fastgoal.hub_cards.card_images import COLORS, GRAY, PALE
from fastgoal.hub_cards.wording import percent
from fastgoal.processing.data.statistics import nice_step

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 430, 22, 206
CURVE_SIZE = (360, 292)  # as wide as the page on a phone
CURVE_BOX = (50, 14, 346, 246)  # left, top, right, bottom of the axes
LETTER, LINE = 7, 14  # width and height of a letter at the font size of charts


def histogram(
    series: Mapping[str, Sequence[float]],
    edges: Sequence[float],
    label: str,
    marks: Sequence[tuple[float, str]] = (),
    whole: bool = False,
) -> dict[str, Any]:
    """Lay out one or two histograms, each in percent of its own total.

    Args:
        series: Counts by name. The second of two is drawn narrower in front of the first.
        edges: Edges of the bins, one more than there are counts, at equal distances.
        label: Label of the horizontal axis.
        marks: Positions on the horizontal axis to mark with a line, and their texts.
        whole: The bins stand for whole numbers, which are their centers.

    Returns:
        In pixels of the drawing: `width`, `height`, `left`, `right`, `top`, `bottom`; `label`; `names` of the
        histograms; `bars` (class, x, y, width, height, title) with the class "only", "first" or "second"; `rows` and
        `columns` with the ticks of both axes; `marks` (x, text, whether the text is left of the line).
    """
    shares = {name: [value / max(1.0, sum(counts)) for value in counts] for name, counts in series.items()}
    highest = 100 * max(map(max, shares.values()))
    step = nice_step(max(highest, 1e-9) / 4)
    high = step * -(-highest // step) or step

    def x(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value - edges[0]) / (edges[-1] - edges[0]), 2)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * value / high, 2)

    bars = []
    for style, (name, values) in zip(
        ["only"] if len(series) == 1 else ["first", "second"], shares.items(), strict=True
    ):
        gap = 0.25 * (x(edges[1]) - x(edges[0])) if style == "second" else 0.5
        for value, share, low_edge, high_edge in zip(series[name], values, edges[:-1], edges[1:], strict=True):
            if value:
                left, width = x(low_edge) + gap, max(0.5, x(high_edge) - x(low_edge) - 2 * gap)
                bin_name = f"{(low_edge + high_edge) / 2:g}" if whole else f"{low_edge:g} to {high_edge:g}"
                title = f"{name}, {bin_name}: {value:,} ({percent(share)})"
                bars.append((style, round(left, 2), y(100 * share), round(width, 2), y(0) - y(100 * share), title))
    return {
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        "label": label,
        "names": list(series),
        "bars": bars,
        "rows": [(y(tick * step), f"{tick * step:g}") for tick in range(round(high / step) + 1)],
        "columns": [(x(tick), f"{tick + 0.0:g}") for tick in _ticks(edges[0], edges[-1], whole)],
        "marks": [(x(value), text, x(value) > WIDTH - 90) for value, text in marks if edges[0] < value < edges[-1]],
    }


def curve(
    x_values: Sequence[float],
    y_values: Sequence[float],
    names: Sequence[str],
    x_label: str,
    y_label: str,
    lines: Sequence[Sequence[int]] = (),
    from_zero: bool = False,
) -> dict[str, Any]:
    """Lay out points with names, joined by lines.

    Args:
        x_values: Horizontal position of each point.
        y_values: Vertical position of each point.
        names: Names of the points. The name of a point that has no room for it is left out.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        lines: Numbers of the points that each line joins. Default: one line through all points.
        from_zero: Whether the axes start at 0 rather than near the lowest value; for values that are not negative.

    Returns:
        In pixels of the drawing: `width`, `height`, `left`, `top`, `right`, `bottom`; `x_label`, `y_label`; `points`
        (x, y, title); `lines`, each a list of (x, y); `names` (x, y of the center, text); `rows` and `columns` with the
        ticks of both axes.
    """
    left, top, right, bottom = CURVE_BOX
    x_low, x_high, y_low, y_high = *_range(x_values, from_zero), *_range(y_values, from_zero)

    def x(value: float) -> float:
        return round(left + (right - left) * (value - x_low) / (x_high - x_low), 2)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - y_low) / (y_high - y_low), 2)

    points = [(x(a), y(b)) for a, b in zip(x_values, y_values, strict=True)]
    titles = [f"{name}: {a:.4g}, {b:.4g}" for name, a, b in zip(names, x_values, y_values, strict=True)]
    return {
        **{"width": CURVE_SIZE[0], "height": CURVE_SIZE[1]},
        **{"left": left, "top": top, "right": right, "bottom": bottom, "x_label": x_label, "y_label": y_label},
        "points": [(*point, title) for point, title in zip(points, titles, strict=True)],
        "lines": (joined := [[points[number] for number in line] for line in lines or [range(len(points))]]),
        "names": _place_names(points, names, joined),
        "rows": [(y(tick), f"{tick + 0.0:g}") for tick in _ticks(y_low, y_high, False)],
        "columns": [(x(tick), f"{tick + 0.0:g}") for tick in _ticks(x_low, x_high, False)],
    }


def draw_curve(chart: dict[str, Any], scale: int) -> Image.Image:
    """Draw the layout of `curve` on white, with `scale` pixels for one of the layout."""
    smooth = 2  # PIL draws lines without antialiasing
    factor = scale * smooth
    image = Image.new("RGB", (factor * chart["width"], factor * chart["height"]), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12 * factor)

    def at(x: float, y: float) -> tuple[float, float]:
        return factor * x, factor * y

    left, top, right, bottom = (chart[side] for side in ("left", "top", "right", "bottom"))
    for y, text in chart["rows"]:
        draw.line([at(left, y), at(right, y)], PALE, factor)
        draw.text(at(left - 6, y), text, GRAY, font, "rm")
    for x, text in chart["columns"]:
        draw.line([at(x, top), at(x, bottom)], PALE, factor)
        draw.text(at(x, bottom + 12), text, GRAY, font, "mm")
    for line in chart["lines"]:
        draw.line([at(*point) for point in line], COLORS[0], 2 * factor, "curve")
    for x, y, _ in chart["points"]:
        draw.circle(at(x, y), 4.5 * factor, COLORS[0], "white", factor)
    for x, y, text in chart["names"]:
        draw.text(at(x, y), text, "black", font, "mm", stroke_width=2 * factor, stroke_fill="white")
    draw.text(at((left + right) / 2, chart["height"] - 10), chart["x_label"], "black", font, "mm")
    label = Image.new("RGB", (round(font.getlength(chart["y_label"])), 16 * factor), "white")
    ImageDraw.Draw(label).text((0, label.height / 2), chart["y_label"], "black", font, "lm")
    label = label.rotate(90, expand=True)
    image.paste(label, (0, round(factor * (top + bottom) / 2 - label.height / 2)))
    return image.resize((scale * chart["width"], scale * chart["height"]), Image.Resampling.LANCZOS)


def _range(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    """Return the ends of an axis with some room around the values."""
    low = 0.0 if from_zero else min(values)
    room = 0.1 * (max(values) - low) or 1.0
    return low if from_zero else low - room, max(values) + room


def _place_names(
    points: Sequence[tuple[float, float]], names: Sequence[str], lines: Sequence[Sequence[tuple[float, float]]]
) -> list[tuple[float, float, str]]:
    """Return the center of each name, next to its point, where it covers no other name and least of the lines."""
    left, top, right, bottom = CURVE_BOX
    line = [
        (x1 + (x2 - x1) * step / 20, y1 + (y2 - y1) * step / 20)
        for ends in lines
        for (x1, y1), (x2, y2) in pairwise(ends)
        for step in range(21)
    ]
    placed: list[tuple[float, float, str]] = []
    for (x, y), name in zip(points, names, strict=True):
        half = LETTER * len(name) / 2 + 2
        best: tuple[int, float, float] | None = None
        for across, down in ((1, -1), (1, 1), (-1, -1), (-1, 1), (1, 0), (-1, 0), (0, -1), (0, 1)):
            a, b = x + across * (half + 6), y + down * (LINE if across == 0 else LINE * 0.7)
            inside = left < a - half and a + half < right + 12 and top < b - LINE / 2 and b + LINE / 2 < bottom
            free = all(
                abs(a - other_a) > half + LETTER * len(other) / 2 + 2 or abs(b - other_b) > LINE
                for other_a, other_b, other in placed
            )
            covered = sum(abs(a - point[0]) < half and abs(b - point[1]) < LINE / 2 for point in line)
            if inside and free and (best is None or covered < best[0]):
                best = (covered, a, b)
        if best is not None:
            placed.append((round(best[1], 2), round(best[2], 2), name))
    return placed


def _ticks(low: float, high: float, whole: bool) -> list[float]:
    """Return about seven round values between the outer edges. Whole numbers are at the centers of their bins."""
    step = nice_step((high - low) / 7)
    step = max(1.0, step) if whole else step
    offset = 0.5 if whole else 0.0
    first = -(-(low + offset) // step)
    last = (high - offset + 1e-9) // step
    return [round((first + index) * step, 10) for index in range(int(last - first) + 1)]
