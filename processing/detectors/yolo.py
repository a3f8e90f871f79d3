"""Detectors of the package ultralytics: YOLO or RT-DETR weights in a `.pt` file."""

import atexit
import contextlib
import importlib
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import is_offline_mode
from PIL import Image
from transformers.utils import logging as transformers_logging

from fastgoal.processing.checkpoints.errors import first_line
from fastgoal.processing.checkpoints.fingerprints import refuse_not_finite
from fastgoal.processing.images import load_image
from fastgoal.processing.regions import Region

from .common import batches_of_one_shape, regions_inside
from .spec import DetectorSpec

logger = transformers_logging.get_logger(__name__)

# Detectors of transformers under another license than ultralytics, to end a message.
APACHE = "or a detector of transformers under Apache-2.0, such as hustvl/yolos-base or PekingU/rtdetr_v2_r18vd"


class UltralyticsDetector:
    """A `Detector` that runs a model of the package ultralytics (AGPL-3.0): YOLO or RT-DETR weights in a `.pt` file.

    **A `.pt` file is a pickle, and loading a pickle can run any code in it.** Load only files from a source that you
    trust, never one that came with a dataset. If the installed ultralytics can restrict loading to a list of classes,
    this is switched on, unless the environment variable ULTRALYTICS_SAFE_LOAD is set or ultralytics was imported
    before.

    ultralytics is imported without its side effects: it installs nothing, sends no usage statistics, and neither reads
    nor writes the user's settings (unless YOLO_CONFIG_DIR names a folder for them); the environment, the number of
    torch threads and the print options of numpy stay unchanged.

    Args:
        weights: Path of an existing `.pt` file.
        spec: Its description.
        device: Device of the model.

    Raises:
        ValueError: The file is not an ultralytics model, or the model does not detect boxes.
        ImportError: ultralytics is not installed.
    """

    image_size = 640  # pixels of the longer side of each image

    def __init__(self, weights: str, spec: DetectorSpec, device: torch.device) -> None:
        path = Path(weights)
        self.spec, self.device = spec, device
        yolo = _import_ultralytics().YOLO
        try:
            with _quiet(), _same_environment():
                # ultralytics may download a file of a relative name.
                self.model = yolo(str(path.resolve()))
                task = str(self.model.task)
        except MemoryError:
            raise
        except Exception as error:  # an unpickler raises whatever the file makes it raise
            raise ValueError(
                f"`detector={path}` is not an ultralytics model that can be loaded: {first_line(error)} Name a .pt "
                "file that ultralytics saved. If you trust a file with custom classes, set ULTRALYTICS_SAFE_LOAD=false."
            ) from error
        if task not in ("detect", "segment", "pose"):
            raise ValueError(
                f"`detector={path}` must be a model for detect, segment or pose, which give boxes, got the task "
                f"{task!r}."
            )
        refuse_not_finite(self.model.model.named_parameters(), f"`detector={weights}`")
        # RT-DETR stretches every image to a square itself; YOLO needs a letterbox.
        self.stride = None if "RTDETR" in type(self.model).__name__ else max(32, int(max(self.model.model.stride)))
        # The first call sets up the model and changes the number of threads, which affects the last bits of its boxes.
        self.detect([self.prepare(Image.new("RGB", (64, 4)))])

    def prepare(self, image: Image.Image, caption: str | None = None) -> "Letterboxed":
        """Resize and pad an image; see `Detector`."""
        # ultralytics pads a single image as little as possible, and a batch of different sizes to squares: this is
        # slower, and the boxes of an image would depend on the other images.
        return letterbox(load_image(image), self.image_size, self.stride)

    def detect(self, prepared: Sequence["Letterboxed"]) -> list[list[Region]]:
        """Detect regions; see `Detector`. Images share forward passes as in `batches_of_one_shape`."""
        regions: list[list[Region]] = [[] for _ in prepared]
        for group in batches_of_one_shape([item.pixels.shape for item in prepared], self.device):
            with _quiet():
                results = self.model.predict(
                    [prepared[index].pixels for index in group],
                    conf=self.spec.min_score,
                    imgsz=self.image_size,
                    device=self.device,
                    verbose=False,
                    save=False,
                )
            for index, result in zip(group, results, strict=True):
                boxes, names = result.boxes, result.names
                regions[index] = regions_inside(
                    prepared[index].original_boxes(boxes.xyxy.tolist()),
                    boxes.conf.tolist(),
                    [str(names[int(label)]) for label in boxes.cls.tolist()],
                    prepared[index].image_size,
                    self.spec.kind,
                )
        return regions


