"""The layout of histograms. The macro `histogram` of the templates draws them as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastgoal.hub_cards.wording import percent
from fastgoal.processing.data.statistics import nice_step

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 430, 22, 206


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


def _ticks(low: float, high: float, whole: bool) -> list[float]:
    """Return about seven round values between the outer edges. Whole numbers are at the centers of their bins."""
    step = nice_step((high - low) / 7)
    step = max(1.0, step) if whole else step
    offset = 0.5 if whole else 0.0
    first = -(-(low + offset) // step)
    last = (high - offset + 1e-9) // step
    return [round((first + index) * step, 10) for index in range(int(last - first) + 1)]
