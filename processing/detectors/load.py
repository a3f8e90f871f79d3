"""A detector by its name, whatever its kind: its description, and the detector itself.

A new kind is a file with a `Detector`, an entry in `LOADERS`, and a line in `_checkpoint_kind` that knows it.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_MASK_GENERATION_MAPPING, MODEL_FOR_OBJECT_DETECTION_MAPPING, AutoConfig

from fastgoal.processing.checkpoints.devices import choose_device
from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import mark_weights
from fastgoal.processing.regions import Detector

from .hf_detection import TransformersDetector
from .open_vocabulary import MIN_SCORES, OpenVocabularyDetector
from .phrases import MAX_PHRASES
from .sam import SamDetector
from .spec import DetectorSpec
from .yolo import UltralyticsDetector, fetch_weights

LOADERS: dict[str, Callable[[str, DetectorSpec, torch.device], Detector]] = {
    "ultralytics": UltralyticsDetector,
    "transformers": TransformersDetector.load,
    "open_vocabulary": OpenVocabularyDetector.load,
    "sam": SamDetector,
}

_FORMS = (
    'Allowed are "none", a local ultralytics file that ends in .pt (yolo11n.pt), or a folder or Hub id of a '
    "transformers object detector (hustvl/yolos-tiny), an open-vocabulary one (google/owlv2-base-patch16-ensemble) "
    "or a SAM (facebook/sam-vit-base)."
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def describe_detector(
    name: str | os.PathLike[str] | None,
    *,
    min_score: float | None = None,
    min_area: float = 0.01,
    max_area: float = 0.80,
) -> DetectorSpec:
    """What `load_detector` would load; reads a checkpoint's configuration and hashes its weights, but loads none.

    Weights that ultralytics publishes (`yolo11n.pt`) and that are not here are downloaded by it.

    Args:
        name: As for `load_detector`, or `column:NAME` for boxes in a column of the data.
        min_score: Lowest score of a region; by default 0.25, and 0.1 for OWL, whose scores are low.
        min_area: Smallest region (of a SAM: smallest mask) as a share of the image.
        max_area: Largest region (of a SAM: largest mask) as a share of the image.

    Raises:
        FileNotFoundError: The `.pt` file does not exist and cannot be downloaded.
        ValueError: For any other name, a checkpoint that is no detector, or a limit out of range.
    """
    text = "none" if name is None else os.fspath(name)
    if not text:
        raise ValueError(f"`name` is empty. {_FORMS}")
    path, kind, label, weights, model_type = Path(text), "none", "", "", ""
    if text.startswith("column:"):
        kind, label = "column", text.removeprefix("column:")
    elif text.lower() != "none":
        if text.lower().endswith(".pt") and not path.is_dir():
            kind = "ultralytics"
            if not path.is_file():
                fetch_weights(path)
        else:
            config = _configuration(text)
            kind, model_type = _checkpoint_kind(config, text), config.model_type
        mark = mark_weights(text, "detector")
        label = path.name if path.is_file() else path.resolve().name if path.is_dir() else text
        weights = mark if mark != label else ""
    return DetectorSpec(
        kind,
        label,
        weights,
        min_score=MIN_SCORES.get(model_type, 0.25) if min_score is None else min_score,
        min_area=min_area,
        max_area=max_area,
        max_phrases=MAX_PHRASES if kind == "open_vocabulary" else None,
    )


def load_detector(
    name: str | os.PathLike[str] | None,
    device: str | torch.device | None = None,
    **limits: Any,
) -> Detector | None:
    """Loads a detector by name; weights that ultralytics publishes are downloaded by it where they are not here.

    Loading an ultralytics `.pt` file may run code that is in the file, see `UltralyticsDetector`.

    Args:
        name: "none" or None for no detector; a local file that ends in `.pt` for ultralytics; a folder or the Hub id
            (`owner/name`) of a transformers object detector, an open-vocabulary detector or a SAM.
        device: Where it runs; None takes a GPU if there is one.
        **limits: `min_score`, `min_area` and `max_area` as for `describe_detector`.

    Returns:
        The detector, its description in `spec`; or None for "none".

    Raises:
        FileNotFoundError: The `.pt` file does not exist and cannot be downloaded.
        ValueError: For any other name, a file that is no detector, or "column:NAME", which names boxes of the data.
        ImportError: ultralytics is needed and missing.
    """
    spec = describe_detector(name, **limits)
    if spec.kind == "none":
        return None
    if spec.kind == "column":
        raise ValueError(
            f"`name` is 'column:{spec.name}', which is no detector but a column of boxes in the data: the command "
            f"`fastgoal pairs` reads it; in Python give the boxes to `propose_regions`. {_FORMS}"
        )
    return LOADERS[spec.kind](os.fspath(name or ""), spec, torch.device(choose_device(device)))


def _configuration(name: str) -> Any:
    """The configuration of a folder's or Hub id's checkpoint."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"The detector folder {name} has no config.json, so it holds no model. {_FORMS}")
    elif path.exists() or not _HUB_ID.fullmatch(name):
        raise ValueError(f"`name` is an unknown detector: {name!r}. {_FORMS}")
    with loading(f"--detector {name}", name, _FORMS):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def _checkpoint_kind(config: Any, name: str) -> str:
    if config.model_type in MIN_SCORES:
        return "open_vocabulary"
    if type(config) in MODEL_FOR_MASK_GENERATION_MAPPING:
        return "sam"
    if type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        return "transformers"
    raise ValueError(f"{name!r} is no detector but a model of type {config.model_type!r}. {_FORMS}")
