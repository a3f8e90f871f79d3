"""What the kinds of detectors share: a device, loading, forwards of inputs of one shape, regions inside the image."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from fastgoal.processing.regions import Region, clip_box


def auto_device(device: str | torch.device | None) -> torch.device:
    """The device; None stands for a GPU if there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_checkpoint(model_class: Any, processor_class: Any, name: str, device: torch.device) -> tuple[Any, Any]:
    """The model, in eval mode on its device, and the processor of a folder or Hub id; a `ValueError` if they fail."""
    try:
        return model_class.from_pretrained(name).to(device).eval(), processor_class.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"The detector {name!r} cannot be loaded: {first_line(error)}") from error


@torch.no_grad()
def forwards(model: Any, inputs: Sequence[Mapping[str, torch.Tensor]]) -> Iterator[tuple[list[int], Any]]:
    """Runs a model on inputs of one image each; those of the same shapes may share a forward, and nothing is padded.

    Padding would let the result of an image depend on the others: YOLOS has no mask for it.

    Yields:
        The numbers of the inputs of a forward, and its outputs.
    """
    shapes = [tuple((key, value.shape) for key, value in item.items()) for item in inputs]
    for group in batches_of_one_shape(shapes, model.device):
        batch = {key: torch.cat([inputs[i][key] for i in group]).to(model.device) for key in inputs[group[0]]}
        batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
        yield group, model(**batch)


def batches_of_one_shape(shapes: Sequence[Hashable], device: torch.device) -> list[list[int]]:
    """Which inputs share a forward: those of one shape, and on a CPU each goes alone.

    There YOLO is no faster in batches, but their buffers are of other sizes each time: the heap gets full of holes that
    are never given back, hundreds of megabytes after some hundred photographs.

    Args:
        shapes: One per input.
        device: Where the model runs.

    Returns:
        The numbers of the inputs of each forward.
    """
    if device.type == "cpu":
        return [[index] for index in range(len(shapes))]
    groups: dict[Hashable, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return list(groups.values())


def regions_inside(
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float],
    labels: Sequence[str],
    image_size: tuple[int, int],
    source: str,
) -> list[Region]:
    """Regions of one image, clipped to it; boxes with no area inside or with a NaN are left out."""
    regions = []
    for box, score, label in zip(boxes, scores, labels, strict=True):
        clipped = clip_box(box, image_size) if all(map(math.isfinite, box)) else None
        if clipped is not None:
            regions.append(Region(clipped, score, label, source))
    return regions


def first_line(error: Exception) -> str:
    """What an error says, short and with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = text if len(text) <= 300 else text[:300].rsplit(" ", 1)[0] + " ..."
    return text if text[-1] in ".!?" else text + "."
