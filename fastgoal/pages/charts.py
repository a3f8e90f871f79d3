"""Histograms as inline SVG that follows the page's colours, so that they suit light, dark and print alike."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from fastgoal.processing.data.figures import nice_step

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 22, 44

STYLE = """
.chart{width:100%;height:auto;display:block;overflow:visible}
.chart text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}
.chart .name{fill:var(--ink)}
.chart .grid{stroke:var(--line);stroke-width:1}
.chart .axis{stroke:var(--soft);stroke-width:1}
.chart .first{fill:var(--pale)}
.chart .second{fill:var(--strong);fill-opacity:.85}
.chart .only{fill:var(--strong)}
.chart .mark{stroke:var(--alert);stroke-width:1.5;stroke-dasharray:4 3}
.chart .marked{fill:var(--alert)}
"""


@dataclass(frozen=True)
class Series:
    """One histogram: its name and its counts between the chart's edges."""

    name: str
    counts: Sequence[float]


def histogram_chart(
    series: Sequence[Series],
    edges: Sequence[float],
    label: str,
    marks: Sequence[tuple[float, str]] = (),
    whole: bool = False,
) -> str:
    """One or two histograms over the same edges, each in percent of its own total.

    Args:
        series: One, or two of which the second is drawn narrower before the first.
        edges: Limits of the bins, one more than there are counts, equally far apart.
        label: What is on the horizontal axis.
        marks: Places on that axis to mark with a line, and what to write there.
        whole: The bins stand for whole numbers, their middles.
    """
    totals = [max(1.0, sum(one.counts)) for one in series]
    most = max(100 * max(one.counts) / total for one, total in zip(series, totals))
    step_y = nice_step(max(most, 1e-9) / 4)
    top = step_y * -(-most // step_y) or step_y
    span = edges[-1] - edges[0]

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - edges[0]) / span

    def y(percent: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * percent / top

    parts = []
    for place in range(round(top / step_y) + 1):
        value, height = place * step_y, y(place * step_y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{value:g} %</text>')
    for number, (one, total) in enumerate(zip(series, totals)):
        name = "only" if len(series) == 1 else ("first", "second")[number]
        gap = 0.5 if number == 0 else 0.25 * (x(edges[1]) - x(edges[0]))
        for count, low, high in zip(one.counts, edges[:-1], edges[1:]):
            if count:
                share = 100 * count / total
                where = f"{(low + high) / 2:g}" if whole else f"{low:g} to {high:g}"
                parts.append(
                    f'<rect class="{name}" x="{x(low) + gap:.2f}" y="{y(share):.2f}"'
                    f' width="{max(0.5, x(high) - x(low) - 2 * gap):.2f}" height="{y(0) - y(share):.2f}">'
                    f"<title>{html.escape(one.name)}, {where}: {count:,} ({share:.1f} %)</title></rect>"
                )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    offset = 0.5 if whole else 0.0
    step_x = nice_step(span / 7)
    step_x = max(1.0, step_x) if whole else step_x
    tick = -(-(edges[0] + offset) // step_x) * step_x
    while tick <= edges[-1] - offset + 1e-9:
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{y(0):.1f}" y2="{y(0) + 4:.1f}"/>')
        tick = round(tick + step_x, 10)
    for value, text in marks:
        if edges[0] < value < edges[-1]:
            late = x(value) > WIDTH - 90
            parts.append(f'<line class="mark" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP - 8}" y2="{y(0):.1f}"/>')
            parts.append(
                f'<text class="marked" x="{x(value) + (-5 if late else 5):.1f}" y="{TOP}"'
                f' text-anchor="{"end" if late else "start"}">{html.escape(text)}</text>'
            )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(label)}</text>')
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Histogram: {html.escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
