"""Pixels against the image processor's own, for all kinds of images, and masks against the processor's."""

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, SiglipImageProcessor

from fastgoal import FastGoalCollator, FastGoalProcessor
from fastgoal.processing.geometry import crop_box
from fastgoal.processing.images import load_image
from fastgoal.processing.pixels import DecodedImage, PixelReader, jpeg_decoder
from fastgoal.trainer.batches.rows import TrainingRow

SIZES = [(640, 480), (480, 641), (224, 224), (225, 224), (31, 500), (1, 1), (3, 2), (1, 150), (1023, 767), (2600, 2500)]
BOXES = [None, (0, 0, 1, 1), (0.4, 0.2, 1e9, 1e9), (-5, -5, 0.7, 0.9)]
PROCESSORS = {
    "clip": CLIPImageProcessor(),
    "clip of 336": CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    "siglip": SiglipImageProcessor(),
    "siglip 2": SiglipImageProcessor(size={"height": 256, "width": 256}, resample=Image.Resampling.BILINEAR),
}


def noise(width, height, mode="RGB"):
    values = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_those_of_the_processor(name, size):
    reader = PixelReader(PROCESSORS[name])
    assert reader.fast
    image = noise(*size)
    boxes = [*BOXES, (size[0] * 0.3, size[1] * 0.2, size[0] * 0.6 + 1, size[1] * 0.9 + 1)]
    found = reader.read([(image, box) for box in boxes])
    assert found.dtype == torch.uint8
    plain = [image if box is None else crop_box(image, box) for box in boxes]
    expected = reader.image_processor(plain, return_tensors="pt")["pixel_values"]
    batch = reader.normalize({"pixel_values": found, "input_ids": torch.zeros(1)})
    assert torch.equal(batch["pixel_values"], expected)
    assert torch.equal(batch["input_ids"], torch.zeros(1))


