"""`build_pairs` with `store_size`: smaller images in the dataset, the same pairs, boxes that go with the images."""

from dataclasses import replace

import pytest
from datasets import load_dataset
from PIL import Image

from .color_world import SETTINGS, make_folder, make_processor, rows_of, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight images of 60x30 pixels and a little wider."""
    return make_folder(tmp_path_factory.mktemp("data") / "data")


def rows(output, cache):
    return list(load_dataset(str(output), split="train", cache_dir=str(cache)))


def test_large_images_are_stored_small_with_boxes_to_match(folder, tmp_path):
    run(folder, tmp_path / "whole")
    run(folder, tmp_path / "small", settings=replace(SETTINGS, store_size=20))
    processor = make_processor()
    pairs = zip(rows(tmp_path / "whole", tmp_path), rows(tmp_path / "small", tmp_path), strict=True)
    for number, (whole, small) in enumerate(pairs):
        assert small["image"].size == (small["width"], small["height"]) == (round((60 + number) * 20 / 30), 20)
        assert small["image"].format == "JPEG"
        for name in ("file_name", "caption", "sentences", "pairs"):
            assert small[name] == whole[name]
        for of_small, of_whole in zip(small["regions"], whole["regions"], strict=True):
            assert of_small["label"] == of_whole["label"]
            if number % 3 == 0:  # 2/3 of the width is a whole number: what the model sees of a region is what it was
                masks = [
                    processor.region_mask(region["box"], row["image"].size).tolist()
                    for region, row in ((of_small, small), (of_whole, whole))
                ]
                assert masks[0] == masks[1]
        box = small["regions"][0]["box"]
        middle = small["image"].getpixel((int(box[2] / 2), int(box[3] / 2)))
        assert middle == pytest.approx(whole["image"].getpixel((5, 15)), abs=6)


def test_an_image_that_is_small_already_keeps_its_file(folder, tmp_path):
    run(folder, tmp_path / "whole")
    run(folder, tmp_path / "small", settings=replace(SETTINGS, store_size=30))
    assert rows_of(tmp_path / "small") == rows_of(tmp_path / "whole")


def test_a_rotated_photograph_is_stored_upright(tmp_path):
    folder = make_folder(tmp_path / "data", 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    with Image.open(folder / "0.png") as image:
        image.load()
    image.save(folder / "0.png", exif=exif)
    run(folder, tmp_path / "small", settings=replace(SETTINGS, store_size=20))
    [row] = rows(tmp_path / "small", tmp_path)
    assert row["image"].size == (row["width"], row["height"]) == (20, 40)
    assert not row["image"].getexif()


def test_folders_of_two_sizes_are_not_mixed(folder, tmp_path):
    run(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="store_size"):
        run(folder, tmp_path / "out", settings=replace(SETTINGS, store_size=20))
    with pytest.raises(ValueError, match="`store_size` must be a positive integer, got 0"):
        replace(SETTINGS, store_size=0)
