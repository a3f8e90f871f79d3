"""What drawn worlds are made of: scenes of things with a shape, a color, a fill pattern, an outline and a mark.

`fastgoal.quickstart.scenes` draws the quickstart's world with it, `benchmarks.study.scenes` that of the study. Every
random choice comes from a generator that the world hands over, so a scene depends on what its world seeds it with.
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
"""Scenes are drawn this many times larger and reduced, which smooths their edges."""

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
"""What long captions call colors, patterns and marks where they tell a detail: words that no short caption has."""

NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}


def _around(count: int, radius: Callable[[float], float], start: float = -math.pi / 2) -> list[Point]:
    """`count` points of a closed curve around the origin, its radius a function of the angle (radians)."""
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
"""Outlines of the shapes as polygons within [-1, 1] x [-1, 1], y pointing down."""

MARKS = ("circle", "square", "triangle", "star", "heart", "cross")
"""The shapes that may sit in the middle of an object."""

GROUPS = {
    1: (1.0, [(0.0, 0.0)]),
    2: (0.52, [(-0.48, 0.0), (0.48, 0.0)]),
    3: (0.46, [(-0.5, 0.35), (0.5, 0.35), (0.0, -0.5)]),
}
"""How large the objects of a group are and where their centers lie, in radii of the circle that holds the group."""


@dataclass(frozen=True)
class Thing:
    """One object, or a group of `count` (1 to 3) objects alike, as it is drawn, in the words of the captions.

    Attributes:
        shape, color, pattern: Names of `SHAPES`, `COLORS`, `PATTERNS`.
        second: The pattern's color; `None` for the plain one.
        outline: Its color, or `None`.
        mark: Color and shape of the mark in the middle, or `None`.
        place: Center and radius (x, y, r) of the circle that holds them, in pixels.
    """

    shape: str
    color: str
    pattern: str
    second: str | None
    outline: str | None
    mark: tuple[str, str] | None
    place: Circle
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """One drawn scene.

    Attributes:
        image: RGB image.
        sentences: The caption's, in order.
        sentence_things: For each sentence the things it speaks of, by number: none for the scene as a whole.
        boxes: (x1, y1, x2, y2) of every thing in pixels, the last column and row excluded.
        things: What is drawn.
        background: The word for its color.
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
        """Short name of every thing, such as `"red star"`."""
        return [f"{thing.color} {thing.shape}" for thing in self.things]


def check_request(split: str, fewest: int, most: int, limit: int) -> None:
    """Raises `ValueError` for an unknown split, and for numbers of things that are not within 1 to `limit`."""
    if split not in get_args(Split):
        raise ValueError(f"`split` must be one of {get_args(Split)}, got {split!r}.")
    if not 1 <= fewest <= most <= limit:
        raise ValueError(f"A scene must have 1 to {limit} things, got {fewest} to {most}.")


def place_circles(
    rng: random.Random, count: int, size: tuple[int, int], radii: tuple[float, float], tries: int
) -> list[Circle]:
    """Circles (x, y, radius) that neither overlap nor leave a picture of `size`, all in pixels.

    A circle that has no room is drawn again; after so many `tries` all of them are.
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
    """Pattern, its color, outline and mark of a thing whose main color is `color`, as `Thing` takes them."""
    pattern = rng.choice(PATTERNS)
    second = None if pattern == "plain" else other_color(rng, color)
    outline = other_color(rng, color) if rng.random() < 0.7 else None
    mark = (other_color(rng, color, second), rng.choice(MARKS)) if rng.random() < 0.7 else None
    return pattern, second, outline, mark


def other_color(rng: random.Random, *taken: str | None) -> str:
    """A color that is not among those taken."""
    return rng.choice([name for name in sorted(COLORS) if name not in taken])


def jitter(color: Color, rng: random.Random, amount: int = 12) -> Color:
    """A color near the given one, each channel by at most `amount` of 255."""
    red, green, blue = (min(255, max(0, value + rng.randint(-amount, amount))) for value in color)
    return red, green, blue


def paint(canvas: Image.Image, thing: Thing, rng: random.Random, mark_size: float) -> Box:
    """Draws all objects of a thing, slightly turned, on a canvas `SUPERSAMPLING` times as large as the picture.

    `mark_size` is the mark's radius in radii of the object. Returns the box around what was drawn, in pixels of the
    picture; it may end a pixel outside.
    """
    x, y, radius = (value * SUPERSAMPLING for value in thing.place)
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


def _shape_mask(shape: str, radius: float, turn: float, half: int) -> Image.Image:
    """Filled shape, turned by `turn` radians, in the middle of a one-channel tile of side `2 * half`."""
    cos, sin = radius * math.cos(turn), radius * math.sin(turn)
    tile = Image.new("L", (2 * half, 2 * half), 0)
    points = [(half + cos * x - sin * y, half + sin * x + cos * y) for x, y in SHAPES[shape]]
    ImageDraw.Draw(tile).polygon(points, fill=255)
    return tile


def _pattern_tile(rng: random.Random, side: int, thing: Thing) -> Image.Image:
    """Square tile of `side` pixels in the thing's color, with its pattern drawn over it."""
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
    """The indefinite article that goes before a word."""
    return "an" if word[0] in "aeiou" else "a"


def enumerate_phrases(phrases: Sequence[str]) -> str:
    """Phrases as a sentence lists them: commas between them, "and" before the last."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
