"""Loading a detector of any kind by its name, and describing it without loading it.

To add a kind, write a file with a `Detector`, add it to `LOADERS`, and recognize its checkpoints in `_checkpoint_kind`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_MASK_GENERATION_MAPPING, MODEL_FOR_OBJECT_DETECTION_MAPPING, AutoConfig

from fastgoal.processing.checkpoints.devices import choose_device
from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import checkpoint_fingerprint
from fastgoal.processing.checks import MAX_AREA, MIN_AREA, MIN_SCORE
from fastgoal.processing.names import EXPECTED_DETECTOR, check_detector_name
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


def describe_detector(
    name: str | os.PathLike[str] | None,
    *,
    min_score: float | None = None,
    min_area: float = MIN_AREA,
    max_area: float = MAX_AREA,
) -> DetectorSpec:
    """Describe what `load_detector` would load. This reads a configuration and hashes files, but loads no weights.

    Weights that ultralytics publishes (`yolo11n.pt`) are downloaded by ultralytics if they are missing.

    Args:
        name: As for `load_detector`, or `column:NAME` for boxes in a column of the data.
        min_score: Lowest score of a region; 0.25 by default, and 0.1 for OWL, which gives low scores.
        min_area: Area of the smallest region (for SAM: mask) as a fraction of the image.
        max_area: Area of the largest region (for SAM: mask) as a fraction of the image.

    Raises:
        FileNotFoundError: The `.pt` file does not exist and cannot be downloaded.
        ValueError: There is no such detector, or a limit is out of range.
    """
    text = "none" if name is None else os.fspath(name)
    if not text:
        raise ValueError(f"`detector` must not be empty. {EXPECTED_DETECTOR}")
    path, kind, label, weights, model_type = Path(text), "none", "", "", ""
    if text.startswith("column:"):
        kind, label = "column", text.removeprefix("column:")
    elif text.lower() != "none":
        if text.lower().endswith(".pt") and not path.is_dir():
            kind = "ultralytics"
            if not path.is_file():
                fetch_weights(path)
        else:
            config = _read_config(text)
            kind, model_type = _checkpoint_kind(config, text), config.model_type
        label = path.name if path.is_file() else path.resolve().name if path.is_dir() else text
        fingerprint = checkpoint_fingerprint(text, "detector")
        weights = fingerprint if fingerprint != label else ""
    return DetectorSpec(
        kind,
        label,
        weights,
        min_score=MIN_SCORES.get(model_type, MIN_SCORE) if min_score is None else min_score,
        min_area=min_area,
        max_area=max_area,
        max_phrases=MAX_PHRASES if kind == "open_vocabulary" else None,
    )


def load_detector(
    name: str | os.PathLike[str] | None, device: str | torch.device | None = None, **limits: Any
) -> Detector | None:
    """Load a detector by its name.

    Loading an ultralytics `.pt` file may run code in the file; see `UltralyticsDetector`.

    Args:
        name: "none" or None for no detector; an ultralytics file that ends in `.pt`, which ultralytics downloads if it
            is missing and published; a folder or the Hub id (`owner/name`) of an object detector of transformers, an
            open-vocabulary detector or a SAM.
        device: Device of the model; by default a GPU if there is one.
        **limits: `min_score`, `min_area` and `max_area` as for `describe_detector`.

    Returns:
        The detector, with its description in `spec`; None for "none".

    Raises:
        FileNotFoundError: The `.pt` file does not exist and cannot be downloaded.
        ValueError: There is no such detector, or the name is "column:NAME", which names boxes in the data.
        ImportError: ultralytics is needed and not installed.
    """
    spec = describe_detector(name, **limits)
    if spec.kind == "none":
        return None
    if spec.kind == "column":
        raise ValueError(
            f"`detector` must not be a column here, got 'column:{spec.name}'. Only `fastgoal pairs` reads boxes from a "
            f"column; in Python pass them to `FastGoalProcessor.propose_regions`. {EXPECTED_DETECTOR}"
        )
    return LOADERS[spec.kind](os.fspath(name or ""), spec, torch.device(choose_device(device)))


def _read_config(name: str) -> Any:
    """Read the configuration of the checkpoint in a folder or with a Hub id."""
    check_detector_name(name)
    with loading(f"`detector={name}`", name, EXPECTED_DETECTOR):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def _checkpoint_kind(config: Any, name: str) -> str:
    if config.model_type in MIN_SCORES:
        return "open_vocabulary"
    if type(config) in MODEL_FOR_MASK_GENERATION_MAPPING:
        return "sam"
    if type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        return "transformers"
    raise ValueError(f"`detector={name}` is a model of type {config.model_type!r}, not a detector. {EXPECTED_DETECTOR}")
