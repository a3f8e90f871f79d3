"""The sheet of matched pairs: regions where they should be, in the colour of their sentence."""

import pytest
from PIL import Image, ImageColor

from fastgoal.pictures import COLOURS, LINE, MARGIN, pairs_sheet

CAPTION = "A red cup stands on a table. Behind it a dog sleeps."


def row(**changes):
    return {
        "image": Image.new("RGB", (100, 50), "white"),
        "file_name": "a.png",
        "caption": CAPTION,
        "regions": [
            {"box": [10.0, 10.0, 40.0, 40.0], "label": "cup", "source": "column"},
            {"box": [50.0, 0.0, 100.0, 50.0], "label": "", "source": "default"},
        ],
        "sentences": [{"start": 0, "end": 28}, {"start": 29, "end": len(CAPTION)}],
        "pairs": [
            {"sentence": 0, "region": 0, "score": 0.5, "best": True},
            {"sentence": 1, "region": 1, "score": 0.4, "best": False},
        ],
        **changes,
    }


def colours_in(image):
    return {colour for _, colour in image.getcolors(maxcolors=1 << 24)}


def test_frames_have_the_colours_of_their_sentences():
    sheet = pairs_sheet([row()], image_height=200)
    left, right = sheet.crop((0, 0, 420, sheet.height)), sheet.crop((440, 0, sheet.width, sheet.height))
    for number in range(2):
        colour = ImageColor.getrgb(COLOURS[number])
        assert colour in colours_in(left)
        assert colour in colours_in(right)
    # 100 x 50 shown at four times its size, 16 from the left, below the legend.
    top = LINE + MARGIN + MARGIN // 2
    assert sheet.getpixel((MARGIN + 40 + 2, top + 80)) == ImageColor.getrgb(COLOURS[0])
    assert sheet.getpixel((MARGIN + 70, top + 80)) == (255, 255, 255)


def test_two_sentences_of_one_region_are_both_seen():
    pairs = [
        {"sentence": 0, "region": 0, "score": 0.5, "best": True},
        {"sentence": 1, "region": 0, "score": 0.4, "best": False},
    ]
    left = pairs_sheet([row(pairs=pairs)]).crop((0, 0, 400, 200))
    assert {ImageColor.getrgb(COLOURS[0]), ImageColor.getrgb(COLOURS[1])} <= colours_in(left)


def test_long_captions_make_the_sheet_higher():
    long = "word " * 300 + "."
    high = pairs_sheet([row(caption=long, sentences=[{"start": 0, "end": len(long)}], pairs=[row()["pairs"][0]])])
    assert high.height > pairs_sheet([row()]).height


def test_rows_stand_one_under_the_other():
    one, three = pairs_sheet([row()]), pairs_sheet([row()] * 3)
    assert three.width == one.width
    assert three.height > 2 * one.height


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one row"):
        pairs_sheet([])
