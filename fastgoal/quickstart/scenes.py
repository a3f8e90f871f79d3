"""The scenes of the quickstart: drawn objects with their boxes and captions of several sentences.

Every scene shows three to five objects on a pale background. An object has a shape, a color, a fill pattern in a second
color, an outline, and a small mark in its middle. The caption has one sentence about the whole scene and one sentence
for each object, which describes only what a crop of the object shows, not its position or size. There are thousands of
combinations of attributes, so two sentences of a batch seldom describe the same object. Details have words that short
captions never use: as in the papers, long captions say more than a model trained on short ones has learned.

A scene depends only on its split, seed, and index. Splits never share a scene, and drawing more scenes does not change
the first ones.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fastgoal.quickstart import drawing
from fastgoal.quickstart.drawing import BACKGROUNDS, COLORS, SHAPES, SUPERSAMPLING, Scene, Split, Thing, article

SCENE_SIZE = 192
"""Width and height of a scene, in pixels."""

MAX_OBJECTS = 5

DETAIL_WORDS = {plain: words[0] for plain, words in drawing.DETAIL_WORDS.items()}
"""Words of long captions for the details of an object."""


def draw_scenes(
    count: int,
    seed: int = 0,
    split: Split = "train",
    min_objects: int = 3,
    shapes: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    rich: bool = True,
) -> list[Scene]:
    """Draw scenes. The same arguments give the same scenes, and different splits or seeds give different ones.

    Args:
        count: Number of scenes.
        seed: Random seed.
        split: Purpose of the scenes.
        min_objects: Minimum number of objects in a scene.
        shapes: Shapes of the objects, by default all of `SHAPES`. With fewer shapes, scenes differ more in details.
        colors: Main colors of the objects, by default all of `COLORS`. Patterns, outlines, and marks have any color.
        rich: Whether captions name details with `DETAIL_WORDS`, and not with the words of short captions. The images
            are the same.

    Raises:
        ValueError: `split`, a shape, or a color is unknown, or `min_objects` is not from 1 to 5.
    """
    drawing.check_request(split, min_objects, MAX_OBJECTS, limit=MAX_OBJECTS)
    for name, given, known in (("shapes", shapes, SHAPES), ("colors", colors, COLORS)):
        if given is not None and (not given or set(given) - set(known)):
            raise ValueError(f"`{name}` must be a selection of {sorted(known)}, got {given}.")
    names, tints = sorted(shapes or SHAPES), sorted(colors or COLORS)
    words = DETAIL_WORDS if rich else {}
    scenes = []
    for index in range(count):
        rng = random.Random(f"{split}/{seed}/{index}")
        scenes.append(_draw_scene(rng, min_objects, names, tints, words))
    return scenes


def short_caption(objects: Sequence[Thing], rng: random.Random, detail: float = 0.3) -> str:
    """Return a short caption of some objects, as the base model knows them: shape, mostly color, seldom a detail.

    `detail` is the probability that the caption names the fill pattern. The outline and the mark have half of it.
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
    """Write `images/*.png` and `metadata.jsonl` (file_name, caption, boxes in pixels, labels); return the folder."""
    return _write_rows(
        ((scene.image, {"caption": scene.caption, "boxes": scene.boxes, "labels": scene.labels}) for scene in scenes),
        folder,
    )


def write_short_folder(scenes: Sequence[Scene], folder: str | Path, seed: int = 0) -> Path:
    """Write one enlarged object of each scene, and a short caption that names all its details, in the same form."""
    rng = random.Random(f"short/{seed}")

    def rows() -> Iterator[tuple[Image.Image, dict[str, Any]]]:
        for scene in scenes:
            number = rng.randrange(len(scene.things))
            caption = short_caption([scene.things[number]], rng, detail=2.0)
            yield drawing.enlarge(scene, number, rng), {"caption": caption}

    return _write_rows(rows(), folder)


def _write_rows(rows: Iterable[tuple[Image.Image, dict[str, Any]]], folder: str | Path) -> Path:
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as file:
        for index, (image, columns) in enumerate(rows):
            name = f"images/{index:05d}.png"
            image.save(folder / name)
            file.write(json.dumps({"file_name": name, **columns}) + "\n")
    return folder


def _draw_scene(
    rng: random.Random, fewest: int, names: Sequence[str], tints: Sequence[str], words: Mapping[str, str]
) -> Scene:
    background = rng.choice(sorted(BACKGROUNDS))
    side = SCENE_SIZE * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), drawing.jitter(BACKGROUNDS[background], rng, 6))
    circles = drawing.place_circles(
        rng, rng.randint(fewest, MAX_OBJECTS), (SCENE_SIZE, SCENE_SIZE), radii=(20, 34), tries=60
    )
    # All shapes differ if there are enough of them.
    different = len(names) >= len(circles)
    shapes = rng.sample(names, len(circles)) if different else rng.choices(names, k=len(circles))
    things, boxes = [], []
    for shape, circle in zip(shapes, circles, strict=True):
        color = rng.choice(tints)
        things.append(Thing(shape, color, *drawing.choose_details(rng, color), circle))
        boxes.append(drawing.paint(canvas, things[-1], rng, mark_size=0.32))
    sentences, described = _describe(things, background, rng, words)
    return Scene(canvas.reduce(SUPERSAMPLING), sentences, described, boxes, things, background)


def _describe(
    objects: Sequence[Thing], background: str, rng: random.Random, words: Mapping[str, str]
) -> tuple[list[str], list[tuple[int, ...]]]:
    """Return the sentences of the long caption in random order, and the objects that each one describes."""
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
    """Return one of several sentences with all attributes of the object; `words` are those for details."""
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
