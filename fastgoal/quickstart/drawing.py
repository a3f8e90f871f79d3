"""Draw scenes of things with a shape, a color, a fill pattern, an outline, and a mark.

`fastgoal.quickstart.scenes` draws the scenes of the quickstart with it, and `benchmarks.study.scenes` those of the
study. They pass the random generator for all random choices, so a scene depends only on its seed.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image, ImageDraw

Split = Literal["base", "train", "validation", "test"]
Color = tuple[int, int, int]
Point = tuple[float, float]
Circle = tuple[float, float, float]
Box = tuple[int, int, int, int]

SUPERSAMPLING = 2
"""Scenes are drawn this many times larger and then reduced, for smooth edges."""

COLORS: dict[str, Color] = {
    "red": (214, 34, 40),
    "orange": (244, 134, 26),
    "yellow": (246, 218, 48),
    "green": (36, 150, 62),
    "blue": (38, 80, 205),
    "purple": (126, 48, 168),
    "pink": (246, 130, 186),
    "brown": (124, 78, 42),
    "black": (24, 24, 28),
    "white": (252, 252, 252),
}

BACKGROUNDS: dict[str, Color] = {
    "cream": (240, 232, 206),
    "mint": (200, 232, 212),
    "lilac": (216, 204, 236),
    "sky": (194, 220, 240),
    "ash": (196, 196, 198),
    "peach": (248, 214, 192),
}

PATTERNS = ("plain", "stripes", "bars", "dots", "checks", "halves")

DETAIL_WORDS = {
    "red": ("crimson", "scarlet", "ruby"),
    "orange": ("amber", "tangerine", "apricot"),
    "yellow": ("golden", "lemon", "canary"),
    "green": ("emerald", "olive", "jade"),
    "blue": ("azure", "cobalt", "navy"),
    "purple": ("violet", "plum", "mauve"),
    "pink": ("rosy", "salmon", "coral"),
    "brown": ("chestnut", "walnut", "cocoa"),
    "black": ("ebony", "inky", "jet"),
    "white": ("ivory", "snowy", "chalky"),
    "stripes": ("bands", "ribbons", "streaks"),
    "bars": ("slats", "rungs", "rails"),
    "dots": ("speckles", "freckles", "specks"),
    "checks": ("tiles", "chequers", "mosaic"),
    "circle": ("disc", "coin", "ball"),
    "square": ("block", "box", "cube"),
    "triangle": ("wedge", "pyramid", "delta"),
    "star": ("sparkle", "twinkle", "asterisk"),
    "heart": ("valentine", "lovelet", "darling"),
    "cross": ("plus", "crux", "junction"),
}
"""Words of long captions for the details of a thing. No short caption has them."""

NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}


def _around(count: int, radius: Callable[[float], float], start: float = -math.pi / 2) -> list[Point]:
    """Return `count` points of a closed curve around the origin. Its radius is a function of the angle in radians."""
    angles = [start + 2 * math.pi * i / count for i in range(count)]
    return [(radius(angle) * math.cos(angle), radius(angle) * math.sin(angle)) for angle in angles]


SHAPES: dict[str, list[Point]] = {
    "circle": _around(48, lambda _: 0.9),
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)],
    "hexagon": _around(6, lambda _: 0.95, start=0.0),
    "star": [(x, y) if i % 2 == 0 else (0.45 * x, 0.45 * y) for i, (x, y) in enumerate(_around(10, lambda _: 1.0))],
    "heart": [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5) / 15)
        for t in (2 * math.pi * i / 40 for i in range(40))
    ],
    "cross": [
        *[(-0.35, -0.95), (0.35, -0.95), (0.35, -0.35), (0.95, -0.35), (0.95, 0.35), (0.35, 0.35)],
        *[(0.35, 0.95), (-0.35, 0.95), (-0.35, 0.35), (-0.95, 0.35), (-0.95, -0.35), (-0.35, -0.35)],
    ],
    "flower": _around(60, lambda a: 0.68 + 0.3 * abs(math.cos(2.5 * (a + math.pi / 2)))),
    "dome": [(math.cos(a), 1.35 * math.sin(a) + 0.65) for a in (math.pi * (1 + i / 24) for i in range(25))],
    "arrow": [
        *[(0.0, -1.0), (0.85, -0.1), (0.4, -0.1), (0.4, 0.95)],
        *[(-0.4, 0.95), (-0.4, -0.1), (-0.85, -0.1)],
    ],
    "drop": [
        *[(0.62 * math.cos(a), 0.38 + 0.62 * math.sin(a)) for a in (math.radians(-30 + 8 * i) for i in range(31))],
        (0.0, -1.0),
    ],
}
"""Outlines of the shapes as polygons in [-1, 1] x [-1, 1]; y points down."""

MARKS = ("circle", "square", "triangle", "star", "heart", "cross")
"""Shapes of the marks in the middle of things."""

GROUPS = {
    1: (1.0, [(0.0, 0.0)]),
    2: (0.52, [(-0.48, 0.0), (0.48, 0.0)]),
    3: (0.46, [(-0.5, 0.35), (0.5, 0.35), (0.0, -0.5)]),
}
"""Size of the objects of a group and positions of their centers, in radii of the group's circle, by their number."""


