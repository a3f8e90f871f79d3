"""Loading any image as an upright 8-bit RGB PIL image, with errors that name the image."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .texts import shortened

ImageSource = Image.Image | str | os.PathLike[str] | bytes | dict[str, Any]

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
LARGEST_RATIO = 200
"""Largest ratio of the longer to the shorter side of an image."""
_SKIP = "`fastgoal pairs` and `fastgoal caption` skip such images with `on_error=skip`."
_WAY_OUT = f"Repair or remove it. {_SKIP}"


def load_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Load an image as RGB with 8 bits per channel, upright: its EXIF orientation is applied.

    Modes are converted so that the image keeps its look. 16-bit grey is scaled by 1/257 and never clipped. 32-bit and
    floating-point grey (modes `I` and `F`) is scaled from 0..1 (`F` only), 0..255, 0..65535 or 0..maximum, by its
    largest value. Transparent pixels (RGBA, LA, palette or `tRNS`) are composited on white. PIL converts all other
    modes. The current frame of an animated or multi-page file is used, the first one of a file that was just opened.
    The source is never changed, and files that this function opens are closed.

    Args:
        source: A PIL image, a path, the bytes of an encoded file, or a dict with `bytes` and/or `path`, as
            `datasets.Image(decode=False)` returns.
        name: Name of the image in errors; by default its path.

    Returns:
        A new image in mode "RGB"; `size` is its upright (width, height).

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The data is not an image, is truncated, broken or empty, has too many pixels, or one of its sides is
            more than `LARGEST_RATIO` times as long as the other.
        TypeError: `source` has another type.
    """
    if isinstance(source, Image.Image):
        with _named(str(name or getattr(source, "filename", "") or "the given PIL image")):
            again = _opened_again(source)
            return _decode(again or source, own=again is not None)
    if isinstance(source, dict):
        data, path = source.get("bytes"), source.get("path")
        if data is None and not path:
            raise ValueError(
                f"{name or 'The image'} must have `bytes` (the encoded file) or `path`, got a dict with the keys "
                f"{sorted(source)}."
            )
        return load_image(source["path"] if data is None else data, name or (str(path) if path else None))
    encoded, label = _read(source, name)
    with _named(label), Image.open(io.BytesIO(encoded)) as image:
        return _decode(image, own=True)


def image_bytes(source: ImageSource, name: str | None = None) -> bytes:
    """Return the bytes of an encoded image. The arguments and errors are those of `load_image`."""
    return _read(source, name)[0]


def _read(source: Any, name: str | None) -> tuple[bytes, str]:
    """Return the encoded image, and its name for errors."""
    name = name if name is None else shortened(name, 300)
    label = name or "an image given as bytes"
    try:
        if isinstance(source, bytes):
            data = source
        elif isinstance(source, (str, os.PathLike)):
            path = Path(os.fspath(source))
            shown_path = shortened(str(path), 300)
            label = shown_path if name in (None, str(path)) else f"{name} ({shown_path})"
            data = read_regular(path)
        else:
            raise TypeError(
                "`source` must be a PIL image, a path, bytes, or a dict with `bytes` or `path`, got "
                f"{type(source).__name__}{f' for {name}' if name else ''}."
            )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The image {label} does not exist. Check the path and, if it is relative, its folder. {_SKIP}"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"The image {label} cannot be read: {reason}. {_WAY_OUT}") from error
    if not data:
        raise ValueError(f"The image {label} is empty (0 bytes). {_WAY_OUT}")
    return data, label


def image_size(source: ImageSource, name: str | None = None) -> tuple[int, int]:
    """Return the upright (width, height) of an encoded image without decoding it, so damaged pixels are not noticed.

    The arguments and errors are those of `load_image`.
    """
    if isinstance(source, dict):
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    encoded, label = _read(source, name)
    with _named(label), Image.open(io.BytesIO(encoded)) as image:
        check_shape(image.size)
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception:  # the image is good, only its metadata is broken
            turned = False
        width, height = image.size
        return (height, width) if turned else (width, height)


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file. Raise `OSError` for a pipe or a device, which might never end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is a pipe, a socket or a device, not a regular file")
        return file.read()


class _ShapeError(ValueError):
    """Error of an image that is intact, but that no model can be given."""


def check_shape(size: tuple[int, int]) -> None:
    """Raise `ValueError` for an image without pixels, or one that is too long and narrow.

    Image processors resize the shorter side to the model's size before they crop: of 20,000 x 1 pixels they would make
    4,480,000 x 224.
    """
    if 0 in size:
        raise _ShapeError(f"it has no pixels, its size is {size}")
    if max(size) > LARGEST_RATIO * min(size):
        raise _ShapeError(
            f"it is {size[0]} x {size[1]} pixels, and one side may be at most {LARGEST_RATIO} times the other"
        )


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Turn errors of decoding into errors that name the image and say what to do."""
    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"The image {label} has too many pixels to be read safely: {error}. Shrink it, or increase "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust its source."
        ) from error
    except _ShapeError as error:
        raise ValueError(f"The image {label} cannot be used: {error}. {_WAY_OUT}") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"{label} is not an image that PIL can read. {_WAY_OUT}") from error
    except Exception as error:  # a broken file makes PIL's plug-ins raise nearly anything
        raise ValueError(
            f"The image {label} is truncated or broken: {str(error) or type(error).__name__}. {_WAY_OUT}"
        ) from error


def _opened_again(image: Image.Image) -> Image.Image | None:
    """Open the file of a PIL image again, at the same frame, if the image was not read yet; None otherwise.

    PIL continues to read at the position of the file handle, which forked processes share. This does not use the
    position.
    """
    file: Any = getattr(image, "fp", None)
    unread = getattr(image, "tile", None) and isinstance(file, io.BufferedReader) and not file.closed
    if not unread or not isinstance(file.raw, io.FileIO) or not hasattr(os, "pread"):
        return None
    try:
        again = Image.open(io.BytesIO(os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)))
        again.seek(image.tell())
    except Exception:  # the same error occurs where the image itself is read
        return None
    # `Image.draft` may have set another size or mode of a JPEG.
    return again if (again.size, again.mode) == (image.size, image.mode) else None


def _decode(image: Image.Image, own: bool) -> Image.Image:
    """Read the pixels, turn the image upright and convert it to RGB; without a copy where it is our `own`."""
    check_shape(image.size)
    image.load()
    return _to_rgb(_upright(image), own)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, if there is one that can be read."""
    try:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if is_turned else image  # without a needless copy
    except Exception:  # the image is good, only its metadata is broken
        return image


def _to_rgb(image: Image.Image, own: bool) -> Image.Image:
    """Convert an image to RGB on white, without metadata; without a copy where it is our `own`."""
    if image.mode in _SIXTEEN_BIT or image.mode in ("I", "F"):
        return _grey_to_8_bit(image).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        transparent = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, transparent)
    rgb = image if own and image.mode == "RGB" else image.convert("RGB")
    rgb.info = {}  # an EXIF orientation would be applied again later
    return rgb


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Convert grey of 16 or 32 bits, or floating point, to mode L. The conversion of PIL clips at 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    peak = float(values.max())
    white = 65535.0
    if image.mode == "F" and peak <= 1.0:
        white = 1.0
    elif image.mode in ("I", "F") and peak <= 255.0:
        white = 255.0  # an 8-bit image in a wider mode
    grey = np.clip(values * (255.0 / max(white, peak)) + 0.5, 0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)
