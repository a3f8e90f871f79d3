"""Images at the model's size as bytes, as fast as the image processor's own steps allow, and their normalizing.

An image processor of CLIP resizes, cuts out the center, scales and normalizes. Here the first two are made with the
same functions on the memory that PIL holds, without copies of the large picture, and the last two on whole batches,
where the trainer has them: on the device. What comes out is equal to the processor's own.
"""

import io
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow
import torch
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional

from .geometry import ImageTransform, crop_bounds
from .images import check_shape, load_image, read_regular

_FULL = 255


@dataclass(frozen=True)
class Picture:
    """A decoded RGB image: (width, height), and uint8 `(3, height, width)`."""

    size: tuple[int, int]
    pixels: torch.Tensor


class PixelReader:
    """Makes the model's `pixel_values` of images and of boxes in them.

    Args:
        image_processor: CLIP's. One whose steps are others than CLIP's, or which PIL makes, works by itself, slower.
    """

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor
        self.fast = _is_plain(image_processor)
        if self.fast:
            mean, std = (torch.tensor(getattr(image_processor, name)) for name in ("image_mean", "image_std"))
            self._mean, self._std = (_FULL * value.reshape(-1, 1, 1) for value in (mean, std))

    def open(self, source: Any, name: str | None = None) -> "Image.Image | Picture":
        """An image, upright and in RGB, as `load_image` takes and gives it, and raises.

        Plain JPEGs are decoded by torchcodec where that is installed, to the same pixels in less time.
        """
        picture = _read_jpeg(source) if self.fast else None
        return picture or load_image(source, name=name)

    def read(self, parts: "Sequence[tuple[Image.Image | Picture, Sequence[float] | None]]") -> torch.Tensor:
        """Pixels of images of `open`, or of boxes (x1, y1, x2, y2) in them.

        Returns:
            `(parts, 3, height, width)`, uint8, to be normalized; as float32, normalized already, where the processor
            works by itself.

        Raises:
            ValueError: A box has no pixel in common with its image.
        """
        bounds = [(0, 0, *image.size) if box is None else crop_bounds(image.size, box) for image, box in parts]
        if not self.fast:
            # Such a reader opens with PIL.
            cut = [image.crop(bound) for (image, _), bound in zip(parts, bounds, strict=True)]  # type: ignore[union-attr]
            return self.image_processor(cut, return_tensors="pt")["pixel_values"]
        views: dict[int, torch.Tensor] = {}
        made = []
        for (image, _), (left, top, right, bottom) in zip(parts, bounds, strict=True):
            view = views.setdefault(id(image), _view(image)) if id(image) not in views else views[id(image)]
            made.append(self._shrink(view[:, top:bottom, left:right]))
        return torch.stack(made)

    def normalize(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with its uint8 pixels scaled and normalized, on the device where they are."""
        return {name: self._normal(value) if _is_bytes(value) else value for name, value in batch.items()}

    def _normal(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = (value.to(pixels.device) for value in (self._mean, self._std))
        return pixels.float().sub_(mean).div_(std)

    def _shrink(self, picture: torch.Tensor) -> torch.Tensor:
        """Resize and center crop, as the processor does."""
        height, width = picture.shape[1:]
        to = ImageTransform.of(self.image_processor, (width, height))
        size = [round(height * to.scale[1]), round(width * to.scale[0])]
        resized = functional.resize(picture, size, interpolation=functional.InterpolationMode.BICUBIC, antialias=True)
        left, top = -to.offset[0], -to.offset[1]
        return resized[:3, top : top + to.size[1], left : left + to.size[0]]


def _is_plain(image_processor: Any) -> bool:
    """Whether these are CLIP's steps with bicubic resizing, made by torchvision, and none of them pads."""
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    if not all(getattr(image_processor, step, False) for step in steps) or getattr(image_processor, "do_pad", False):
        return False
    size, crop = dict(image_processor.size), dict(image_processor.crop_size)
    edge = size.get("shortest_edge")
    return bool(
        getattr(image_processor, "backend", "") == "torchvision"
        and int(image_processor.resample) == Image.Resampling.BICUBIC
        and math.isclose(image_processor.rescale_factor, 1 / _FULL)
        and edge
        and not size.get("longest_edge")
        and max(crop["height"], crop["width"]) <= edge
    )


def _is_bytes(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4 and value.dtype == torch.uint8


@cache
def jpeg_decoder() -> Callable[[bytes], torch.Tensor] | None:
    """That of torchcodec; None where it is not installed, or not for this torch."""
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, RuntimeError, OSError):
        return None
    decoder: Any = decode_jpeg
    return decoder


def _read_jpeg(source: Any) -> Picture | None:
    """A JPEG that needs nothing but decoding; None for all else, broken ones too, which `load_image` has words for."""
    decode = jpeg_decoder()
    if decode is None:
        return None
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    try:
        data = read_regular(source) if isinstance(source, str | os.PathLike) else source
        if not isinstance(data, bytes) or not data.startswith(b"\xff\xd8"):
            return None
        with Image.open(io.BytesIO(data)) as header:
            check_shape(header.size)
            turned = header.getexif().get(ExifTags.Base.Orientation, 1) != 1
            if header.format != "JPEG" or header.mode not in ("RGB", "L") or turned:
                return None
            return Picture(header.size, decode(data))
    except Exception:  # what is wrong shows when PIL reads it
        return None


def _view(image: Image.Image | Picture) -> torch.Tensor:
    """An RGB image as `(3 or 4, height, width)`, uint8: the very memory of PIL, four bytes a pixel, where it can be
    had in one piece."""
    if isinstance(image, Picture):
        return image.pixels
    try:
        pixels = pyarrow.array(image).flatten().to_numpy(zero_copy_only=True)
    except (ValueError, TypeError, pyarrow.ArrowException):  # a large image, or a PIL that does not offer it
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels).view(image.height, image.width, -1).permute(2, 0, 1)