@dataclass(frozen=True)
class Thing:
    """An object, or a group of up to 3 equal objects.

    Attributes:
        shape, color, pattern: Names in `SHAPES`, `COLORS`, `PATTERNS`.
        second: Color of the pattern; None if it is plain.
        outline: Color of the outline; None without one.
        mark: Color and shape of the mark in the middle; None without one.
        circle: Center and radius (x, y, r) of the circle around the thing, in pixels.
        count: Number of objects.
    """

    shape: str
    color: str
    pattern: str
    second: str | None
    outline: str | None
    mark: tuple[str, str] | None
    circle: Circle
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        image: The RGB image.
        sentences: Sentences of the caption.
        sentence_things: Numbers of the things that each sentence describes; none for the scene as a whole.
        boxes: Box (x1, y1, x2, y2) of every thing in pixels; x2 and y2 are exclusive.
        things: The things in the scene.
        background: Name of the background color.
    """

    image: Image.Image
    sentences: list[str]
    sentence_things: list[tuple[int, ...]]
    boxes: list[Box]
    things: list[Thing]
    background: str

    @property
    def caption(self) -> str:
        """The sentences, joined by single spaces."""
        return " ".join(self.sentences)

    @property
    def labels(self) -> list[str]:
        """Short names of the things, such as `"red star"`."""
        return [f"{thing.color} {thing.shape}" for thing in self.things]


def check_request(split: str, fewest: int, most: int, limit: int) -> None:
    """Raise `ValueError` for an unknown split, or if the numbers of things are not from 1 to `limit`."""
    if split not in get_args(Split):
        raise ValueError(f"`split` must be one of {get_args(Split)}, got {split!r}.")
    if not 1 <= fewest <= most <= limit:
        raise ValueError(f"A scene must have 1 to {limit} things, got {fewest} to {most}.")


def place_circles(
    rng: random.Random, count: int, size: tuple[int, int], radii: tuple[float, float], tries: int
) -> list[Circle]:
    """Return circles (x, y, radius) in pixels that do not overlap and lie inside an image of this (width, height).

    A circle without room is drawn again, and after `tries` attempts all circles are.
    """
    while True:
        placed: list[Circle] = []
        for _ in range(tries):
            radius = rng.uniform(*radii)
            x, y = (rng.uniform(radius + 2, side - radius - 2) for side in size)
            if all(math.hypot(x - x2, y - y2) > radius + radius2 + 3 for x2, y2, radius2 in placed):
                placed.append((x, y, radius))
            if len(placed) == count:
                return placed


def choose_details(rng: random.Random, color: str) -> tuple[str, str | None, str | None, tuple[str, str] | None]:
    """Choose the pattern, its color, the outline, and the mark of a thing of this color, in the order of `Thing`."""
    pattern = rng.choice(PATTERNS)
    second = None if pattern == "plain" else other_color(rng, color)
    outline = other_color(rng, color) if rng.random() < 0.7 else None
    mark = (other_color(rng, color, second), rng.choice(MARKS)) if rng.random() < 0.7 else None
    return pattern, second, outline, mark


def other_color(rng: random.Random, *taken: str | None) -> str:
    """Choose a color that is not taken."""
    return rng.choice([name for name in sorted(COLORS) if name not in taken])


def jitter(color: Color, rng: random.Random, amount: int = 12) -> Color:
    """Return a similar color: each channel differs by at most `amount` of 255."""
    red, green, blue = (min(255, max(0, value + rng.randint(-amount, amount))) for value in color)
    return red, green, blue


def paint(canvas: Image.Image, thing: Thing, rng: random.Random, mark_size: float) -> Box:
    """Draw all objects of a thing, slightly rotated, on a canvas `SUPERSAMPLING` times as large as the image.

    Args:
        mark_size: Radius of the mark in radii of the object.

    Returns:
        The box around the thing in pixels of the image. It may end one pixel outside.
    """
    x, y, radius = (value * SUPERSAMPLING for value in thing.circle)
    share, spots = GROUPS[thing.count]
    turn = math.radians(rng.uniform(-12, 12))
    small = share * radius
    half = math.ceil(small) + 1
    whole = _shape_mask(thing.shape, small, turn, half)
    fill = _pattern_tile(rng, 2 * half, thing)
    left, top, right, bottom = whole.getbbox() or (0, 0, 2 * half, 2 * half)
    edges = []
    for dx, dy in spots:
        corner = (round(x + dx * radius) - half, round(y + dy * radius) - half)
        if thing.outline:
            canvas.paste(jitter(COLORS[thing.outline], rng), corner, whole)
        canvas.paste(fill, corner, _shape_mask(thing.shape, 0.8 * small, turn, half) if thing.outline else whole)
        if thing.mark:
            mark = _shape_mask(thing.mark[1], mark_size * small, turn, half)
            canvas.paste(jitter(COLORS[thing.mark[0]], rng), corner, mark)
        edges.append((corner[0] + left, corner[1] + top, corner[0] + right, corner[1] + bottom))
    x1, y1 = (min(edge[axis] for edge in edges) // SUPERSAMPLING for axis in (0, 1))
    x2, y2 = (-(-max(edge[axis] for edge in edges) // SUPERSAMPLING) for axis in (2, 3))
    return x1, y1, x2, y2


def enlarge(scene: Scene, number: int, rng: random.Random) -> Image.Image:
    """Crop a square window of random size around a thing, up to twice its side."""
    x1, y1, x2, y2 = scene.boxes[number]
    size = scene.image.size
    side = min(max(x2 - x1, y2 - y1) * rng.uniform(0.9, 2.0), *size)
    center = [(low + high) / 2 + rng.uniform(-0.1, 0.1) * side for low, high in ((x1, x2), (y1, y2))]
    left, top = (int(min(max(value - side / 2, 0), limit - side)) for value, limit in zip(center, size, strict=True))
    return scene.image.crop((left, top, left + int(side), top + int(side)))


def _shape_mask(shape: str, radius: float, turn: float, half: int) -> Image.Image:
    """Return a one-channel tile of side `2 * half` with a filled shape in its middle, rotated by `turn` radians."""
    cos, sin = radius * math.cos(turn), radius * math.sin(turn)
    tile = Image.new("L", (2 * half, 2 * half), 0)
    points = [(half + cos * x - sin * y, half + sin * x + cos * y) for x, y in SHAPES[shape]]
    ImageDraw.Draw(tile).polygon(points, fill=255)
    return tile


def _pattern_tile(rng: random.Random, side: int, thing: Thing) -> Image.Image:
    """Return a square tile of `side` pixels in the thing's color with its pattern."""
    tile = Image.new("RGB", (side, side), jitter(COLORS[thing.color], rng))
    if thing.second is None:
        return tile
    pen, ink, pattern = ImageDraw.Draw(tile), jitter(COLORS[thing.second], rng), thing.pattern
    step = side / 8
    if pattern == "halves":
        pen.rectangle((0, side / 2, side, side), fill=ink)
    for i in range(8):
        if pattern == "stripes":
            pen.rectangle((0, i * step, side, (i + 0.45) * step), fill=ink)
        elif pattern == "bars":
            pen.rectangle((i * step, 0, (i + 0.45) * step, side), fill=ink)
        for j in range(8):
            x, y = i * step, j * step
            if pattern == "dots":
                pen.ellipse((x + 0.2 * step, y + 0.2 * step, x + 0.8 * step, y + 0.8 * step), fill=ink)
            elif pattern == "checks" and (i + j) % 2:
                pen.rectangle((x, y, x + step, y + step), fill=ink)
    return tile


def article(word: str) -> str:
    """Return the indefinite article of a word."""
    return "an" if word[0] in "aeiou" else "a"


def enumerate_phrases(phrases: Sequence[str]) -> str:
    """Join phrases with commas and "and"."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
