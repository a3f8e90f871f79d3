"""Draw models as points: what a training gained on one measure against what it lost on another."""

from collections.abc import Mapping
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from fastgoal.hub_cards.card_images import FONT_SIZE, GRAY, PALE, color_at
from fastgoal.processing.data.statistics import nice_step

WIDTH, HEIGHT = 720, 480
LEFT, RIGHT, TOP, BOTTOM = 64, 690, 52, 412
RADIUS = 8
SCALE = 2  # pixels of the image per unit of the layout


class Axis(NamedTuple):
    """An axis from 0 to `high`, whose ends are `low_end` and `high_end` in the drawing; `step` separates its ticks."""

    low_end: int
    high_end: int
    high: float
    step: float

    @classmethod
    def up_to(cls, value: float, low_end: int, high_end: int) -> "Axis":
        """Return an axis with four to eight ticks that ends at least a little after a value."""
        step = nice_step(max(1.05 * value, 1e-9) / 6)
        return cls(low_end, high_end, step * -(-1.05 * value // step) or step, step)

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        return self.low_end + (self.high_end - self.low_end) * value / self.high

    @property
    def ticks(self) -> list[float]:
        return [self.step * index for index in range(round(self.high / self.step) + 1)]


def tradeoff_figure(points: Mapping[str, tuple[float, float]], x_label: str, y_label: str) -> Image.Image:
    """Draw named points, and a line from the first one to each of the others.

    Args:
        points: Positions (x, y) by name; none is negative. The first one is where the others started.
        x_label: Text at the horizontal axis.
        y_label: Text above the vertical axis.

    Returns:
        The figure. Both axes start at 0.
    """
    x_axis = Axis.up_to(max(x for x, _ in points.values()), LEFT, RIGHT)
    y_axis = Axis.up_to(max(y for _, y in points.values()), BOTTOM, TOP)
    image = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(SCALE * FONT_SIZE)

    def line(start: tuple[float, float], end: tuple[float, float], color: str, width: float) -> None:
        ends = [(SCALE * x, SCALE * y) for x, y in (start, end)]
        draw.line(ends, fill=color, width=round(SCALE * width))

    def write(x: float, y: float, text: str, color: str, anchor: str) -> None:
        # The white edge keeps a name legible on lines.
        draw.text((SCALE * x, SCALE * y), text, color, font, anchor, stroke_width=3 * SCALE, stroke_fill="white")

    for tick in x_axis.ticks:
        line((x_axis(tick), TOP), (x_axis(tick), BOTTOM), PALE, 1)
        write(x_axis(tick), BOTTOM + 8, f"{tick:g}", GRAY, "mt")
    for tick in y_axis.ticks:
        line((LEFT, y_axis(tick)), (RIGHT, y_axis(tick)), PALE, 1)
        write(LEFT - 10, y_axis(tick), f"{tick:g}", GRAY, "rm")
    write((LEFT + RIGHT) / 2, HEIGHT - 12, x_label, GRAY, "mb")
    write(12, TOP - 18, y_label, GRAY, "lb")

    places = {name: (x_axis(x), y_axis(y)) for name, (x, y) in points.items()}
    colors = {name: color_at(index - 1) if index else GRAY for index, name in enumerate(points)}
    start, *others = points
    for name in others:
        line(places[start], places[name], colors[name], 2)
    taken: list[tuple[float, float]] = []  # middles of the names so far
    for name, (x, y) in places.items():
        draw.circle((SCALE * x, SCALE * y), SCALE * RADIUS, fill=colors[name], outline="white", width=SCALE)
        half = font.getlength(name) / SCALE / 2
        middle = min(max(x, LEFT + half + 4), RIGHT - half - 4)
        heights = [y - 22, y + 22, y - 44, y + 44] if name != start else [y + 22, y - 22]
        free = (h for h in heights if all(abs(h - h2) > 20 or abs(middle - m2) > 2 * half for m2, h2 in taken))
        height = next(free, heights[0])
        taken.append((middle, height))
        write(middle, height, name, colors[name], "mm")
    return image