@pytest.mark.parametrize("with_torchcodec", [True, False])
@pytest.mark.parametrize("family", ["clip", "metaclip2", "siglip", "siglip2"])
def test_files_equal_the_call_of_the_processor(family, tiny_bases, tmp_path, monkeypatch, with_torchcodec):
    if not with_torchcodec:
        monkeypatch.setattr("fastgoal.processing.pixels.jpeg_decoder", lambda: None)
    elif jpeg_decoder() is None:
        pytest.skip("torchcodec is not installed for this torch")
    processor = AutoProcessor.from_pretrained(tiny_bases[family])
    reader, paths = PixelReader(processor.image_processor), []
    for number, (size, mode) in enumerate([((301, 233), "RGB"), ((61, 300), "L"), ((7, 5), "RGB"), ((1, 90), "L")]):
        paths.append(tmp_path / f"{number}.jpg")
        noise(*size, mode).save(paths[-1], quality=90)
    found = reader.normalize_pixels(reader.read([(reader.open(path), None) for path in paths]))
    images = [load_image(path) for path in paths]
    assert torch.equal(found, processor(images=images, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(
    ("name", "smaller"),
    [
        ("clip", CLIPImageProcessor(size={"shortest_edge": 160}, crop_size={"height": 160, "width": 160})),
        ("siglip", SiglipImageProcessor(size={"height": 160, "width": 160})),
        ("siglip 2", SiglipImageProcessor(size={"height": 160, "width": 160}, resample=Image.Resampling.BILINEAR)),
    ],
)
def test_a_smaller_size_is_that_of_a_processor_of_this_size(name, smaller):
    reader, image = PixelReader(PROCESSORS[name]), noise(301, 207)
    before = reader.image_processor.to_dict()
    boxes = [None, (10, 20, 200, 90), (250, 5, 300, 190), (3, 3, 9, 9)]
    small = reader.at_size(160)
    assert (small.side, small.fast) == (160, True)
    found = reader.normalize_pixels(small.read([(image, box) for box in boxes]))
    plain = [image if box is None else crop_box(image, box) for box in boxes]
    assert torch.equal(found, smaller(plain, return_tensors="pt")["pixel_values"])
    assert reader.image_processor.to_dict() == before


def test_a_smaller_size_shows_the_same_part():
    """The processor resizes to 256 and keeps 224: of 300 pixels the first 18 are cut off."""
    reader = PixelReader(CLIPImageProcessor(size={"shortest_edge": 256}))
    image = Image.new("RGB", (300, 300))
    image.paste((255, 0, 0), (0, 0, 300, 17))
    image.paste((0, 255, 0), (0, 22, 300, 30))
    for one in (reader, reader.at_size(112)):
        red, green, _ = one.read([(image, None)])[0].flatten(1).amax(dim=1).tolist()
        assert red < 60 < 200 < green
    slow = PixelReader(CLIPImageProcessor(size={"shortest_edge": 200})).at_size(112)  # padded
    assert not slow.fast
    assert slow.read([(image, (0, 0, 90, 50))]).shape == (1, 3, 112, 112)
    with pytest.raises(ValueError, match=r"`crop_size`.*`do_resize=False`"):
        PixelReader(CLIPImageProcessor(do_resize=False)).at_size(112)


def test_pixels_do_not_change_with_the_image():
    reader, image = PixelReader(CLIPImageProcessor()), noise(300, 300)
    found = reader.read([(image, None)])
    before = found.clone()
    image.paste((0, 0, 0), (0, 0, 300, 300))
    assert torch.equal(found, before)


@pytest.mark.parametrize(
    "changes",
    [
        {"resample": Image.Resampling.NEAREST},
        {"size": {"shortest_edge": 200}},  # padded to 224
        {"do_rescale": False},
        {"rescale_factor": 1 / 127},
    ],
)
def test_a_processor_with_other_steps_is_called(changes):
    reader = PixelReader(CLIPImageProcessor(**changes))
    assert not reader.fast
    image = noise(100, 300)
    found = reader.read([(image, None), (image, (10, 20, 50, 200))])
    expected = reader.image_processor([image, image.crop((10, 20, 50, 200))], return_tensors="pt")["pixel_values"]
    assert torch.equal(found, expected)
    assert found.is_floating_point()
    assert reader.normalize({"pixel_values": found})["pixel_values"] is found
    assert reader.normalize_pixels(found) is found


def test_a_box_outside_is_refused():
    with pytest.raises(ValueError, match=r"`box`.*30x20"):
        PixelReader(CLIPImageProcessor()).read([(noise(30, 20), (30, 0, 40, 10))])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_batch_equals_the_processor_row_by_row(tiny_clip, rows, mode, orientation):
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    made = []
    for number, row in enumerate(copy.deepcopy(rows[:4])):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise(80 + 7 * number, 60, mode).save(file, "TIFF" if mode in ("CMYK", "RGBA") else "PNG", exif=exif)
        made.append({**row, "image": {"bytes": file.getvalue(), "path": None}})
    batch = FastGoalCollator(processor)(made)
    raw = FastGoalCollator(processor)([TrainingRow.of(row) for row in made])
    assert raw["pixel_values"].dtype == raw["local_pixel_values"].dtype == torch.uint8
    for number, row in enumerate(made):
        image = load_image(row["image"])
        pair = max(row["pairs"], key=lambda pair: pair["score"])
        box, sentence = row["regions"][pair["region"]]["box"], row["sentences"][pair["sentence"]]
        region_mask = processor.region_mask(box, image.size)
        if not region_mask.any():
            continue
        crop = processor.image_processor([image, crop_box(image, box)], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(batch["pixel_values"][number], crop[0], rtol=0, atol=2e-6)
        torch.testing.assert_close(batch["local_pixel_values"][number], crop[1], rtol=0, atol=2e-6)
        assert torch.equal(batch["region_mask"][number], region_mask)
        mask = processor.sentence_mask(row["caption"], sentence["start"], sentence["end"])
        assert torch.equal(batch["sentence_mask"][number, : len(mask)], mask)
        assert not batch["sentence_mask"][number, len(mask) :].any()


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(noise(40, 30), exif=exif)


def png():
    file = io.BytesIO()
    noise(40, 30).save(file, "PNG")
    return file.getvalue()


@pytest.mark.skipif(jpeg_decoder() is None, reason="torchcodec is not installed for this torch")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 30, "progressive": True}, {"subsampling": 0}])
def test_a_jpeg_has_the_pixels_that_pil_reads(mode, options, tmp_path):
    reader, data = PixelReader(CLIPImageProcessor()), jpeg(noise(301, 233, mode), **options)
    (tmp_path / "a.jpg").write_bytes(data)
    plain = load_image(data)
    for source in (data, {"bytes": data, "path": "x"}, str(tmp_path / "a.jpg"), {"path": tmp_path / "a.jpg"}):
        found = reader.open(source)
        assert isinstance(found, DecodedImage)
        assert found.size == plain.size
        np.testing.assert_array_equal(found.pixels.permute(1, 2, 0).numpy(), np.asarray(plain))
    boxes = [None, (10, 20, 200, 210)]
    assert torch.equal(reader.read([(found, box) for box in boxes]), reader.read([(plain, box) for box in boxes]))


@pytest.mark.parametrize("make", [turned, png, lambda: jpeg(noise(40, 30, "CMYK")), lambda: noise(40, 30)])
def test_other_files_are_read_by_pil(make):
    source = make()
    found = PixelReader(CLIPImageProcessor()).open(source)
    assert isinstance(found, Image.Image)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(load_image(source)))


@pytest.mark.parametrize("cut", [2, 300, -2])
def test_a_broken_jpeg_is_named(cut):
    with pytest.raises(ValueError, match=r"[Aa]\.jpg.*(truncated or broken|not an image)"):
        PixelReader(CLIPImageProcessor()).open({"bytes": jpeg(noise(200, 150))[:cut], "path": None}, "a.jpg")


def test_without_torchcodec_pil_reads_all(monkeypatch):
    monkeypatch.setattr("fastgoal.processing.pixels.jpeg_decoder", lambda: None)
    assert isinstance(PixelReader(CLIPImageProcessor()).open(jpeg(noise(40, 30))), Image.Image)
