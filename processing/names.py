"""Names of models, detectors, data and files: whether a name can exist, before anything is loaded.

Imports nothing heavy: commands check their arguments here first, and the functions that load use the same checks.
"""

import re
from pathlib import Path

EXPECTED_MODEL = "Name a folder written by `save_pretrained`, or a Hub id."
EXPECTED_DATA = "a file or folder of images with captions, or the OWNER/NAME of a dataset on the Hub"
EXPECTED_DETECTOR = (
    'Allowed are "none", an ultralytics file that ends in .pt (yolo11n.pt), and a folder or Hub id of an object '
    "detector of transformers (hustvl/yolos-tiny), of an open-vocabulary detector (google/owlv2-base-patch16-ensemble) "
    "or of a SAM (facebook/sam-vit-base)."
)
MODEL_FILES = ("config.json", "adapter_config.json")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Return whether a name is `OWNER/NAME` on the Hub rather than a path on this machine."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def check_model_name(name: str, argument: str = "model") -> None:
    """Raise `ValueError` for a name that is not that of a model or adapter, in a folder or on the Hub.

    Only the Hub can say whether there is a model with a name of the form `OWNER/NAME`.
    """
    path = Path(name)
    if not name or not (path.exists() or is_hub_id(name)):
        raise ValueError(f"`{argument}={name}` does not exist. {EXPECTED_MODEL}")
    if path.is_dir() and not any((path / file).is_file() for file in MODEL_FILES):
        numbers = [file.name.partition("-")[2] for file in path.glob("checkpoint-*")]
        newest = max((number for number in numbers if number.isdecimal()), key=int, default=None)
        way_out = EXPECTED_MODEL
        if newest is not None:
            way_out = f"Its training has not ended: resume it, or name a checkpoint, {path / f'checkpoint-{newest}'}."
        raise ValueError(
            f"`{argument}={name}` has neither {' nor '.join(MODEL_FILES)}, so it is not a model. {way_out}"
        )


def check_detector_name(name: str, argument: str = "detector") -> None:
    """Raise `ValueError` for a name that is not that of a detector, or of a column of boxes.

    A `.pt` file that is not here may be one that ultralytics publishes.
    """
    path = Path(name)
    if name.lower() == "none" or name.startswith("column:") or (name.lower().endswith(".pt") and not path.is_dir()):
        return
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"`{argument}={name}` has no config.json, so it is not a model. {EXPECTED_DETECTOR}")
    elif not is_hub_id(name):
        raise ValueError(f"`{argument}` must be the name of a detector, got {name!r}. {EXPECTED_DETECTOR}")


def check_data_name(name: str) -> None:
    """Raise `ValueError` for a name that is neither that of a file or folder nor of a dataset on the Hub."""
    if not name or not (Path(name).exists() or HUB_ID.fullmatch(name)):
        raise missing_data(name)


def missing_data(name: str) -> ValueError:
    """Return the error for data that do not exist."""
    return ValueError(f"'{name}' does not exist. Expected {EXPECTED_DATA}.")


def check_path(name: str, argument: str) -> None:
    """Raise `ValueError` for a path that does not exist."""
    if not Path(name).exists():
        raise ValueError(f"`{argument}={name}` does not exist. Check the path and, if it is relative, its folder.")
