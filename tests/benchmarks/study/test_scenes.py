"""The study's world has known answers: boxes, sentences, twins, and the words that each split may use."""

import hashlib
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from benchmarks.study import scenes
from benchmarks.study.scenes import draw_crowds
from fastgoal.quickstart.drawing import DETAIL_WORDS

BASE_CLIP = Path(scenes.__file__).parent / "base_clip"


def words(texts):
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


def test_are_the_scenes_that_the_base_and_the_results_were_made_with():
    told = [
        (s.caption, [t.circle for t in s.things], s.twin_of)
        for split in ("base", "test")
        for s in draw_crowds(20, 0, split)
    ]
    assert hashlib.sha256(repr(told).encode()).hexdigest()[:16] == "cefa1cc1da9afa13"


def test_depend_on_split_seed_and_index_alone():
    few, many = draw_crowds(5, 1), draw_crowds(12, 1)
    assert [scene.caption for scene in few] == [scene.caption for scene in many[:5]]
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(few, many, strict=False))
    others = [*draw_crowds(12, 2), *draw_crowds(12, 1, "validation"), *draw_crowds(12, 1, "test")]
    assert not {scene.image.tobytes() for scene in many} & {scene.image.tobytes() for scene in others}


def test_captions_are_as_long_as_promised():
    scenes = draw_crowds(300, 0, max_things=7)
    assert min(len(scene.sentences) for scene in scenes) == 3
    assert max(len(scene.sentences) for scene in scenes) == 15
    lengths = [len(re.findall(r"\w+|[^\w\s]", scene.caption)) for scene in scenes]
    assert min(lengths) >= 30
    assert max(lengths) <= 238
    assert {len(scene.things) for scene in scenes} == set(range(2, 8))
    assert all(len(scene.sentences) == len(scene.sentence_things) for scene in scenes)


def test_captions_with_relations_go_on_after_248_tokens():
    """Each thing is described up to the last, and its relations to three others follow."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_CLIP)
    for scene in draw_crowds(10, 0, "test", twins=0.0, min_things=5, max_things=7, relations=3):
        assert 280 < len(tokenizer(scene.caption)["input_ids"]) < 500
        described = [things[0] for things in scene.sentence_things if len(things) == 1]
        assert {*described} == {*range(len(scene.things))}
        related = [things for things in scene.sentence_things if len(things) == 2]
        assert len({*related}) == len(related) <= 3 * len(scene.things)
        # What a model of 248 tokens does not read is not only relations.
        ends = tokenizer(scene.caption, truncation=True, max_length=248, return_offsets_mapping=True)["offset_mapping"]
        read, unread = 0, []
        for sentence, things in zip(scene.sentences, scene.sentence_things, strict=True):
            read = scene.caption.index(sentence, read) + len(sentence)
            unread += [things] if read > ends[-2][1] else []
        assert {len(things) for things in unread} == {1, 2}


@pytest.mark.parametrize("options", [{}, {"min_things": 5, "max_things": 7, "relations": 3}])
def test_sentences_name_the_things_they_speak_of(options):
    for scene in draw_crowds(10 if options else 50, 3, "test", **options):
        for sentence, things in zip(scene.sentences, scene.sentence_things, strict=True):
            for number in things:
                assert f"{scene.things[number].color} {scene.things[number].shape}" in sentence


def test_wordings_of_the_test_are_held_out_but_not_their_words():
    train = [scene.caption for scene in draw_crowds(200, 0)]
    test = [scene.caption for scene in draw_crowds(100, 0, "test")]
    base = draw_crowds(300, 0, "base", min_things=1)
    rng = random.Random(0)
    short = [scenes.short_caption(scene, [0], rng, 0.5) for scene in base]
    assert words(test) <= words(train) | words(short)
    for phrase in ("bordered in", "painted with", "stamped with", "You can see"):
        assert any(phrase in caption for caption in test)
        assert not any(phrase in caption for caption in train)
    # The base never reads a word for a detail.
    details = {word for choices in DETAIL_WORDS.values() for word in choices}
    assert not words(short) & details
    assert len(words(train) & details) > 40
    few = draw_crowds(100, 0, words=1)
    assert words(scene.caption for scene in few) & details <= {choices[0] for choices in DETAIL_WORDS.values()}


def test_boxes_hold_exactly_what_is_drawn():
    for index, scene in enumerate(draw_crowds(20, 4, twins=0.0)):
        rng = random.Random(f"crowd/train/4/{index}")
        plan = replace(scenes._plan(rng, (2, 5), True, (3, 0), f"train/4/{index}"), light="bright")
        empty = np.asarray(scenes._background(plan, random.Random(f"{plan.seed}/background")))
        for number, (thing, box) in enumerate(zip(plan.things, scene.boxes, strict=True)):
            canvas = Image.fromarray(empty)
            scenes._draw_thing(canvas, thing, random.Random(f"{plan.seed}/{number}"))
            ys, xs = np.nonzero((np.asarray(canvas) != empty).any(-1))
            drawn = (xs.min() / 2, ys.min() / 2, (xs.max() + 1) / 2, (ys.max() + 1) / 2)
            assert drawn == pytest.approx(box, abs=2)


def test_twins_differ_in_one_thing():
    scenes = draw_crowds(60, 0, twins=0.5)
    twins = [(scenes[scene.twin_of], scene) for scene in scenes if scene.twin_of is not None]
    assert len(twins) > 10
    for first, second in twins:
        changed = [i for i, (a, b) in enumerate(zip(first.things, second.things, strict=True)) if a != b]
        assert len(changed) == 1
        ys, xs = np.nonzero((np.asarray(first.image) != np.asarray(second.image)).any(-1))
        x1, y1, x2, y2 = second.boxes[changed[0]]
        assert xs.min() >= x1 - 1
        assert ys.min() >= y1 - 1
        assert xs.max() <= x2
        assert ys.max() <= y2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"split": "dev"}, "split"), ({"twins": 2}, "twins"), ({"max_things": 9}, "1 to 7 things")],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_crowds(1, **arguments)
