"""Map boxes of the original image to the patches of the model's input.

An image processor resizes and crops an image before the model cuts it into patches. Boxes go through the same steps
here, so a region and its patches always show the same part of the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

Box = tuple[float, float, float, float]

# A box edge closer than this to a patch border, in input pixels, lies on the border: the difference is rounding.
_EPSILON = 1e-4


@dataclass(frozen=True)
class ImageTransform:
    """The map of points by an image processor's resize and center crop: `x * scale + offset` on each axis.

    Attributes:
        scale: (x, y), input pixels per original pixel.
        offset: (x, y) in input pixels; negative where the crop cuts, positive where it pads.
        size: (width, height) of the model's input in pixels.
        shown: (x1, y1, x2, y2), the part of the input that shows the image and not padding.
    """

    scale: tuple[float, float]
    offset: tuple[int, int]
    size: tuple[int, int]
    shown: Box

    @classmethod
    def of(cls, image_processor: Any, image_size: tuple[int, int]) -> "ImageTransform":
        """Return the transform that `image_processor` applies to an image of `image_size` = (width, height).

        Raises:
            ValueError: `image_size` is not positive, or the processor resizes in another way than CLIP's or SigLIP's.
        """
        width, height = check_size(image_size)
        new_width, new_height = width, height
        if image_processor.do_resize:
            new_width, new_height = _resized(dict(image_processor.size), width, height)
        left, top, out_width, out_height = 0, 0, new_width, new_height
        if image_processor.do_center_crop:
            crop = dict(image_processor.crop_size)
            out_width, out_height = int(crop["width"]), int(crop["height"])
            # Negative where the image is smaller and is padded on both sides; rounded towards 0.
            left, top = int((new_width - out_width) / 2), int((new_height - out_height) / 2)
        shown = (
            float(max(0, -left)),
            float(max(0, -top)),
            float(min(out_width, new_width - left)),
            float(min(out_height, new_height - top)),
        )
        return cls((new_width / width, new_height / height), (-left, -top), (out_width, out_height), shown)

    def box(self, box: Sequence[float]) -> Box | None:
        """Map a box (x1, y1, x2, y2) onto the input and clip it; None if it lies outside."""
        x1, y1, x2, y2 = (float(value) * self.scale[axis % 2] + self.offset[axis % 2] for axis, value in enumerate(box))
        x1, y1 = max(x1, self.shown[0]), max(y1, self.shown[1])
        x2, y2 = min(x2, self.shown[2]), min(y2, self.shown[3])
        if x2 - x1 <= _EPSILON or y2 - y1 <= _EPSILON:
            return None
        return x1, y1, x2, y2


def patch_mask(box: Sequence[float], transform: ImageTransform, patch_size: int) -> torch.Tensor:
    """Return which patches a box touches: floor of its top-left corner, ceil of its bottom-right one, in patch units.

    Args:
        box: (x1, y1, x2, y2) in pixels of the original image.
        transform: The transform of that image to the model's input.
        patch_size: Side of a patch in input pixels.

    Returns:
        `(patches,)` bool, row-major like the model's patch tokens. All False if the box lies outside the crop.
    """
    mask = torch.zeros(transform.size[1] // patch_size, transform.size[0] // patch_size, dtype=torch.bool)
    span = patch_span(box, transform, patch_size)
    if span is not None:
        left, top, right, bottom = span
        mask[top:bottom, left:right] = True
    return mask.flatten()


def patch_span(box: Sequence[float], transform: ImageTransform, patch_size: int) -> tuple[int, int, int, int] | None:
    """Return (left, top, right, bottom) of the patches that `patch_mask` marks; None if it marks none."""
    mapped = transform.box(box)
    if mapped is None:
        return None
    left, top = (math.floor((value + _EPSILON) / patch_size) for value in mapped[:2])
    if left >= transform.size[0] // patch_size or top >= transform.size[1] // patch_size:
        return None  # in the margin after the last whole patch
    right, bottom = (math.ceil((value - _EPSILON) / patch_size) for value in mapped[2:])
    return left, top, max(right, left + 1), max(bottom, top + 1)


def check_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height), or raise `ValueError` if they are not two positive numbers."""
    try:
        width, height = image_size
        valid = width > 0 and height > 0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"`image_size` must be (width, height), both positive, as PIL's `image.size`, got {image_size!r}."
        )
    return width, height


def crop_box(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """Crop a box (x1, y1, x2, y2), widened to whole pixels and clipped to the image.

    Raises:
        ValueError: The box has no pixel in common with the image.
    """
    return image.crop(crop_bounds(image.size, box))


def crop_bounds(image_size: tuple[int, int], box: Sequence[float]) -> tuple[int, int, int, int]:
    """Return the (left, top, right, bottom) in whole pixels that `crop_box` crops; raises as it does."""
    width, height = image_size
    x1, y1 = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    x2, y2 = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"`box` must overlap the image of {width}x{height} pixels, got {tuple(box)}.")
    return x1, y1, x2, y2


def _resized(size: dict[str, Any], width: int, height: int) -> tuple[int, int]:
    """Return (width, height) after the resize step of an image processor with this `size`."""
    if size.get("height") and size.get("width"):
        return int(size["width"]), int(size["height"])
    edge, longest = size.get("shortest_edge"), size.get("longest_edge")
    if not edge or longest:
        raise ValueError(
            f"`image_processor.size` must give `shortest_edge`, or `height` and `width`, got {size}: boxes cannot be "
            "mapped through other ways of resizing."
        )
    short, long = min(width, height), max(width, height)
    new_long = int(edge * long / short)
    return (int(edge), new_long) if width <= height else (new_long, int(edge))
