"""A drawn world in which everything is known: scenes of objects, their boxes and captions of several sentences.

Every scene shows three to five objects on a pale background. An object has a shape, a colour, a fill pattern in a
second colour, an outline and a small mark in its middle. The caption gives each object a sentence of its own, which
tells what a crop of the object shows and nothing else (no place, no size), and one sentence about the scene as a whole.
Thousands of attribute combinations make a sentence close to unique, so two sentences of a batch seldom describe the
same thing. Details are told in words of their own, which short captions never use: as in the papers, long captions say
more than a CLIP trained on short ones has learned.

A scene depends on its split, its seed and its index alone, so the splits never share a scene and drawing more scenes
never changes the first ones.
"""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from PIL import Image, ImageDraw

Split = Literal["base", "train", "validation", "test"]
Colour = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[int, int, int, int]

SCENE_SIZE = 192
"""Width and height of a scene, in pixels."""

SUPERSAMPLING = 2
"""Scenes are drawn this many times larger and reduced, which smooths their edges."""

COLOURS: dict[str, Colour] = {
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

BACKGROUNDS: dict[str, Colour] = {
    "cream": (240, 232, 206),
    "mint": (200, 232, 212),
    "lilac": (216, 204, 236),
    "sky": (194, 220, 240),
    "ash": (196, 196, 198),
    "peach": (248, 214, 192),
}

PATTERNS = ("plain", "stripes", "bars", "dots", "checks", "halves")

DETAIL_WORDS = {
    **{"red": "crimson", "orange": "amber", "yellow": "golden", "green": "emerald", "blue": "azure"},
    **{"purple": "violet", "pink": "rosy", "brown": "chestnut", "black": "ebony", "white": "ivory"},
    **{"stripes": "bands", "bars": "slats", "dots": "speckles", "checks": "tiles"},
    **{"circle": "disc", "square": "block", "triangle": "wedge", "star": "sparkle", "heart": "valentine"},
    **{"cross": "plus"},
}
"""What long captions call colours, patterns and marks where they tell a detail: words that no short caption has."""

NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def _around(count: int, radius: Callable[[float], float], start: float = -math.pi / 2) -> list[Point]:
    """`count` points of a closed curve around the origin, its radius a function of the angle (radians)."""
    angles = [start + 2 * math.pi * i / count for i in range(count)]
    return [(radius(angle) * math.cos(angle), radius(angle) * math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    tips = _around(10, lambda _: 1.0)
    return [(x, y) if i % 2 == 0 else (0.45 * x, 0.45 * y) for i, (x, y) in enumerate(tips)]


def _heart() -> list[Point]:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -(y + 2.5) / 15))
    return points


def _dome() -> list[Point]:
    arc = [math.pi * (1 + i / 24) for i in range(25)]
    return [(math.cos(a), 1.35 * math.sin(a) + 0.65) for a in arc]


def _drop() -> list[Point]:
    arc = [math.radians(-30 + 240 * i / 30) for i in range(31)]
    return [(0.62 * math.cos(a), 0.38 + 0.62 * math.sin(a)) for a in arc] + [(0.0, -1.0)]


SHAPES: dict[str, list[Point]] = {
    "circle": _around(48, lambda _: 0.9),
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)],
    "hexagon": _around(6, lambda _: 0.95, start=0.0),
    "star": _star(),
    "heart": _heart(),
    "cross": [
        *[(-0.35, -0.95), (0.35, -0.95), (0.35, -0.35), (0.95, -0.35), (0.95, 0.35), (0.35, 0.35)],
        *[(0.35, 0.95), (-0.35, 0.95), (-0.35, 0.35), (-0.95, 0.35), (-0.95, -0.35), (-0.35, -0.35)],
    ],
    "flower": _around(60, lambda a: 0.68 + 0.3 * abs(math.cos(2.5 * (a + math.pi / 2)))),
    "dome": _dome(),
    "arrow": [
        *[(0.0, -1.0), (0.85, -0.1), (0.4, -0.1), (0.4, 0.95)],
        *[(-0.4, 0.95), (-0.4, -0.1), (-0.85, -0.1)],
    ],
    "drop": _drop(),
}
"""Outlines of the shapes as polygons within [-1, 1] x [-1, 1], y pointing down."""

