"""Loading images: every mode with known pixels, every orientation, every kind of source, and broken files by name."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fastgoal import FastGoalCollator, FastGoalProcessor
from fastgoal.processing.images import load_image

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def _encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _pixels(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    return [tuple(map(int, pixel)) for pixel in np.asarray(image).reshape(-1, 3)]


def _grey(*values: int) -> list[tuple[int, int, int]]:
    return [(v, v, v) for v in values]


SIXTEEN = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)  # 257 * (0, 1, 128, 255)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_files_are_scaled_not_clipped(file_format: str) -> None:
    assert _pixels(load_image(_encoded(Image.fromarray(SIXTEEN), file_format))) == _grey(0, 1, 128, 255)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (SIXTEEN, (0, 1, 128, 255)),  # I;16
        (SIXTEEN.astype(np.int32), (0, 1, 128, 255)),  # I with 16-bit values
        (np.array([[0, 7, 255]], dtype=np.int32), (0, 7, 255)),  # I with 8-bit values
        (np.array([[-5, 0, 2**20, 2**21]], dtype=np.int32), (0, 0, 128, 255)),  # I beyond 16 bits
        (np.array([[0.0, 0.2, 1.0, np.nan]], dtype=np.float32), (0, 51, 255, 0)),  # F, 0..1
        (np.array([[0.0, 51.0, 254.6]], dtype=np.float32), (0, 51, 255)),  # F, 0..255
        (np.array([[0.0, 257.0, 65535.0]], dtype=np.float32), (0, 1, 255)),  # F, 0..65535
    ],
)
def test_wide_grey_modes(array: np.ndarray, expected: tuple[int, ...]) -> None:
    assert _pixels(load_image(Image.fromarray(array))) == _grey(*expected)


def test_16_bit_big_endian() -> None:
    image = Image.frombytes("I;16B", (4, 1), SIXTEEN.astype(">u2").tobytes())
    assert _pixels(load_image(image)) == _grey(0, 1, 128, 255)


def test_transparent_value_of_16_bit_grey_becomes_white() -> None:
    data = _encoded(Image.fromarray(SIXTEEN), transparency=257)
    assert _pixels(load_image(data)) == _grey(0, 255, 128, 255)


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("L", [0, 128, 255], _grey(0, 128, 255)),
        ("1", [0, 255, 255], _grey(0, 255, 255)),
        ("RGB", [RED, WHITE, (1, 2, 3)], [RED, WHITE, (1, 2, 3)]),
        ("RGBA", [(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)], [RED, WHITE, (204, 204, 204)]),
        ("LA", [(0, 255), (0, 0), (0, 51)], _grey(0, 255, 204)),
        ("CMYK", [(0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)], [WHITE, RED, BLACK]),
        ("YCbCr", [(0, 128, 128), (255, 128, 128), (128, 128, 128)], _grey(0, 255, 128)),
        ("HSV", [(0, 255, 255), (0, 0, 255), (0, 0, 0)], [RED, WHITE, BLACK]),
        ("RGBX", [(255, 0, 0, 0), (1, 2, 3, 0), (0, 0, 0, 0)], [RED, (1, 2, 3), BLACK]),
        ("RGBa", [(255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)], [RED, WHITE, (204, 204, 204)]),
        ("La", [(0, 255), (0, 0), (0, 51)], _grey(0, 255, 204)),
    ],
)
def test_modes_with_known_pixels(mode: str, values: list[Any], expected: list[tuple[int, ...]]) -> None:
    image = Image.new(mode, (3, 1))
    image.putdata(values)
    before = image.tobytes()
    assert _pixels(load_image(image)) == expected
    assert (image.mode, image.tobytes()) == (mode, before)


def test_palette_without_and_with_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    image.putdata([0, 1, 2])
    assert _pixels(load_image(_encoded(image))) == [RED, (0, 0, 255), (0, 255, 0)]
    assert _pixels(load_image(_encoded(image, transparency=1))) == [RED, WHITE, (0, 255, 0)]
    assert _pixels(load_image(_encoded(image, transparency=bytes([255, 0, 51])))) == [RED, WHITE, (204, 255, 204)]
    assert _pixels(load_image(_encoded(image, "GIF", transparency=1))) == [RED, WHITE, (0, 255, 0)]


def test_transparent_color_of_rgb_and_grey_files() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (0, 0, 255))
    assert _pixels(load_image(_encoded(image, transparency=(0, 0, 255)))) == [RED, WHITE]
    grey = Image.new("L", (2, 1), 7)
    grey.putpixel((1, 0), 9)
    assert _pixels(load_image(_encoded(grey, transparency=9))) == _grey(7, 255)


def test_cmyk_jpeg() -> None:
    image = load_image(_encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 4


# The corner that holds the marker as the file stores it (top left), once the image is upright: (right, bottom).
UPRIGHT_CORNER = {
    1: (False, False),
    2: (True, False),
    3: (True, True),
    4: (False, True),
    5: (False, False),
    6: (True, False),
    7: (True, True),
    8: (False, True),
}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, file_format: str) -> None:
    stored = Image.new("RGB", (64, 32))
    stored.paste(RED, (0, 0, 16, 8))  # wide marker in the top left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(_encoded(stored, file_format, exif=exif))
    assert image.size == ((64, 32) if orientation <= 4 else (32, 64))
    right, bottom = UPRIGHT_CORNER[orientation]
    x, y = (image.width - 1 if right else 0), (image.height - 1 if bottom else 0)
    corners = {(i, j) for i in (0, image.width - 1) for j in (0, image.height - 1)}
    red = {corner for corner in corners if image.getpixel(corner)[0] > 128}  # type: ignore[index]
    assert red == {(x, y)}
    # the marker is wide in upright images of orientation 1-4, tall in the others
    along_x = image.getpixel((abs(x - 12), y))[0] > 128  # type: ignore[index]
    along_y = image.getpixel((x, abs(y - 12)))[0] > 128  # type: ignore[index]
    assert (along_x, along_y) == ((True, False) if orientation <= 4 else (False, True))
    # loading the result once more must not turn it again
    assert load_image(_encoded(image)).size == image.size


def test_sources(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    path = tmp_path / "a.png"
    path.write_bytes(_encoded(image))
    sources = [image, path, str(path), path.read_bytes(), Image.open(path)]
    sources += [{"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}]
    sources += [{"bytes": path.read_bytes(), "path": "elsewhere.jpg"}]
    for source in sources:
        assert _pixels(load_image(source)) == [(1, 2, 3)] * 6


def test_result_is_independent_of_a_given_image() -> None:
    image = Image.new("RGB", (2, 2))
    loaded = load_image(image)
    loaded.putpixel((0, 0), RED)
    assert image.getpixel((0, 0)) == BLACK


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"row 3 \(.*missing\.jpg\) does not exist"):
        load_image(tmp_path / "missing.jpg", name="row 3")
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg does not exist.*`on_error=skip`"):
        load_image({"bytes": None, "path": str(tmp_path / "missing.jpg")})


def _noise_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return _encoded(Image.fromarray(noise), "JPEG")


BROKEN = {
    "truncated.jpg": (_noise_jpeg()[:-900], "truncated or broken"),
    "header_only.png": (_encoded(Image.new("RGB", (9, 9)))[:40], "broken|not an image"),
    "text.jpg": (b"this is no picture\n" * 9, "not an image"),
    "zero.jpg": (b"", r"empty \(0 bytes\)"),
    "cut.gif": (_encoded(Image.new("P", (50, 50)), "GIF")[:30], "broken|not an image"),
}


@pytest.mark.parametrize("file_name", BROKEN)
def test_broken_files_are_named(tmp_path: Path, file_name: str) -> None:
    data, message = BROKEN[file_name]
    path = tmp_path / file_name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_image(path)
    assert str(path) in str(error.value)
    assert "on_error=skip" in str(error.value)
    with pytest.raises(ValueError, match=message) as error:
        load_image({"bytes": data, "path": None}, name="row 7")
    assert "row 7" in str(error.value)


def test_an_error_without_a_message_is_named_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise EOFError

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(ValueError, match=r"row 2 is truncated or broken: EOFError\. "):
        load_image(Image.new("RGB", (2, 2)), name="row 2")


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_image(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="cannot be read"):
        load_image(tmp_path / "a.txt" / "b.jpg")


def test_empty_dicts_and_other_types() -> None:
    with pytest.raises(ValueError, match="row 2 must have `bytes`"):
        load_image({"bytes": None, "path": None}, name="row 2")
    with pytest.raises(TypeError, match="got int for row 2"):
        load_image(5, name="row 2")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got BytesIO"):
        load_image(io.BytesIO(b"a file"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no pixels"):
        load_image(Image.new("RGB", (0, 5)))


def test_decompression_bomb() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"row 4 has too many pixels.*MAX_IMAGE_PIXELS"):
        load_image(data, name="row 4")


def test_forked_workers_read_images_that_were_only_opened(tiny_clip: Path, tmp_path: Path) -> None:
    """Workers share the handles of files that the parent opened, and with them the place where to read on."""
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    collator = FastGoalCollator(processor, local_pairs=False)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(32):
        path = tmp_path / f"{number}.{('jpg', 'png', 'tiff', 'gif')[number % 4]}"
        Image.fromarray(rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
        # Half of them by name, half from a file object.
        image = Image.open(path) if number % 8 < 4 else Image.open(path.open("rb"))
        rows.append({"image": image, "caption": f"Number {number}.", "file_name": path.name})
    expected = [collator([{**row, "image": tmp_path / row["file_name"]}])["pixel_values"] for row in rows]  # type: ignore[list-item, operator]
    loader = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=4,
        num_workers=4,
        collate_fn=collator,
        multiprocessing_context="fork",
    )
    for _ in range(4):
        got = torch.cat([batch["pixel_values"] for batch in loader])
        assert torch.equal(got, torch.cat(expected))
    assert all(row["image"].tile for row in rows)  # type: ignore[attr-defined]


def test_an_image_that_was_only_opened_stays_so(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 2), RED).save(path)
    image = Image.open(path)
    image.fp.seek(7)  # type: ignore[union-attr]
    assert _pixels(load_image(image)) == [RED] * 8
    assert (image.tile != [], image.fp.tell()) == (True, 7)  # type: ignore[union-attr]
    # Of a file that was deleted or replaced meanwhile, what was opened counts.
    path.unlink()
    assert _pixels(load_image(image)) == [RED] * 8
    Image.new("RGB", (4, 2), WHITE).save(path)
    assert _pixels(load_image(image)) == [RED] * 8
    image.load()
    assert _pixels(load_image(image)) == [RED] * 8


@pytest.mark.parametrize("file_format", ["GIF", "TIFF"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_the_current_frame_of_an_opened_file_counts(tmp_path: Path, file_format: str, in_memory: bool) -> None:
    path = tmp_path / "frames"
    frames = [Image.new("RGB", (3, 3), color) for color in (RED, WHITE, (0, 0, 255))]
    frames[0].save(path, file_format, save_all=True, append_images=frames[1:])
    image = Image.open(io.BytesIO(path.read_bytes()) if in_memory else path)
    for frame, color in ((2, (0, 0, 255)), (0, RED), (1, WHITE)):
        image.seek(frame)
        assert _pixels(load_image(image)) == [color] * 9
        assert image.tell() == frame
    assert _pixels(load_image(image)) == [WHITE] * 9


def test_a_jpeg_with_a_draft_size_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(_noise_jpeg())
    image = Image.open(path)
    image.draft("RGB", (16, 16))
    assert load_image(image).size == image.size == (16, 16)


def test_an_opened_file_that_is_truncated_is_named(tmp_path: Path) -> None:
    path = tmp_path / "torn.jpg"
    path.write_bytes(_noise_jpeg()[:-900])
    with pytest.raises(ValueError, match=r"torn\.jpg is truncated or broken"):
        load_image(Image.open(path))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 65_000), (2_001, 10)])
def test_images_that_are_too_long_and_narrow(tmp_path, size):
    path = tmp_path / "long.png"
    Image.new("1", size).save(path)
    for source in (path, path.read_bytes(), Image.open(path), {"bytes": path.read_bytes(), "path": "long.png"}):
        with pytest.raises(
            ValueError, match=rf"cannot be used: it is {size[0]} x {size[1]} pixels, and one side may be"
        ):
            load_image(source)
    Image.new("RGB", (2_000, 10)).save(path)
    assert load_image(path).size == (2_000, 10)
