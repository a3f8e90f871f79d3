"""Loads any image as an upright 8-bit RGB PIL image, whatever its mode, and says clearly which one is broken."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .texts import shortened

ImageSource = Image.Image | str | os.PathLike[str] | bytes | bytearray | memoryview | dict[str, Any] | BinaryIO

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
LARGEST_RATIO = 200  # of an image's sides
_SKIP = "`fastgoal pairs` and `fastgoal caption` leave such images out with --on-error skip."
_WAY_OUT = f"Repair or remove it. {_SKIP}"


def load_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Loads one image as RGB, upright (its EXIF orientation applied), with 8 bits a channel.

    Modes are converted so that the picture keeps its look: 16-bit grey is scaled by 1/257, never clipped; 32-bit
    and floating point grey (modes `I`, `F`) goes by its largest value, as 0..1 (`F` only), 0..255, 0..65535 or 0..that
    value; transparent pixels (RGBA, LA, palette or `tRNS`) are composited on white; palettes, CMYK, YCbCr, LAB, HSV
    and 1-bit images are converted by PIL. Of an animated or multi-page file the current frame counts, which is the
    first one of a file just opened. The source is never changed, and a file that this function opened is closed.

    Args:
        source: a PIL image, a path, the bytes of an encoded file, a binary file object (read from its start), or a
            dict with `bytes` and/or `path`, as `datasets.Image(decode=False)` gives.
        name: how errors call the image; by default the path, if there is one.

    Returns:
        A new image, `mode == "RGB"`; `size` is the (width, height) of the upright picture.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if the data is no image, is cut off or broken, is empty, has too many pixels, or is more than
            `LARGEST_RATIO` times as long as it is wide (or the other way round).
        TypeError: if `source` is of another type.
    """
    if isinstance(source, Image.Image):
        with _named(str(name or getattr(source, "filename", "") or "the given PIL image")):
            again = _opened_again(source)
            return _decode(again or source, own=again is not None)
    if isinstance(source, dict):
        data, path = source.get("bytes"), source.get("path")
        if data is None and not path:
            raise ValueError(
                f"{name or 'The image'} has neither `bytes` nor `path`: got a dict with the keys {sorted(source)}. "
                "Give the encoded file under `bytes` or its location under `path`."
            )
        return load_image(source["path"] if data is None else data, name or (str(path) if path else None))
    encoded, label = _read(source, name)
    with _named(label), Image.open(io.BytesIO(encoded)) as image:
        return _decode(image, own=True)


def image_bytes(source: ImageSource, name: str | None = None) -> bytes:
    """The bytes of an encoded image as they are; the arguments and errors are those of `load_image`."""
    return _read(source, name)[0]


def _read(source: Any, name: str | None) -> tuple[bytes, str]:
    """The encoded image, and what errors call it."""
    name = name if name is None else shortened(name, 300)
    label = name or "an image given as bytes"
    try:
        if isinstance(source, (bytes, bytearray, memoryview)):
            data = bytes(source)
        elif isinstance(source, (str, os.PathLike)):
            path = Path(os.fspath(source))
            place = shortened(str(path), 300)
            label = place if name in (None, str(path)) else f"{name} ({place})"
            data = read_regular(path)
        elif hasattr(source, "read"):
            label = name or str(getattr(source, "name", "") or "an image given as a file object")
            if hasattr(source, "seekable") and source.seekable():
                source.seek(0)
            data = source.read()
        else:
            raise TypeError(
                "`source` must be a PIL image, a path, bytes, a dict with `bytes` or `path`, or a binary file object, "
                f"got {type(source).__name__}{f' for {name}' if name else ''}."
            )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The image {label} does not exist. Check the path and, if it is relative, the folder that it is relative "
            f"to. {_SKIP}"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"The image {label} cannot be read: {reason}. {_WAY_OUT}") from error
    if not isinstance(data, bytes):
        raise TypeError(f"`source` must be opened in binary mode, got text for {label}: use open(path, 'rb').")
    if not data:
        raise ValueError(f"The image {label} is empty (0 bytes). {_WAY_OUT}")
    return data, label


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file; an `OSError` where it is none: reading a pipe or a device might never end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no regular file, but a pipe, a socket or a device")
        return file.read()


class _ShapeError(ValueError):
    """Of an image that is whole, and can be shown to no model."""


def check_shape(size: tuple[int, int]) -> None:
    """Raise a `ValueError` for an image of no pixels, or so long and narrow that no model can be shown it.

    Image processors bring the shorter side to the model's size before they cut the rest off: of 20,000 x 1 pixels they
    would make 4,480,000 x 224.
    """
    if 0 in size:
        raise _ShapeError(f"it has no pixels, its size is {size}")
    if max(size) > LARGEST_RATIO * min(size):
        raise _ShapeError(
            f"it is {size[0]} x {size[1]} pixels, and one side may be at most {LARGEST_RATIO} times the other"
        )


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Says of what goes wrong in decoding which image it is and what to do."""
    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"The image {label} has too many pixels to be read safely: {error}. Shrink it, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust its source."
        ) from error
    except _ShapeError as error:
        raise ValueError(f"The image {label} cannot be used: {error}. {_WAY_OUT}") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"{label} is not an image that PIL can read. {_WAY_OUT}") from error
    except Exception as error:  # a broken file makes PIL's format plug-ins raise nearly anything
        raise ValueError(
            f"The image {label} is cut off or broken: {str(error) or type(error).__name__}. {_WAY_OUT}"
        ) from error


def _opened_again(image: Image.Image) -> Image.Image | None:
    """An image of its own for a PIL image whose plain file is not read yet, at the same frame; None for any other.

    PIL reads on from the handle's place in the file, which forked processes share with each other; this reads past it.
    """
    file: Any = getattr(image, "fp", None)
    unread = getattr(image, "tile", None) and isinstance(file, io.BufferedReader) and not file.closed
    if not unread or not isinstance(file.raw, io.FileIO) or not hasattr(os, "pread"):
        return None
    try:
        again = Image.open(io.BytesIO(os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)))
        again.seek(image.tell())
    except Exception:  # whatever is wrong with it shows where the image itself is read
        return None
    # A JPEG may have been told to be read at another size or in another mode.
    return again if (again.size, again.mode) == (image.size, image.mode) else None


def _decode(image: Image.Image, own: bool) -> Image.Image:
    """Reads the pixels, turns the image upright and converts it to RGB; a copy unless it is our `own`."""
    check_shape(image.size)
    image.load()
    return _to_rgb(_upright(image), own)


def _upright(image: Image.Image) -> Image.Image:
    """The image with its EXIF orientation applied; as it is if the EXIF data cannot be read."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image  # which would be copied for nothing
    except Exception:  # broken metadata is no reason to lose a good picture
        return image


def _to_rgb(image: Image.Image, own: bool) -> Image.Image:
    """An RGB image, a new one unless this is our `own`, without metadata, transparent pixels on white."""
    if image.mode in _SIXTEEN_BIT or image.mode in ("I", "F"):
        return _grey_to_8_bit(image).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        transparent = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, transparent)
    rgb = image if own and image.mode == "RGB" else image.convert("RGB")
    rgb.info = {}  # without an EXIF orientation that a later reader would apply again
    return rgb


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or floating point, as mode L; PIL's own conversion clips at 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    peak = float(values.max())
    white = 65535.0
    if image.mode == "F" and peak <= 1.0:
        white = 1.0
    elif image.mode in ("I", "F") and peak <= 255.0:
        white = 255.0  # an 8-bit image that was converted to a wider mode
    grey = np.clip(values * (255.0 / max(white, peak)) + 0.5, 0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)
