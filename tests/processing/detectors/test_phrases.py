"""The noun phrases of captions, exactly."""

import pytest

from fastgoal.processing.detectors.phrases import noun_phrases


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A brown dog lies on a red sofa.", ["brown dog", "red sofa"]),
        ("two people and three cars", ["people", "cars"]),
        ("A man wearing a straw hat is riding a horse.", ["man", "straw hat", "horse"]),
        ("A smiling woman holds a large tiled plate.", ["smiling woman", "large tiled plate"]),
        ("The wall is white and the floor is dark brown.", ["wall", "floor"]),
        ("A small, brown, long-haired dog.", ["long-haired dog"]),
        ("On the left side of the image there is a tall building.", ["tall building"]),
        ("A group of people stands in front of the old stone church.", ["people", "old stone church"]),
        ("The dog's bowl isn't empty; it's next to the child’s blue chair.", ["dog's bowl", "child's blue chair"]),
        ("Parked cars line the narrow street.", ["cars", "narrow street"]),
        ("A sign that says “STOP” hangs above door 12b.", ["sign", "stop", "door"]),
        ("In this image we can see chairs, a table, and some objects.", ["chairs", "table", "objects"]),
        ("A dog. The dog. Another DOG!", ["dog"]),
        ("A brightly lit room with wooden dining tables", ["room", "wooden dining tables"]),
        ("The building, painted white, has a red-tiled roof.", ["building", "red-tiled roof"]),
        ("A family flies a kite on the beach near a fishing boat.", ["family", "kite", "beach", "fishing boat"]),
        ("Snow-covered trees stand beneath an orange sky", ["snow-covered trees", "orange sky"]),
        ("a café with 3.5 m high windows", ["café", "high windows"]),
        ("It is very bright here, and everything looks beautiful.", []),
        ("The image was taken at night from above.", ["night"]),
        ("Ein kleiner Hund liegt neben dem Haus der Familie Meier", []),
        ("12:30 - ???", []),
        ("", []),
    ],
)
def test_captions(caption, phrases):
    assert noun_phrases(caption) == phrases


def test_a_long_caption_gives_its_first_phrases():
    names = ["cat", "dog", "cow", "hen", "pig"]
    caption = ". ".join(f"A {name} and the {name}" for name in names)
    assert noun_phrases(caption) == names
    assert noun_phrases(caption, max_phrases=3) == names[:3]
    assert len(noun_phrases(", ".join(a + b for a in "bcdfg" for b in ("at", "en", "ip", "og", "un")))) == 16


def test_a_long_run_is_not_a_phrase():
    assert noun_phrases("a very old stone garden wall gate post") == []
    assert noun_phrases("an old stone garden wall gate") == ["old stone garden wall gate"]
