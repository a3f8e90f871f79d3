"""Boxes against what the image processor really shows: white boxes on black, random sizes, slow second opinions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessor

from fastgoal.processing.geometry import ImageTransform, crop_box, patch_mask

PATCH = 8


def processor(**changes) -> CLIPImageProcessor:
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return CLIPImageProcessor(**{**settings, **changes})


PROCESSORS = {
    "clip": processor(),
    "squashed": processor(size={"height": 32, "width": 32}, do_center_crop=False),
    "resized, then cropped": processor(size={"shortest_edge": 48}),
    "padded": processor(size={"shortest_edge": 20}),
    "only cropped": processor(do_resize=False),
    "wide": processor(size={"height": 32, "width": 64}, do_center_crop=False),
}

sizes = st.tuples(st.integers(17, 200), st.integers(17, 200))


@st.composite
def boxes(draw, size=None):
    width, height = size or draw(sizes)
    x1, x2 = sorted(draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    return (width, height), (x1, y1, x2, y2)


def brightness(image_processor, size, box) -> torch.Tensor:
    """Mean of each patch, `(rows, columns)`, of a white box on black after the real processor."""
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    pixels = image_processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0, 0]
    return pixels.unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH).mean(dim=(2, 3))


@pytest.mark.parametrize("name", PROCESSORS)
@given(case=boxes())
def test_white_box_shows_in_its_patches_only(name, case):
    size, box = case
    image_processor = PROCESSORS[name]
    light = brightness(image_processor, size, box)
    mask = patch_mask(box, ImageTransform.of(image_processor, size), PATCH).reshape(light.shape)
    # Interpolation spreads light by a pixel or two, so a patch outside the box may get some, never much.
    assert light[~mask].max().item() < 0.3 if (~mask).any() else True
    # A patch whose neighbors are all in the mask lies inside the box, so it is white.
    surrounded = torch.nn.functional.avg_pool2d(mask.float()[None], 3, stride=1, padding=1)[0] == 1
    assert light[surrounded].min().item() > 0.7 if surrounded.any() else True


@pytest.mark.parametrize("name", PROCESSORS)
@given(case=boxes())
def test_mask_is_the_patches_that_overlap_the_mapped_box(name, case):
    size, box = case
    transform = ImageTransform.of(PROCESSORS[name], size)
    mask = patch_mask(box, transform, PATCH)
    columns, rows = transform.size[0] // PATCH, transform.size[1] // PATCH
    corners = [box[i] * transform.scale[i % 2] + transform.offset[i % 2] for i in range(4)]
    x1, y1 = (max(corners[i], transform.shown[i]) for i in (0, 1))
    x2, y2 = (min(corners[i], transform.shown[i]) for i in (2, 3))
    for index in range(columns * rows):
        row, column = divmod(index, columns)
        width = min(x2, (column + 1) * PATCH) - max(x1, column * PATCH)
        height = min(y2, (row + 1) * PATCH) - max(y1, row * PATCH)
        if min(width, height) > 1e-3:
            assert mask[index]
        elif min(width, height) < -1e-3:
            assert not mask[index]


@pytest.mark.parametrize("patch_size", [4, 8, 14, 16, 32])
@given(size=sizes)
def test_the_whole_image_covers_every_patch(patch_size, size):
    image_processor = processor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    mask = patch_mask((0, 0, *size), ImageTransform.of(image_processor, size), patch_size)
    assert mask.shape == ((224 // patch_size) ** 2,)
    assert mask.all()


def test_known_patches():
    # 64 x 32 pixels, not resized: the crop takes columns 16 to 48.
    transform = ImageTransform.of(PROCESSORS["clip"], (64, 32))
    assert transform.offset == (-16, 0)
    grid = patch_mask((16, 0, 24, 8), transform, PATCH).reshape(4, 4)
    assert grid.nonzero().tolist() == [[0, 0]]
    grid = patch_mask((20, 7, 25, 9), transform, PATCH).reshape(4, 4)
    assert grid.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    grid = patch_mask((30.2, 30.1, 30.4, 30.3), transform, PATCH).reshape(4, 4)
    assert grid.nonzero().tolist() == [[3, 1]]


@pytest.mark.parametrize("box", [(0, 0, 16, 32), (48, 0, 64, 32), (2, 3, 9, 20)])
def test_a_box_outside_the_crop_has_no_patches(box):
    assert not patch_mask(box, ImageTransform.of(PROCESSORS["clip"], (64, 32)), PATCH).any()


def test_a_squashed_box_is_where_a_square_crop_would_not_show_it():
    box = (0, 0, 16, 32)
    assert patch_mask(box, ImageTransform.of(PROCESSORS["squashed"], (64, 32)), PATCH).sum() == 4
    assert not patch_mask(box, ImageTransform.of(PROCESSORS["clip"], (64, 32)), PATCH).any()


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (33, 200), (32, 32), (200, 17)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_input_size_is_the_processors(name, size):
    image_processor = PROCESSORS[name]
    pixels = image_processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"]
    transform = ImageTransform.of(image_processor, size)
    assert (pixels.shape[3], pixels.shape[2]) == transform.size


def test_unknown_resize_is_an_error():
    image_processor = processor(size={"shortest_edge": 32, "longest_edge": 64})
    with pytest.raises(ValueError, match="longest_edge"):
        ImageTransform.of(image_processor, (50, 50))


@pytest.mark.parametrize("size", [(0, 10), (10, -1)])
def test_empty_image_is_an_error(size):
    with pytest.raises(ValueError, match="image_size"):
        ImageTransform.of(PROCESSORS["clip"], size)


@given(case=boxes())
def test_crop_shows_the_box(case):
    size, (x1, y1, x2, y2) = case
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill="white")
    crop = crop_box(image, (x1, y1, x2, y2))
    assert crop.size == (x2 - x1, y2 - y1)
    assert crop.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(
    "box", [(3, 4, 9, 8), (2.9, 4.2, 8.1, 7.5), (-2.5, -1, 4.01, 3), (15, 6.5, 30, 30), (7, 7, 8, 8)]
)
def test_crop_has_the_very_pixels_of_the_box(box):
    """Every pixel holds its position, so a crop that starts a pixel too early or late differs."""
    width, height = 20, 10
    image = Image.new("RGB", (width, height))
    image.putdata([(x, y, 0) for y in range(height) for x in range(width)])
    columns = [x for x in range(width) if x + 1 > box[0] and x < box[2]]
    rows = [y for y in range(height) if y + 1 > box[1] and y < box[3]]
    crop = crop_box(image, box)
    assert crop.size == (len(columns), len(rows))
    assert [crop.getpixel((i, j)) for j in range(crop.height) for i in range(crop.width)] == [
        (x, y, 0) for y in rows for x in columns
    ]


def test_crop_is_widened_to_whole_pixels_and_clipped():
    image = Image.new("RGB", (20, 10))
    assert crop_box(image, (1.5, 2.5, 3.2, 4.1)).size == (math.ceil(3.2) - 1, math.ceil(4.1) - 2)
    assert crop_box(image, (-5, -5, 50, 50)).size == (20, 10)
    with pytest.raises(ValueError, match=r"`box`.*20x10.*\(20, 0, 30, 10\)"):
        crop_box(image, (20, 0, 30, 10))
