"""Where the parts of a histogram lie; the macro `histogram` of the templates draws them as SVG."""

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
        series: Counts by name; of two the second is drawn narrower before the first.
        edges: Limits of the bins, one more than there are counts, equally far apart.
        label: What is on the horizontal axis.
        marks: Places on that axis to mark with a line, and what to write there.
        whole: The bins stand for whole numbers, their middles.

    Returns:
        In units of the drawing: `width`, `height`, `left`, `right`, `top`, `bottom`; `label`; `names` of the
        histograms; `bars` with kind ("only", "first" or "second"), x, y, width, height and title; `rows` and `columns`,
        the ticks of both axes, and `marks` with place and text, a mark with whether its text stands left of it.
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
    for kind, (name, values) in zip(["only"] if len(series) == 1 else ["first", "second"], shares.items(), strict=True):
        gap = 0.25 * (x(edges[1]) - x(edges[0])) if kind == "second" else 0.5
        for many, share, first, last in zip(series[name], values, edges[:-1], edges[1:], strict=True):
            if many:
                place, width = x(first) + gap, max(0.5, x(last) - x(first) - 2 * gap)
                where = f"{(first + last) / 2:g}" if whole else f"{first:g} to {last:g}"
                title = f"{name}, {where}: {many:,} ({percent(share)})"
                bars.append((kind, round(place, 2), y(100 * share), round(width, 2), y(0) - y(100 * share), title))
    return {
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        "label": label,
        "names": list(series),
        "bars": bars,
        "rows": [(y(place * step), f"{place * step:g}") for place in range(round(high / step) + 1)],
        "columns": [(x(tick), f"{tick + 0.0:g}") for tick in _ticks(edges[0], edges[-1], whole)],
        "marks": [(x(place), text, x(place) > WIDTH - 90) for place, text in marks if edges[0] < place < edges[-1]],
    }


def _ticks(low: float, high: float, whole: bool) -> list[float]:
    """About seven round places between the outer edges; whole numbers lie in the middle of their bins."""
    step = nice_step((high - low) / 7)
    step = max(1.0, step) if whole else step
    offset = 0.5 if whole else 0.0
    first = -(-(low + offset) // step)
    last = (high - offset + 1e-9) // step
    return [round((first + place) * step, 10) for place in range(int(last - first) + 1)]
