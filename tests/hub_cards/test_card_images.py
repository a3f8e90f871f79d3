"""Images of matched pairs: frames at the right place, in the color of their sentences."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from fastgoal.hub_cards.card_images import (
    COLORS,
    LINE,
    MARGIN,
    STRIPE,
    TAG,
    Frame,
    draw_frames,
    flow,
    pairs_sheet,
    row_figure,
    stack,
    text_block,
    wrap_text,
)

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


def colors_in(image):
    return {color for _, color in image.getcolors(maxcolors=1 << 24)}


def test_frames_have_the_colors_of_their_sentences():
    sheet = pairs_sheet([row()])
    left, right = sheet.crop((0, 0, 500, sheet.height)), sheet.crop((510, 0, sheet.width, sheet.height))
    for number in range(2):
        color = ImageColor.getrgb(COLORS[number])
        assert color in colors_in(left)
        assert color in colors_in(right)
    # 100 x 50 pixels at 4.8 times that size, 16 from the left and below the legend.
    top = MARGIN + LINE + MARGIN // 2
    assert sheet.getpixel((MARGIN + 48 + 2, top + 80)) == ImageColor.getrgb(COLORS[0])
    assert sheet.getpixel((MARGIN + 70, top + 80)) == (255, 255, 255)


def test_sentences_of_one_region_share_a_frame_and_its_color():
    pairs = [
        {"sentence": 0, "region": 1, "score": 0.4, "best": False},
        {"sentence": 1, "region": 1, "score": 0.5, "best": True},
    ]
    frames, lines = row_figure(row(pairs=pairs))
    assert frames == [Frame(1, row()["regions"][1]["box"], [1, 2], COLORS[:1], True)]
    assert [line.color for line in lines] == [COLORS[0]] * 2
    assert list(map(str, lines)) == [
        "1. A red cup stands on a table.  [default, 0.400]",
        "* 2. Behind it a dog sleeps.  [default, 0.500]",
    ]
    sheet = pairs_sheet([row(pairs=pairs)])
    assert ImageColor.getrgb(COLORS[0]) in colors_in(sheet)
    assert ImageColor.getrgb(COLORS[1]) not in colors_in(sheet)


def test_numbers_stay_inside_the_image_and_apart():
    """Two regions share a corner at the right edge, with ten sentences."""
    image = Image.new("RGB", (100, 120), "white")
    frames = [Frame(0, (90, 0, 100, 100), range(1, 9), ["#ff0000"]), Frame(1, (90, 5, 99, 50), [9, 10], ["#0000ff"])]
    draw_frames(image, frames, 1.0)
    red = [(x, y) for x in range(100) for y in range(120) if image.getpixel((x, y)) == (255, 0, 0)]
    blue = [(x, y) for x in range(90) for y in range(120) if image.getpixel((x, y)) == (0, 0, 255)]
    # Four tags of 24 pixels fit next to each other: two rows of them, and a third row for the other region.
    assert min(x for x, _ in red) == 100 - 4 * TAG[0] + 1
    assert {y // TAG[1] for x, y in red if x < 90} == {0, 1}
    assert min(y for _, y in blue) >= 2 * TAG[1]


def test_a_frame_of_several_colors_has_all_of_them_as_stripes():
    image = Image.new("RGB", (300, 100), "white")
    draw_frames(image, [Frame(0, (0, 0, 300, 100), [1, 2], ["#ff0000", "#0000ff"])], 1.0)
    side = [image.getpixel((x, 97)) for x in range(10, 290)]
    changes = [place for place in range(1, len(side)) if side[place] != side[place - 1]]
    assert set(side) == {(255, 0, 0), (0, 0, 255)}
    assert set(np.diff(changes)) == {STRIPE}
    # Each number has its own color.
    assert [image.getpixel((place * TAG[0] + 2, 3)) for place in range(2)] == [(255, 0, 0), (0, 0, 255)]


def test_pairs_without_a_region_are_left_out():
    pairs = [{"sentence": 0, "region": 7, "score": 0.5, "best": True}, row()["pairs"][1]]
    frames, lines = row_figure(row(pairs=pairs))
    assert [frame.numbers for frame in frames] == [[2]]
    assert [line.region for line in lines] == [None, 1]
    assert str(lines[0]) == "1. A red cup stands on a table."


def test_blocks_flow_like_words():
    blocks = [Image.new("RGB", size, color) for size, color in (((40, 10), "red"), ((50, 30), "blue"))]
    wide = flow(blocks, 100, gap=10)
    assert (wide.size, wide.getpixel((50, 29))) == ((100, 30), (0, 0, 255))
    narrow = flow(blocks, 99, gap=10)
    assert (narrow.size, narrow.getpixel((0, 49))) == ((99, 50), (0, 0, 255))
    assert stack(blocks, 5, width=70).size == (70, 45)


def test_texts_are_wrapped():
    class Font:
        def getlength(self, text):
            return len(text)

    assert wrap_text("one two three", Font(), 7) == ["one two", "three"]
    assert wrap_text("a/very/long/name b", Font(), 6) == ["a/very", "/long/", "name b"]
    assert wrap_text("", Font(), 6) == [""]
    long = "word " * 50
    assert text_block([(long, "black")], 200, most=2).height == 2 * LINE < text_block([(long, "black")], 200).height
    assert (np.asarray(text_block([("w" * 99, "black")], 200))[:, -1] == 255).all()


def test_long_captions_make_the_image_higher():
    long = "word " * 300 + "."
    high = pairs_sheet([row(caption=long, sentences=[{"start": 0, "end": len(long)}], pairs=[row()["pairs"][0]])])
    assert high.height > pairs_sheet([row()]).height


def test_rows_are_drawn_below_each_other():
    one, three = pairs_sheet([row()]), pairs_sheet([row()] * 3)
    assert three.width == one.width
    assert three.height > 2 * one.height


def test_rows_are_required():
    with pytest.raises(ValueError, match="at least one row"):
        pairs_sheet([])


def linear(color):
    """A color as linear RGB from 0 to 1."""
    values = np.array(ImageColor.getrgb(color)) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Linear RGB to Oklab (Ottosson 2020)."""
    cones = np.array([[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]])
    mixed = np.array([[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]])
    return mixed @ np.cbrt(cones @ rgb.clip(0, 1))


# How people without one type of cones see linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHTS = {
    "all cones": np.eye(3),
    "protanopia": np.array([[0.15229, 1.05258, -0.20487], [0.11450, 0.78628, 0.09922], [-0.00388, -0.04812, 1.05200]]),
    "deuteranopia": np.array([[0.36732, 0.86065, -0.22797], [0.28009, 0.67250, 0.04741], [-0.01182, 0.04294, 0.96888]]),
    "tritanopia": np.array([[1.25553, -0.07675, -0.17878], [-0.07841, 0.93081, 0.14760], [0.00473, 0.69137, 0.30390]]),
}


@pytest.mark.parametrize("sight", SIGHTS)
def test_colors_are_legible_and_differ_with_any_color_vision(sight):
    luminance = [linear(color) @ (0.2126, 0.7152, 0.0722) for color in COLORS]
    assert min(1.05 / (value + 0.05) for value in luminance) >= 4.5  # WCAG AA, on white
    seen = [oklab(SIGHTS[sight] @ linear(color)) for color in COLORS]
    differences = [np.linalg.norm(one - other) for place, one in enumerate(seen) for other in seen[:place]]
    assert min(differences) > 0.085