def fetch_weights(path: Path) -> None:
    """Let ultralytics download weights that it publishes into the working folder.

    Raises:
        FileNotFoundError: ultralytics does not publish this file, downloads are switched off (YOLO_OFFLINE,
            HF_HUB_OFFLINE), or the download failed.
        ImportError: ultralytics is not installed.
    """
    label = f"`detector={path}`"
    releases = "download it from https://github.com/ultralytics/assets/releases"
    if path.name != str(path):
        raise FileNotFoundError(f"{label} does not exist. Name an existing file, {APACHE}.")
    if is_offline_mode() or os.environ.get("YOLO_OFFLINE", "").lower() in ("1", "true"):
        raise FileNotFoundError(
            f"{label} does not exist, and YOLO_OFFLINE or HF_HUB_OFFLINE switches downloads off: {releases}, {APACHE}."
        )
    _import_ultralytics()
    from ultralytics.utils import downloads

    if path.name not in downloads.GITHUB_ASSETS_NAMES:
        raise FileNotFoundError(f"{label} does not exist, and ultralytics does not publish it. Name another, {APACHE}.")
    logger.warning(
        f"ultralytics downloads {path} into this folder. Its weights are under AGPL-3.0 "
        "(https://ultralytics.com/license), and a .pt file is a pickle, which can run code when it is loaded."
    )
    # In a folder of its own, so that an incomplete file never has the final name.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        try:
            os.replace(downloads.attempt_download_asset(str(Path(folder) / path.name)), path)
        except Exception as error:  # whatever the network raises
            reason = first_line(error)
            raise FileNotFoundError(
                f"{label} does not exist, and ultralytics cannot download it: {reason} Try again, {releases}, {APACHE}."
            ) from error


@dataclass(frozen=True)
class Letterboxed:
    """An image, resized and padded with grey.

    Attributes:
        pixels: `(height, width, 3)` uint8, in the order blue, green, red.
        image_size: (width, height) of the original image.
        scale: Size relative to the original, (x, y).
        offset: Padding at the (left, top).
    """

    pixels: np.ndarray
    image_size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[int, int]

    def original_boxes(self, boxes: list[list[float]]) -> list[list[float]]:
        """Convert boxes (x1, y1, x2, y2) in the padded image to pixels of the original image."""
        return [[(value - self.offset[i % 2]) / self.scale[i % 2] for i, value in enumerate(box)] for box in boxes]


def letterbox(image: Image.Image, size: int, stride: int | None) -> Letterboxed:
    """Resize an image so that its longer side is `size`, and pad the other to a multiple of `stride`, as YOLO does.

    `size` is rounded up to a multiple of `stride`. Without a `stride` the image is not changed.
    """
    if stride is None:
        return Letterboxed(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]), image.size, (1.0, 1.0), (0, 0))
    size = math.ceil(size / stride) * stride
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = np.asarray(image)
    if (width, height) != image.size:
        # YOLO models are trained with the filter of OpenCV, which differs from PIL's.
        pixels = importlib.import_module("cv2").resize(pixels, (width, height))
    padded_width, padded_height = math.ceil(width / stride) * stride, math.ceil(height / stride) * stride
    left, top = (padded_width - width) // 2, (padded_height - height) // 2
    frame = np.full((padded_height, padded_width, 3), 114, dtype=np.uint8)
    frame[top : top + height, left : left + width] = pixels[:, :, ::-1]
    return Letterboxed(frame, image.size, (width / image.width, height / image.height), (left, top))


def _import_ultralytics() -> Any:
    """Import ultralytics without its settings file, DNS look-ups, messages and changes of global state."""
    if "ultralytics" not in sys.modules:
        # ultralytics creates or migrates its settings file when it is imported: give it a temporary folder for that.
        variables = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "ULTRALYTICS_SAFE_LOAD": "true"}
        if "YOLO_CONFIG_DIR" not in os.environ:
            variables["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="fastgoal-ultralytics-")
            atexit.register(shutil.rmtree, variables["YOLO_CONFIG_DIR"], ignore_errors=True)
        numpy_options = np.get_printoptions()
        disabled = logging.root.manager.disable
        with _same_environment():
            for key, value in variables.items():
                os.environ.setdefault(key, value)
            logging.disable(logging.WARNING)  # the import logs that it creates the file
            try:
                importlib.import_module("ultralytics")
            except ImportError as error:
                raise ImportError(
                    f"A .pt detector needs the package ultralytics ({error}): pip install 'fastgoal[yolo]', {APACHE}."
                ) from error
            finally:
                logging.disable(disabled)
                np.set_printoptions(**numpy_options)
    for module in ("ultralytics.utils.events", "ultralytics.hub.utils"):  # newer and older versions
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(module).events.enabled = False
    return sys.modules["ultralytics"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence ultralytics except for errors, and restore the number of torch threads, which it changes."""
    logger = logging.getLogger("ultralytics")
    level, threads = logger.level, torch.get_num_threads()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    """Restore the environment variables: ultralytics sets OMP_NUM_THREADS=1 and others for the whole process."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update({key: value for key, value in environment.items() if os.environ.get(key) != value})