MARKS = ("circle", "square", "triangle", "star", "heart", "cross")
"""The shapes that may sit in the middle of an object."""


@dataclass(frozen=True)
class SceneObject:
    """One drawn object: its attributes in the words of the captions, and its box in pixels of the scene.

    `second` is the pattern's colour and `outline` the outline's; both are `None` where the object has none. `mark` is a
    (colour, shape) pair or `None`.
    """

    shape: str
    colour: str
    pattern: str
    second: str | None
    outline: str | None
    mark: tuple[str, str] | None
    box: Box


@dataclass(frozen=True)
class Scene:
    """One drawn scene.

    Attributes:
        image: RGB image of `SCENE_SIZE` x `SCENE_SIZE` pixels.
        caption: the sentences, joined by single spaces.
        sentences: the sentences of the caption, in order.
        sentence_objects: for each sentence the index of the object it describes, `None` for the scene as a whole.
        boxes: (x1, y1, x2, y2) of every object in pixels, the last column and row excluded.
        labels: short name of every object, such as `"red star"`.
        objects: the objects with all their attributes.
        background: the word for the background's colour.
    """

    image: Image.Image
    caption: str
    sentences: list[str]
    sentence_objects: list[int | None]
    boxes: list[Box]
    labels: list[str]
    objects: list[SceneObject]
    background: str


def draw_scenes(
    count: int,
    seed: int = 0,
    split: Split = "train",
    min_objects: int = 3,
    max_objects: int = 5,
    shapes: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    rich: bool = True,
) -> list[Scene]:
    """Draws `count` scenes; the same arguments give the same scenes, and no two splits or seeds share one.

    Args:
        count: Number of scenes.
        seed: Draws others.
        split: Draws others too: what a scene is for.
        min_objects: Fewest objects of a scene.
        max_objects: Most objects of a scene.
        shapes: Shapes of the objects, all of `SHAPES` by default. The fewer there are, the more it takes the details
            to tell scenes apart.
        colours: Main colours of the objects, likewise; patterns, outlines and marks have any colour.
        rich: Whether captions tell details in `DETAIL_WORDS`; otherwise in the words of short captions. The pictures
            are the same.

    Raises:
        ValueError: `split`, a shape or a colour is unknown, or the numbers of objects are not within 1 to 6.
    """
    if split not in get_args(Split):
        raise ValueError(f"`split` must be one of {get_args(Split)}, got {split!r}.")
    if not 1 <= min_objects <= max_objects <= 6:
        raise ValueError(f"Need 1 <= min_objects <= max_objects <= 6, got {min_objects} and {max_objects}.")
    for name, given, known in (("shapes", shapes, SHAPES), ("colours", colours, COLOURS)):
        if given is not None and (not given or set(given) - set(known)):
            raise ValueError(f"`{name}` must be some of {sorted(known)}, got {given}.")
    names, tints = sorted(shapes or SHAPES), sorted(colours or COLOURS)
    return [
        _draw_scene(random.Random(f"{split}/{seed}/{i}"), min_objects, max_objects, names, tints, rich)
        for i in range(count)
    ]


def short_caption(objects: Sequence[SceneObject], rng: random.Random, detail: float = 0.3) -> str:
    """A short caption that names the given objects, as the base CLIP knows them: shape, mostly colour, seldom a detail.

    `detail` is the chance that a fill pattern is told; an outline and a mark are each told half as often.
    """
    phrases = []
    for thing in objects:
        noun = thing.shape if rng.random() < 0.05 else f"{thing.colour} {thing.shape}"
        details = []
        if rng.random() < detail:
            details.append(_pattern_phrase(thing, rng, {}))
        if rng.random() < detail / 2:
            details.append(_outline_phrase(thing, rng, {}))
        if rng.random() < detail / 2:
            details.append(_mark_phrase(thing, rng, {}))
        told = [phrase for phrase in details if phrase]
        rng.shuffle(told)
        phrases.append(f"{article(noun)} {noun}" + (" " + " and ".join(told) if told else ""))
    start = rng.choice(("", "", "a picture of ", "a drawing of ", "there is ", "we see "))
    return start + (phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1])


