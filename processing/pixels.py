"""Turn image files into model input: decode, cut out boxes, resize, crop, and normalize on the model's device.

This is the only way from an image to `pixel_values`, and its results equal those of `processor(images=...)`. It is
faster than calling the image processor: resizing and cropping read PIL's own memory without copying the full image,
and normalization runs on whole batches on the device.
"""

import copy
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

_WHITE = 255
_INTERPOLATIONS = {
    Image.Resampling.BILINEAR: functional.InterpolationMode.BILINEAR,
    Image.Resampling.BICUBIC: functional.InterpolationMode.BICUBIC,
}


@dataclass(frozen=True)
class DecodedImage:
    """An RGB image that PIL did not decode: its (width, height), and uint8 `pixels` `(3, height, width)`."""

    size: tuple[int, int]
    pixels: torch.Tensor


OpenImage = Image.Image | DecodedImage


class PixelReader:
    """Compute the `pixel_values` of images and of boxes in images.

        reader = PixelReader(processor.image_processor)
        image = reader.open("dog.jpg")
        pixels = reader.normalize_pixels(reader.read([(image, None), (image, (10, 20, 200, 180))]))

    Args:
        image_processor: The model's image processor. The fast path covers the steps of CLIP's and SigLIP's with the
            torchvision backend. Any other processor is called as is, which is slower.
    """

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor
        self.fast = _has_fast_steps(image_processor)
        if self.fast:
            self._interpolation = _INTERPOLATIONS[Image.Resampling(image_processor.resample)]
            # Bytes are normalized directly, as the processor does when it fuses rescaling and normalization.
            mean, std = (torch.tensor(getattr(image_processor, name)) for name in ("image_mean", "image_std"))
            self._mean, self._std = (_WHITE * value.reshape(-1, 1, 1) for value in (mean, std))

    def open(self, source: Any, name: str | None = None) -> OpenImage:
        """Open an image as upright RGB. The arguments and errors are those of `load_image`.

        torchcodec, where installed, decodes plain JPEGs to the same pixels in less time.
        """
        return (_decode_jpeg(source) if self.fast else None) or load_image(source, name=name)

    @property
    def side(self) -> int:
        """Width of what `read` returns, in pixels."""
        return ImageTransform.of(self.image_processor, (1, 1)).size[0]

    def at_size(self, side: int) -> "PixelReader":
        """Return a reader that shows the same parts of images at `side` x `side` pixels.

        Its image processor is a copy with `size` and `crop_size` scaled.

        Raises:
            ValueError: The image processor does not resize.
        """
        processor = copy.deepcopy(self.image_processor)
        if not processor.do_resize:
            raise ValueError("`crop_size` needs an image processor that resizes, got one with `do_resize=False`.")
        scale = side / self.side
        for name in ("size", "crop_size"):
            sizes = getattr(processor, name, None)
            if sizes:
                scaled = {edge: round(pixels * scale) for edge, pixels in dict(sizes).items() if pixels}
                setattr(processor, name, type(sizes)(**scaled))
        return PixelReader(processor)

    def read(self, parts: Sequence[tuple[OpenImage, Sequence[float] | None]]) -> torch.Tensor:
        """Resize and crop images, or boxes in them, to the model's input size.

        Args:
            parts: Pairs of an image from `open` and a box (x1, y1, x2, y2) in its pixels, or None for all of it.

        Returns:
            `(parts, 3, height, width)`: on the fast path uint8, to be normalized; otherwise normalized float32.

        Raises:
            ValueError: A box has no pixel in common with its image.
        """
        bounds = [(0, 0, *image.size) if box is None else crop_bounds(image.size, box) for image, box in parts]
        if not self.fast:  # then `open` returns PIL images only
            cut = [image.crop(bound) for (image, _), bound in zip(parts, bounds, strict=True)]  # type: ignore[union-attr]
            return self.image_processor(cut, return_tensors="pt")["pixel_values"]
        views = {number: _view(image) for number, image in {id(image): image for image, _ in parts}.items()}
        return torch.stack(
            [
                self._resize(views[id(image)][:, top:bottom, left:right])
                for (image, _), (left, top, right, bottom) in zip(parts, bounds, strict=True)
            ]
        )

    def normalize(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch with all its uint8 images rescaled and normalized, on the device that they are on."""
        return {
            name: self.normalize_pixels(value) if _is_image_batch(value) else value for name, value in batch.items()
        }

    def normalize_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Rescale and normalize the uint8 pixels of `read` to float32; return float pixels unchanged."""
        if pixels.dtype != torch.uint8:
            return pixels
        mean, std = (value.to(pixels.device) for value in (self._mean, self._std))
        return pixels.float().sub_(mean).div_(std)

    def _resize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Resize and center crop `(channels, height, width)` as the image processor does."""
        height, width = pixels.shape[1:]
        transform = ImageTransform.of(self.image_processor, (width, height))
        size = [round(height * transform.scale[1]), round(width * transform.scale[0])]
        resized = functional.resize(pixels, size, interpolation=self._interpolation, antialias=True)
        left, top = -transform.offset[0], -transform.offset[1]
        return resized[:3, top : top + transform.size[1], left : left + transform.size[0]]


def _has_fast_steps(image_processor: Any) -> bool:
    """Return whether a processor resizes with torchvision, crops without padding, rescales to 0..1 and normalizes."""
    steps = ("do_resize", "do_rescale", "do_normalize")
    if not all(getattr(image_processor, step, False) for step in steps) or getattr(image_processor, "do_pad", False):
        return False
    size = dict(image_processor.size)
    height, width = ((size.get(name) or size.get("shortest_edge")) for name in ("height", "width"))
    crops = bool(getattr(image_processor, "do_center_crop", False))
    crop = dict(image_processor.crop_size) if crops else {"height": height, "width": width}
    return bool(
        getattr(image_processor, "backend", "") == "torchvision"
        and int(image_processor.resample) in _INTERPOLATIONS
        and math.isclose(image_processor.rescale_factor, 1 / _WHITE)
        and height
        and width
        and not size.get("longest_edge")
        # Resized to the shorter edge alone, images keep their aspect ratios and need the crop to be of one size.
        and (crops or not size.get("shortest_edge"))
        and crop["height"] <= height
        and crop["width"] <= width
    )


def _is_image_batch(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4 and value.dtype == torch.uint8


@cache
def jpeg_decoder() -> Callable[[bytes], torch.Tensor] | None:
    """Return torchcodec's JPEG decoder, or None where it is not installed or does not fit this torch."""
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, RuntimeError, OSError):
        return None
    decoder: Any = decode_jpeg
    return decoder


def _decode_jpeg(source: Any) -> DecodedImage | None:
    """Decode a JPEG that needs no rotation or color conversion.

    Returns None for everything else and for broken files: `load_image` reads or reports those.
    """
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
            is_turned = header.getexif().get(ExifTags.Base.Orientation, 1) != 1
            if header.format != "JPEG" or header.mode not in ("RGB", "L") or is_turned:
                return None
            return DecodedImage(header.size, decode(data))
    except Exception:  # PIL reports what is wrong
        return None


def _view(image: OpenImage) -> torch.Tensor:
    """Return an RGB image as uint8 `(3 or 4, height, width)`, sharing PIL's memory (4 bytes a pixel) if possible."""
    if isinstance(image, DecodedImage):
        return image.pixels
    try:
        pixels = pyarrow.array(image).flatten().to_numpy(zero_copy_only=True)
    except (ValueError, TypeError, pyarrow.ArrowException):  # several memory blocks, or a PIL without this interface
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels).view(image.height, image.width, -1).permute(2, 0, 1)
