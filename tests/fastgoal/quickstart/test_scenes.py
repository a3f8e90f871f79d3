"""The drawn scenes are reproducible, their boxes fit, and their sentences describe what is drawn."""

import hashlib
import json
import random
import re

import numpy as np
import pytest
from PIL import Image, ImageChops

from fastgoal.quickstart.drawing import BACKGROUNDS, COLORS, SHAPES
from fastgoal.quickstart.scenes import (
    DETAIL_WORDS,
    SCENE_SIZE,
    draw_scenes,
    short_caption,
    write_folder,
    write_short_folder,
)


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes(20, seed=3, split="validation")


def test_scenes_are_those_that_the_base_model_was_trained_on():
    """The packaged checkpoint and published numbers depend on it. Pixels may differ with the version of Pillow."""
    drawn = [(s.caption, [t.circle for t in s.things]) for split in ("base", "test") for s in draw_scenes(20, 0, split)]
    assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == "1e2d7bf04aff3fdf"


def test_the_same_arguments_draw_the_same_scenes(scenes):
    again = draw_scenes(5, seed=3, split="validation")
    assert [scene.caption for scene in again] == [scene.caption for scene in scenes[:5]]
    for one, other in zip(again, scenes, strict=False):
        assert ImageChops.difference(one.image, other.image).getbbox() is None


@pytest.mark.parametrize(("seed", "split"), [(4, "validation"), (3, "test"), (3, "train"), (3, "base")])
def test_other_seeds_and_splits_draw_other_scenes(scenes, seed, split):
    others = {scene.caption for scene in draw_scenes(20, seed=seed, split=split)}
    assert not others & {scene.caption for scene in scenes}


def test_boxes_hold_all_drawn_pixels(scenes):
    for scene in scenes:
        corner = scene.image.getpixel((0, 0))
        ground = Image.new("RGB", scene.image.size, corner)
        drawn = ImageChops.difference(scene.image, ground)
        for x1, y1, x2, y2 in scene.boxes:
            assert 0 <= x1 < x2 <= SCENE_SIZE
            assert 0 <= y1 < y2 <= SCENE_SIZE
            # The object reaches every side of its box.
            red, green, blue = drawn.crop((x1, y1, x2, y2)).split()
            strongest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
            inner = strongest.point(lambda value: 255 * (value > 8)).getbbox()
            assert inner is not None
            left, top, right, bottom = inner
            assert max(left, top, x2 - x1 - right, y2 - y1 - bottom) <= 2
            drawn.paste((0, 0, 0), (x1, y1, x2, y2))
        assert max(high for _, high in drawn.getextrema()) <= 12


def test_sentences_describe_their_objects(scenes):
    for scene in scenes:
        assert scene.caption == " ".join(scene.sentences)
        described = [number for numbers in scene.sentence_things for number in numbers]
        assert sorted(described) == list(range(len(scene.things)))
        for sentence, numbers in zip(scene.sentences, scene.sentence_things, strict=True):
            if not numbers:
                assert scene.background in sentence
                continue
            (index,) = numbers
            thing = scene.things[index]
            assert f"{thing.color} {thing.shape}" in sentence
            for word in filter(None, [thing.second, thing.outline, *(thing.mark or ())]):
                assert DETAIL_WORDS[word] in sentence
            assert scene.labels[index] == f"{thing.color} {thing.shape}"


def test_plain_captions_use_the_words_of_short_captions(scenes):
    plain = draw_scenes(20, seed=3, split="validation", rich=False)
    for scene, rich in zip(plain, scenes, strict=True):
        assert ImageChops.difference(scene.image, rich.image).getbbox() is None
        assert not set(DETAIL_WORDS.values()) & set(re.findall(r"\w+", scene.caption))
        for sentence, numbers in zip(scene.sentences, scene.sentence_things, strict=True):
            for thing in (scene.things[number] for number in numbers):
                assert (thing.outline or "") in sentence


def test_shapes_and_colors_can_be_chosen():
    for scene in draw_scenes(10, shapes=("star", "heart"), colors=("red",)):
        assert {thing.shape for thing in scene.things} <= {"star", "heart"}
        assert {thing.color for thing in scene.things} == {"red"}
    with pytest.raises(ValueError, match=r"`shapes`.*pentagon"):
        draw_scenes(1, shapes=("pentagon",))


def test_sentences_of_a_batch_differ():
    sentences = [
        s for scene in draw_scenes(50, seed=0, split="train") for s in scene.sentences if "background" not in s
    ]
    assert len(set(sentences)) > 0.9 * len(sentences)


def test_short_captions_name_the_objects(scenes):
    rng = random.Random(0)
    for scene in scenes:
        caption = short_caption(scene.things[:2], rng, detail=0.0)
        assert all(thing.shape in caption for thing in scene.things[:2])
        assert "." not in caption


def test_colors_can_be_told_apart():
    tints = [*COLORS.values(), *BACKGROUNDS.values()]
    for i, one in enumerate(tints):
        for other in tints[i + 1 :]:
            assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 30


def test_write_folder(scenes, tmp_path):
    write_folder(scenes[:3], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == [scene.caption for scene in scenes[:3]]
    assert [len(row["boxes"]) for row in rows] == [len(scene.boxes) for scene in scenes[:3]]
    with Image.open(tmp_path / rows[0]["file_name"]) as image:
        assert ImageChops.difference(image, scenes[0].image).getbbox() is None


def test_short_folder_has_one_enlarged_object_of_each_scene(scenes, tmp_path):
    write_short_folder(scenes, tmp_path, seed=1)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == len(scenes)
    for row, scene in list(zip(rows, scenes, strict=True))[:3]:
        shape = next(word for word in row["caption"].split() if word in SHAPES)
        (number,) = (index for index, thing in enumerate(scene.things) if thing.shape == shape)
        thing = scene.things[number]
        assert all(word in row["caption"] for word in (thing.outline, thing.second, *(thing.mark or ())) if word)
        with Image.open(tmp_path / row["file_name"]) as image:
            crop, whole = np.asarray(image), np.asarray(scene.image)
        x1, y1, x2, y2 = scene.boxes[number]
        side = max(x2 - x1, y2 - y1)
        assert 0.9 * side - 1 <= len(crop) <= 2 * side
        windows = np.lib.stride_tricks.sliding_window_view(whole, crop.shape)[:, :, 0]
        top, left = np.argwhere((windows == crop).all(axis=(2, 3, 4)))[0]  # where the crop was taken
        for corner, low, high in ((left, x1, x2), (top, y1, y2)):
            assert abs(corner + len(crop) / 2 - (low + high) / 2) <= 0.4 * len(crop)


@pytest.mark.parametrize("arguments", [{"split": "holdout"}, {"min_objects": 0}, {"min_objects": 6}])
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=r"must be|must have"):
        draw_scenes(1, **arguments)