def write_folder(scenes: Sequence[Scene], folder: str | Path) -> Path:
    """Writes `images/*.png` and `metadata.jsonl` (file_name, caption, boxes in pixels, labels); returns the folder."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as file:
        for index, scene in enumerate(scenes):
            name = f"images/{index:05d}.png"
            scene.image.save(folder / name)
            row = {"file_name": name, "caption": scene.caption, "boxes": scene.boxes, "labels": scene.labels}
            file.write(json.dumps(row) + "\n")
    return folder


# Drawing


def _draw_scene(
    rng: random.Random, min_objects: int, max_objects: int, names: Sequence[str], tints: Sequence[str], rich: bool
) -> Scene:
    background = rng.choice(sorted(BACKGROUNDS))
    side = SCENE_SIZE * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), jitter(BACKGROUNDS[background], rng, 6))
    places = _place_circles(rng, rng.randint(min_objects, max_objects))
    # Different shapes where there are enough of them.
    different = len(names) >= len(places)
    shapes = rng.sample(names, len(places)) if different else rng.choices(names, k=len(places))
    objects = [
        _draw_object(canvas, rng, shape, rng.choice(tints), place) for shape, place in zip(shapes, places, strict=True)
    ]
    sentences, sentence_objects = _describe(objects, background, rng, DETAIL_WORDS if rich else {})
    return Scene(
        image=canvas.reduce(SUPERSAMPLING),
        caption=" ".join(sentences),
        sentences=sentences,
        sentence_objects=sentence_objects,
        boxes=[thing.box for thing in objects],
        labels=[f"{thing.colour} {thing.shape}" for thing in objects],
        objects=objects,
        background=background,
    )


def _place_circles(rng: random.Random, count: int) -> list[tuple[float, float, float]]:
    """(x, y, radius) in pixels of circles that neither overlap nor leave the scene."""
    while True:
        placed: list[tuple[float, float, float]] = []
        for _ in range(60):
            radius = rng.uniform(20, 34)
            x, y = (rng.uniform(radius + 2, SCENE_SIZE - radius - 2) for _ in range(2))
            if all(math.hypot(x - x2, y - y2) > radius + radius2 + 3 for x2, y2, radius2 in placed):
                placed.append((x, y, radius))
            if len(placed) == count:
                return placed


def _draw_object(
    canvas: Image.Image, rng: random.Random, shape: str, colour: str, place: tuple[float, float, float]
) -> SceneObject:
    """Draws one object with random details inside the circle `place` and returns it."""
    pattern = rng.choice(PATTERNS)
    second = None if pattern == "plain" else other_colour(rng, colour)
    outline = other_colour(rng, colour) if rng.random() < 0.7 else None
    mark = (other_colour(rng, colour, second), rng.choice(MARKS)) if rng.random() < 0.7 else None

    x, y, radius = (value * SUPERSAMPLING for value in place)
    turn = math.radians(rng.uniform(-12, 12))
    half = math.ceil(radius) + 1
    corner = (round(x) - half, round(y) - half)
    whole = shape_mask(shape, radius, turn, half)
    fill = pattern_tile(rng, 2 * half, COLOURS[colour], pattern, COLOURS[second] if second else None)
    if outline:
        canvas.paste(jitter(COLOURS[outline], rng), corner, whole)
        canvas.paste(fill, corner, shape_mask(shape, 0.8 * radius, turn, half))
    else:
        canvas.paste(fill, corner, whole)
    if mark:
        canvas.paste(jitter(COLOURS[mark[0]], rng), corner, shape_mask(mark[1], 0.32 * radius, turn, half))

    left, top, right, bottom = whole.getbbox() or (0, 0, 2 * half, 2 * half)
    box = (
        (corner[0] + left) // SUPERSAMPLING,
        (corner[1] + top) // SUPERSAMPLING,
        -(-(corner[0] + right) // SUPERSAMPLING),
        -(-(corner[1] + bottom) // SUPERSAMPLING),
    )
    return SceneObject(shape, colour, pattern, second, outline, mark, box)


def shape_mask(shape: str, radius: float, turn: float, half: int) -> Image.Image:
    """Filled shape, turned by `turn` radians, in the middle of a one-channel tile of side `2 * half`."""
    cos, sin = radius * math.cos(turn), radius * math.sin(turn)
    tile = Image.new("L", (2 * half, 2 * half), 0)
    points = [(half + cos * x - sin * y, half + sin * x + cos * y) for x, y in SHAPES[shape]]
    ImageDraw.Draw(tile).polygon(points, fill=255)
    return tile


def pattern_tile(rng: random.Random, side: int, colour: Colour, pattern: str, second: Colour | None) -> Image.Image:
    """Square tile of `side` pixels in `colour`, with `pattern` drawn over it in the colour `second`."""
    tile = Image.new("RGB", (side, side), jitter(colour, rng))
    if second is None:
        return tile
    pen, ink = ImageDraw.Draw(tile), jitter(second, rng)
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


def other_colour(rng: random.Random, *taken: str | None) -> str:
    """A colour that is not among those taken."""
    return rng.choice([name for name in sorted(COLOURS) if name not in taken])


def jitter(colour: Colour, rng: random.Random, amount: int = 12) -> Colour:
    """A colour near the given one, each channel by at most `amount` of 255."""
    red, green, blue = (min(255, max(0, value + rng.randint(-amount, amount))) for value in colour)
    return red, green, blue


# Words


def _describe(
    objects: Sequence[SceneObject], background: str, rng: random.Random, words: Mapping[str, str]
) -> tuple[list[str], list[int | None]]:
    """Sentences of the long caption in random order, and the object each one describes; `words` are for details."""
    order = rng.sample(range(len(objects)), len(objects))
    told: list[tuple[str, int | None]] = [(_object_sentence(objects[i], rng, words), i) for i in order]
    number, tint = NUMBER_WORDS.get(len(objects), "one"), f"{article(background)} {background}"
    whole = rng.choice(
        (
            f"The picture shows {number} shapes on {tint} background.",
            f"There are {number} shapes in front of {tint} wall.",
            f"Behind the {number} shapes the paper is {background}.",
        )
    )
    told.insert(rng.choice((0, len(told))), (whole, None))
    return [sentence for sentence, _ in told], [index for _, index in told]


def _object_sentence(thing: SceneObject, rng: random.Random, words: Mapping[str, str]) -> str:
    """One sentence with every attribute of the object, in one of several wordings."""
    noun = f"{thing.colour} {thing.shape}"
    details = [_pattern_phrase(thing, rng, words), _outline_phrase(thing, rng, words), _mark_phrase(thing, rng, words)]
    rng.shuffle(details)
    told = [phrase for phrase in details if phrase]
    if not told:
        return f"{article(noun).capitalize()} {noun} has no detail at all."
    listed = told[0] if len(told) == 1 else ", ".join(told[:-1]) + " and " + told[-1]
    subject = rng.choice(
        (
            f"There is {article(noun)} {noun}",
            f"One shape is {article(noun)} {noun}",
            f"We see {article(noun)} {noun}",
        )
    )
    return f"{subject} {listed}."


def _pattern_phrase(thing: SceneObject, rng: random.Random, words: Mapping[str, str]) -> str:
    if thing.second is None:
        return rng.choice(("in one flat colour", "without a pattern"))
    second, pattern = words.get(thing.second, thing.second), words.get(thing.pattern, thing.pattern)
    if thing.pattern == "halves":
        return rng.choice((f"with {article(second)} {second} lower half", f"turning {second} below"))
    start = rng.choice(("with", "covered by", "decorated with"))
    return f"{start} {second} {pattern}"


def _outline_phrase(thing: SceneObject, rng: random.Random, words: Mapping[str, str]) -> str:
    if thing.outline is None:
        return ""
    outline = words.get(thing.outline, thing.outline)
    return rng.choice(
        (
            f"with {article(outline)} {outline} outline",
            f"edged in {outline}",
            f"inside {article(outline)} {outline} rim",
        )
    )


def _mark_phrase(thing: SceneObject, rng: random.Random, words: Mapping[str, str]) -> str:
    if thing.mark is None:
        return ""
    colour, shape = (words.get(word, word) for word in thing.mark)
    mark = f"{article(colour)} {colour} {shape}"
    return rng.choice((f"with {mark} in the middle", f"marked with {mark}", f"bearing {mark} at its centre"))


def article(word: str) -> str:
    """The indefinite article that goes before a word."""
    return "an" if word[0] in "aeiou" else "a"
