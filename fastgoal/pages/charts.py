"""Where the parts of a histogram lie; the macro `histogram` of the templates draws them as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastgoal.hub_cards.wording import percent
from fastgoal.processing.data.figures import nice_step

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 430, 22, 206


@dataclass(frozen=True)
class Histogram:
    """One or two histograms over the same edges, in units of the drawing.

    Attributes:
        label: What is on the horizontal axis.
        names: Of the histograms.
        bars: `kind` ("only", "first" or "second"), `x`, `y`, `width`, `height`, `title` of each.
        rows: `place` and `text` of the ticks of the vertical axis, in percent.
        columns: `place` and `text` of the ticks of the horizontal axis.
        marks: `place` and `text` of the places that are marked, `late` where the text stands left of it.
    """

    label: str
    names: list[str]
    bars: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    columns: list[dict[str, Any]]
    marks: list[dict[str, Any]]
    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM


def histogram(
    series: dict[str, Sequence[float]],
    edges: Sequence[float],
    label: str,
    marks: Sequence[tuple[float, str]] = (),
    whole: bool = False,
) -> Histogram:
    """Lay out one or two histograms, each in percent of its own total.

    Args:
        series: Counts by name; of two the second is drawn narrower before the first.
        edges: Limits of the bins, one more than there are counts, equally far apart.
        label: What is on the horizontal axis.
        marks: Places on that axis to mark with a line, and what to write there.
        whole: The bins stand for whole numbers, their middles.
    """
    shares = {name: [value / max(1.0, sum(counts)) for value in counts] for name, counts in series.items()}
    most = 100 * max(max(values) for values in shares.values())
    step = nice_step(max(most, 1e-9) / 4)
    top = step * -(-most // step) or step

    def x(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value - edges[0]) / (edges[-1] - edges[0]), 2)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * value / top, 2)

    bars = []
    for order, (name, values) in enumerate(shares.items()):
        kind = "only" if len(series) == 1 else ("first", "second")[order]
        gap = 0.5 if order == 0 else 0.25 * (x(edges[1]) - x(edges[0]))
        for many, share, low, high in zip(series[name], values, edges[:-1], edges[1:], strict=True):
            if many:
                bars.append(
                    {
                        "kind": kind,
                        "x": round(x(low) + gap, 2),
                        "y": y(100 * share),
                        "width": round(max(0.5, x(high) - x(low) - 2 * gap), 2),
                        "height": round(BOTTOM - y(100 * share), 2),
                        "title": f"{name}, {f'{(low + high) / 2:g}' if whole else f'{low:g} to {high:g}'}:"
                        f" {int(many):,} ({percent(share)})",
                    }
                )
    rows = [{"place": y(place * step), "text": f"{place * step:g}"} for place in range(round(top / step) + 1)]
    return Histogram(
        label,
        list(series),
        bars,
        rows,
        [{"place": x(tick), "text": f"{tick + 0.0:g}"} for tick in _ticks(edges[0], edges[-1], whole)],
        [
            {"place": x(value), "text": text, "late": x(value) > WIDTH - 90}
            for value, text in marks
            if edges[0] < value < edges[-1]
        ],
    )


def _ticks(low: float, high: float, whole: bool) -> list[float]:
    """About seven round places between the outer edges; whole numbers lie in the middle of their bins."""
    step = nice_step((high - low) / 7)
    step = max(1.0, step) if whole else step
    offset = 0.5 if whole else 0.0
    first = -(-(low + offset) // step)
    last = (high - offset + 1e-9) // step
    return [round((first + place) * step, 10) for place in range(int(last - first) + 1)]
