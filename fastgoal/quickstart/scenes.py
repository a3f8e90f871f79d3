"""The quickstart's world, in which everything is known: scenes of objects, their boxes, captions of several sentences.

Every scene shows three to five objects on a pale background. An object has a shape, a color, a fill pattern in a
second color, an outline and a small mark in its middle. The caption gives each object a sentence of its own, which
tells what a crop of the object shows and nothing else (no place, no size), and one sentence about the scene as a whole.
Thousands of attribute combinations make a sentence close to unique, so two sentences of a batch seldom describe the
same thing. Details are told in words of their own, which short captions never use: as in the papers, long captions say
more than a CLIP trained on short ones has learned.

A scene depends on its split, its seed and its index alone, so the splits never share a scene and drawing more scenes
never changes the first ones.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from fastgoal.quickstart import drawing
from fastgoal.quickstart.drawing import BACKGROUNDS, COLORS, SHAPES, SUPERSAMPLING, Scene, Split, Thing, article

SCENE_SIZE = 192
"""Width and height of a scene, in pixels."""

MOST = 5
"""Objects of a scene."""

DETAIL_WORDS = {plain: words[0] for plain, words in drawing.DETAIL_WORDS.items()}
"""What long captions call colors, patterns and marks where they tell a detail."""


def draw_scenes(
    count: int,
    seed: int = 0,
    split: Split = "train",
    min_objects: int = 3,
    shapes: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    rich: bool = True,
) -> list[Scene]:
    """Draws `count` scenes; the same arguments give the same scenes, and no two splits or seeds share one.

    Args:
        count: Number of scenes.
        seed: Draws others.
        split: Draws others too: what a scene is for.
        min_objects: Fewest objects of a scene.
        shapes: Shapes of the objects, all of `SHAPES` by default. The fewer there are, the more it takes the details
            to tell scenes apart.
        colors: Main colors of the objects, likewise; patterns, outlines and marks have any color.
        rich: Whether captions tell details in `DETAIL_WORDS`; otherwise in the words of short captions. The pictures
            are the same.

    Raises:
        ValueError: `split`, a shape or a color is unknown, or `min_objects` is not within 1 to 5.
    """
    drawing.check_request(split, min_objects, MOST, limit=MOST)
    for name, given, known in (("shapes", shapes, SHAPES), ("colors", colors, COLORS)):
        if given is not None and (not given or set(given) - set(known)):
            raise ValueError(f"`{name}` must be some of {sorted(known)}, got {given}.")
    names, tints = sorted(shapes or SHAPES), sorted(colors or COLORS)
    words = DETAIL_WORDS if rich else {}
    scenes = []
    for index in range(count):
        rng = random.Random(f"{split}/{seed}/{index}")
        scenes.append(_draw_scene(rng, min_objects, names, tints, words))
    return scenes


def short_caption(objects: Sequence[Thing], rng: random.Random, detail: float = 0.3) -> str:
    """A short caption that names the given objects, as the base CLIP knows them: shape, mostly color, seldom a detail.

    `detail` is the chance that a fill pattern is told; an outline and a mark are each told half as often.
    """
    phrases = []
    for thing in objects:
        noun = thing.shape if rng.random() < 0.05 else f"{thing.color} {thing.shape}"
        chances = (_pattern_phrase, detail), (_outline_phrase, detail / 2), (_mark_phrase, detail / 2)
        told = [phrase(thing, rng, {}) for phrase, chance in chances if rng.random() < chance]
        told = [phrase for phrase in told if phrase]
        rng.shuffle(told)
        phrases.append(f"{article(noun)} {noun}" + (" " + " and ".join(told) if told else ""))
    start = rng.choice(("", "", "a picture of ", "a drawing of ", "there is ", "we see "))
    return start + drawing.enumerate_phrases(phrases)


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


def _draw_scene(
    rng: random.Random, fewest: int, names: Sequence[str], tints: Sequence[str], words: Mapping[str, str]
) -> Scene:
    background = rng.choice(sorted(BACKGROUNDS))
    side = SCENE_SIZE * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), drawing.jitter(BACKGROUNDS[background], rng, 6))
    places = drawing.place_circles(rng, rng.randint(fewest, MOST), (SCENE_SIZE, SCENE_SIZE), radii=(20, 34), tries=60)
    # Different shapes where there are enough of them.
    different = len(names) >= len(places)
    shapes = rng.sample(names, len(places)) if different else rng.choices(names, k=len(places))
    things, boxes = [], []
    for shape, place in zip(shapes, places, strict=True):
        color = rng.choice(tints)
        things.append(Thing(shape, color, *drawing.choose_details(rng, color), place))
        boxes.append(drawing.paint(canvas, things[-1], rng, mark_size=0.32))
    sentences, spoken_of = _describe(things, background, rng, words)
    return Scene(canvas.reduce(SUPERSAMPLING), sentences, spoken_of, boxes, things, background)


def _describe(
    objects: Sequence[Thing], background: str, rng: random.Random, words: Mapping[str, str]
) -> tuple[list[str], list[tuple[int, ...]]]:
    """Sentences of the long caption in random order, and the objects each one speaks of; `words` are for details."""
    order = rng.sample(range(len(objects)), len(objects))
    told: list[tuple[str, tuple[int, ...]]] = [(_object_sentence(objects[i], rng, words), (i,)) for i in order]
    number, tint = drawing.NUMBER_WORDS[len(objects)], f"{article(background)} {background}"
    whole = rng.choice(
        (
            f"The picture shows {number} shapes on {tint} background.",
            f"There are {number} shapes in front of {tint} wall.",
            f"Behind the {number} shapes the paper is {background}.",
        )
    )
    told.insert(rng.choice((0, len(told))), (whole, ()))
    return [sentence for sentence, _ in told], [things for _, things in told]


def _object_sentence(thing: Thing, rng: random.Random, words: Mapping[str, str]) -> str:
    """One sentence with every attribute of the object, in one of several wordings."""
    noun = f"{thing.color} {thing.shape}"
    details = [phrase(thing, rng, words) for phrase in (_pattern_phrase, _outline_phrase, _mark_phrase)]
    rng.shuffle(details)
    told = [phrase for phrase in details if phrase]
    if not told:
        return f"{article(noun).capitalize()} {noun} has no detail at all."
    subject = rng.choice(("There is", "One shape is", "We see"))
    return f"{subject} {article(noun)} {noun} {drawing.enumerate_phrases(told)}."


def _pattern_phrase(thing: Thing, rng: random.Random, words: Mapping[str, str]) -> str:
    if thing.second is None:
        return rng.choice(("in one flat colour", "without a pattern"))
    second, pattern = words.get(thing.second, thing.second), words.get(thing.pattern, thing.pattern)
    if thing.pattern == "halves":
        return rng.choice((f"with {article(second)} {second} lower half", f"turning {second} below"))
    start = rng.choice(("with", "covered by", "decorated with"))
    return f"{start} {second} {pattern}"


def _outline_phrase(thing: Thing, rng: random.Random, words: Mapping[str, str]) -> str:
    if thing.outline is None:
        return ""
    outline = words.get(thing.outline, thing.outline)
    an_outline = f"{article(outline)} {outline}"
    return rng.choice((f"with {an_outline} outline", f"edged in {outline}", f"inside {an_outline} rim"))


def _mark_phrase(thing: Thing, rng: random.Random, words: Mapping[str, str]) -> str:
    if thing.mark is None:
        return ""
    color, shape = (words.get(word, word) for word in thing.mark)
    mark = f"{article(color)} {color} {shape}"
    return rng.choice((f"with {mark} in the middle", f"marked with {mark}", f"bearing {mark} at its centre"))
