"""The world of the study: the quickstart's drawn scenes made harder, with everything known about them.

A scene shows two to five things (up to seven if told): single objects or groups of two or three alike, each with a
shape, a color, a fill pattern, an outline and a mark, on a background with a texture, in bright or dim light. Pictures
are square, wide or tall, so a center crop cuts some things off. The caption has 3 to 15 sentences: about the scene as a
whole, about one thing, and about how two things lie to each other. Long captions tell details in words that the base
CLIP never reads in its short ones, three words for each of the plain ones.

Every split has wordings of its own: the sentences of test scenes are built in ways that training never sees, from words
that it does. A share of the scenes are near-twins: the scene before with one detail of one thing changed, told anew.

A scene depends on split, seed and index alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from fastgoal.quickstart import drawing
from fastgoal.quickstart.drawing import BACKGROUNDS, SUPERSAMPLING, Box, Scene, Split, Thing, article, other_color

from .words import Plan, describe, details, relations, with_article

SIZES = ((224, 224), (280, 224), (224, 280))
"""Widths and heights of pictures, in pixels."""

THING_SHAPES = ("arrow", "circle", "drop", "flower", "heart", "hexagon", "square", "star")
THING_COLORS = ("blue", "green", "orange", "purple", "red", "yellow")
TEXTURES = ("plain", "ruled", "dotted", "floored")
LIGHTS = {"bright": 1.0, "dim": 0.72}
SHORT_STARTS = (
    *("", "", "a picture of ", "there is ", "we see "),
    *("here is ", "you can see ", "look at ", "one can find "),
)


@dataclass(frozen=True)
class Crowd(Scene):
    """A scene of this world.

    Attributes:
        detected: Boxes as an object detector might find them: some missing, none exact, some of nothing.
        texture, light: Words for what is around the things, beside the background.
        twin_of: Index of the scene that this one repeats with one detail changed, or `None`.
    """

    detected: list[Box]
    texture: str
    light: str
    twin_of: int | None


def draw_crowds(
    count: int,
    seed: int | str = 0,
    split: Split = "train",
    twins: float = 0.2,
    min_things: int = 2,
    max_things: int = 5,
    words: int = 3,
    large: bool = True,
    relations: int = 0,
) -> list[Crowd]:
    """Draw `count` scenes; the same arguments give the same scenes, and no two splits or seeds share one.

    Args:
        count: Number of scenes.
        seed: Draws others.
        split: Draws others, worded in the split's own way.
        twins: Share of scenes, 0 to 1, that are near-twins of the one before.
        min_things: Fewest things of a scene, from 1.
        max_things: Most things of a scene, up to 7.
        words: How many words long captions have for each detail, 1 to 3.
        large: Whether things fill much of the picture.
        relations: How many relations to others captions tell after each thing, see `Plan`.

    Raises:
        ValueError: `split` is unknown, or a number is not within its limits.
    """
    drawing.check_request(split, min_things, max_things, limit=7)
    if not 0 <= twins <= 1:
        raise ValueError(f"`twins` must be from 0 to 1, got {twins}.")
    if not 1 <= words <= 3:
        raise ValueError(f"`words` must be from 1 to 3, got {words}.")
    scenes: list[Crowd] = []
    before: Plan | None = None
    for index in range(count):
        rng = random.Random(f"crowd/{split}/{seed}/{index}")
        plan = _plan(rng, (min_things, max_things), large, (words, relations), f"{split}/{seed}/{index}")
        if before is not None and before.twin_of is None and rng.random() < twins:
            plan = _change_one(before, rng, index - 1)
        scenes.append(_draw(plan, rng, "train" if split == "base" else split))
        before = plan
    return scenes


def short_caption(scene: Crowd, chosen: Sequence[int], rng: random.Random, detail: float) -> str:
    """A short caption of the one or two things with these numbers, in plain words, as the base CLIP learns from.

    `detail` is the chance that a thing's pattern is told, or its outline, or its mark.
    """
    phrases, things = [], [scene.things[number] for number in chosen]
    for thing in things:
        told = [phrase for phrase in details(thing, rng, 0, "any") if rng.random() < detail]
        phrases.append(with_article(thing) + (" " + " and ".join(told) if told else ""))
    text = " and ".join(phrases)
    if len(things) == 2 and rng.random() < 0.5:
        text = f" {rng.choice(relations(*things))} ".join(phrases)
    if rng.random() < 0.25:
        place = f"{article(scene.background)} {scene.background}"
        text += rng.choice((f" on {place} background", f" in front of {place} wall", f" in {scene.light} light"))
    return rng.choice(SHORT_STARTS) + text


def _plan(rng: random.Random, things: tuple[int, int], large: bool, told: tuple[int, int], seed: str) -> Plan:
    size = rng.choice(SIZES)
    count = rng.randint(*things)
    largest = 58 - 3.2 * count if large else 52 - 3.5 * count  # the more there are, the smaller
    places = drawing.place_circles(rng, count, size, radii=(0.6 * largest, largest), tries=80)
    background, texture, light = (rng.choice(names) for names in (sorted(BACKGROUNDS), TEXTURES, sorted(LIGHTS)))
    things = []
    for place in places:
        color = rng.choice(THING_COLORS)
        looks = drawing.choose_details(rng, color)
        alike = rng.choices((1, 2, 3), (0.76, 0.14, 0.10))[0]
        things.append(Thing(rng.choice(THING_SHAPES), color, *looks, place, alike))
    return Plan(size, background, texture, light, tuple(things), seed, *told)


def _change_one(plan: Plan, rng: random.Random, index: int) -> Plan:
    """The plan with one detail of one thing changed: pattern, outline or mark."""
    number = rng.randrange(len(plan.things))
    thing = plan.things[number]
    change = rng.choice(("pattern", "outline", "mark"))
    if change == "pattern":
        pattern = rng.choice([name for name in drawing.PATTERNS if name not in (thing.pattern, "plain")])
        thing = replace(thing, pattern=pattern, second=other_color(rng, thing.color, thing.second))
    elif change == "outline":
        thing = replace(thing, outline=other_color(rng, thing.color, thing.outline))
    else:
        taken = thing.mark[0] if thing.mark else None
        thing = replace(thing, mark=(other_color(rng, thing.color, thing.second, taken), rng.choice(drawing.MARKS)))
    things = (*plan.things[:number], thing, *plan.things[number + 1 :])
    return replace(plan, things=things, twin_of=index)


def _draw(plan: Plan, rng: random.Random, wording: str) -> Crowd:
    canvas = _background(plan, random.Random(f"{plan.seed}/background"))
    boxes = [_draw_thing(canvas, thing, random.Random(f"{plan.seed}/{i}")) for i, thing in enumerate(plan.things)]
    image = canvas.reduce(SUPERSAMPLING)
    if plan.light == "dim":
        image = image.point([round(value * LIGHTS["dim"]) for value in range(256)] * 3)
    sentences, spoken_of = describe(plan, rng, wording)
    told = (sentences, spoken_of, boxes, list(plan.things), plan.background)
    return Crowd(image, *told, _detect(boxes, plan.size, rng), plan.texture, plan.light, plan.twin_of)


def _background(plan: Plan, rng: random.Random) -> Image.Image:
    width, height = (side * SUPERSAMPLING for side in plan.size)
    paper = drawing.jitter(BACKGROUNDS[plan.background], rng, 6)
    ink = tuple(max(0, value - 34) for value in paper)
    canvas = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(canvas)
    step = 14 * SUPERSAMPLING
    if plan.texture == "floored":
        pen.rectangle((0, height * 0.72, width, height), fill=ink)
    for y in range(step // 2, height, step):
        if plan.texture == "ruled":
            pen.line((0, y, width, y), fill=ink, width=SUPERSAMPLING)
        elif plan.texture == "dotted":
            for x in range(step // 2, width, step):
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ink)
    return canvas


def _draw_thing(canvas: Image.Image, thing: Thing, rng: random.Random) -> Box:
    """Draw all objects of a thing and return the box around them, in pixels of the picture and clipped to it."""
    x1, y1, x2, y2 = drawing.paint(canvas, thing, rng, mark_size=0.34)
    width, height = (side // SUPERSAMPLING for side in canvas.size)
    return max(0, x1), max(0, y1), min(x2, width), min(y2, height)


def _detect(boxes: Sequence[Box], size: tuple[int, int], rng: random.Random) -> list[Box]:
    """Boxes as a detector might give them: 85 % found, edges off by up to 8 %, in 1 of 5 scenes a false one."""
    found: list[Box] = []
    for x1, y1, x2, y2 in boxes:
        if rng.random() < 0.85:
            slack = 0.08 * max(x2 - x1, y2 - y1)
            left, top, right, bottom = (round(value + rng.uniform(-slack, slack)) for value in (x1, y1, x2, y2))
            found.append((max(0, left), max(0, top), min(size[0], right), min(size[1], bottom)))
    if rng.random() < 0.2:
        side = rng.randint(40, 90)
        x, y = (rng.randint(0, length - side) for length in size)
        found.append((x, y, x + side, y + side))
    return found
