"""Names of models, detectors, data and files: whether a name can exist, before anything is loaded.

Imports nothing heavy: commands check their arguments here first, and the functions that load use the same checks.
"""

import os
import re
from pathlib import Path

EXPECTED_MODEL = "Name a folder written by `save_pretrained`, or a Hub id."
ASKED_HUB = "There is no such folder here, so the Hub was asked. Check the path, the name and the connection."
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
    # A missing folder of a model on this machine has the form of a Hub id too: fast-goal/adapter.
    if not path.exists() and any((path.parent / file).is_file() for file in MODEL_FILES):
        raise ValueError(f"`{argument}={name}` does not exist: {path.parent} has no {path.name}. {EXPECTED_MODEL}")
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


def check_data_name(name: str, argument: str = "data") -> None:
    """Raise `ValueError` for a name that is neither that of a file or folder nor of a dataset on the Hub."""
    if not name or not (Path(name).exists() or HUB_ID.fullmatch(name)):
        raise missing_data(f"`{argument}={name}`")


def missing_data(label: str) -> ValueError:
    """Return the error for data that do not exist."""
    return ValueError(f"{label} does not exist. Expected {EXPECTED_DATA}.")


def check_hub(name: str, argument: str, repo_type: str = "model") -> None:
    """Raise `ValueError` for a name that only the Hub can know, if the Hub cannot be reached.

    The clients of the Hub would retry each of their requests for half a minute. If the name is in their cache, this
    process and those that it starts use the cache alone from here on, as with HF_HUB_OFFLINE=1.

    Args:
        name: Name of a model, detector or dataset that has passed its own check.
        argument: Name of the argument that `name` was given for, for messages.
        repo_type: "model" or "dataset".
    """
    if not is_hub_id(name):
        return
    from huggingface_hub import constants, is_offline_mode
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import get_session

    if is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HTTPError as error:
        if Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=repo_type)).is_dir():
            constants.HF_HUB_OFFLINE = True
            os.environ["HF_HUB_OFFLINE"] = "1"
            return
        raise ValueError(
            f"`{argument}={name}`: there is no such file or folder here, and the Hub ({constants.ENDPOINT}) cannot be "
            f"reached: {error}. Check the path, or the connection."
        ) from None


def check_path(name: str, argument: str) -> None:
    """Raise `ValueError` for a path that does not exist."""
    if not Path(name).exists():
        raise ValueError(f"`{argument}={name}` does not exist. Check the path and, if it is relative, its folder.")
