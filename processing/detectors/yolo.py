"""Detectors of the package ultralytics: YOLO or RT-DETR weights in a local `.pt` file."""

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
from importlib.util import find_spec
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

# Detectors of transformers without ultralytics' license, in words that end a message.
APACHE = "or a detector of transformers under Apache-2.0: hustvl/yolos-base (the paper's), PekingU/rtdetr_v2_r18vd"


class UltralyticsDetector:
    """A detector of the package ultralytics (AGPL-3.0): YOLO or RT-DETR weights in a local `.pt` file.

    **A `.pt` file is a pickle, and loading a pickle can run any code that its maker put in.** Load only files whose
    maker you trust, and never one that came with somebody else's dataset. Where the installed ultralytics can load
    with a list of allowed classes only, that is switched on, unless the environment variable ULTRALYTICS_SAFE_LOAD says
    otherwise or ultralytics was imported before.

    ultralytics is imported here and kept quiet: it installs nothing, sends no usage statistics from this
    process, neither reads nor writes the user's ultralytics settings (unless YOLO_CONFIG_DIR names a place for them),
    and the environment, the number of torch threads and numpy's print options stay as they were.

    Args:
        weights: the local file, a `.pt` that exists.
        spec: its description; `min_score` is the smallest confidence of a region.
        device: where it runs.

    Raises:
        ValueError: if the file is no ultralytics model or gives no boxes.
        ImportError: if ultralytics is missing.
    """

    image_size = 640  # pixels to which the longer side of each image is resized

    def __init__(self, weights: str, spec: DetectorSpec, device: torch.device) -> None:
        path = Path(weights)
        self.spec, self.device = spec, device
        yolo = _import_ultralytics().YOLO
        try:
            with _quiet(), _same_environment():
                # An absolute path is never taken for the name of a file to download.
                self.model = yolo(str(path.resolve()))
                task = str(self.model.task)
        except MemoryError:
            raise
        except Exception as error:  # an unpickler raises whatever the file makes it raise
            raise ValueError(
                f"The detector file {path} is no ultralytics model that can be loaded: {first_line(error)} Give a .pt "
                "file that ultralytics saved. If you trust a file of custom classes, set ULTRALYTICS_SAFE_LOAD=false."
            ) from error
        if task not in ("detect", "segment", "pose"):
            raise ValueError(
                f"The detector file {path} has the task {task!r}, which gives no boxes: give one of the tasks detect, "
                "segment or pose."
            )
        refuse_not_finite(self.model.model.named_parameters(), f"--detector {weights}")
        # An RT-DETR stretches every image to a square by itself; a YOLO wants a frame around it.
        self.stride = None if "RTDETR" in type(self.model).__name__ else max(32, int(max(self.model.model.stride)))
        # The first call sets the model up and changes the number of threads, and with it the last bits of its boxes.
        self.detect([self.prepare(Image.new("RGB", (64, 4)))])

    def prepare(self, image: Image.Image, caption: str | None = None) -> "Letterboxed":
        """The image as the model sees it; see `Detector`."""
        # The model's own step takes the smallest frame for one image alone but a square for several of different sizes:
        # slower, and the boxes of an image would depend on its neighbors in the batch.
        return letterbox(load_image(image), self.image_size, self.stride)

    def detect(self, prepared: Sequence["Letterboxed"]) -> list[list[Region]]:
        """See `Detector`; which images share a forward says `batches_of_one_shape`."""
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
    """Let ultralytics download weights that it publishes, by their plain name, into the working folder.

    Raises:
        FileNotFoundError: It publishes no such file, downloads are switched off (YOLO_OFFLINE, HF_HUB_OFFLINE), or it
            did not arrive; says what to do.
        ImportError: ultralytics is missing; likewise.
    """
    missing = f"the detector file {path} does not exist"
    if path.name != str(path):
        raise FileNotFoundError(f"{missing}. Name a file that is there, {APACHE}.")
    if find_spec("ultralytics") is None:
        raise ImportError(
            f"{missing}, and the package ultralytics, which would download it, is missing: pip install "
            f"'fastgoal[yolo]', {APACHE}."
        )
    if is_offline_mode() or os.environ.get("YOLO_OFFLINE", "").lower() in ("1", "true"):
        raise FileNotFoundError(
            f"{missing}, and downloads are switched off (YOLO_OFFLINE, HF_HUB_OFFLINE). Put it here from "
            f"https://github.com/ultralytics/assets/releases, {APACHE}."
        )
    _import_ultralytics()
    from ultralytics.utils import downloads

    if path.name not in downloads.GITHUB_ASSETS_NAMES:
        raise FileNotFoundError(f"{missing}, and ultralytics publishes none of this name. Name another, {APACHE}.")
    logger.warning(
        f"{path} is not here: ultralytics downloads it into this folder. Its weights are under AGPL-3.0 "
        "(https://ultralytics.com/license), and a .pt file is a pickle, which can run code when it is loaded."
    )
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:  # it appears when it is whole
        try:
            found = downloads.attempt_download_asset(str(Path(folder) / path.name))
            os.replace(found, path)
        except Exception as error:  # of the network, in whatever words
            raise FileNotFoundError(
                f"{missing}, and ultralytics could not download it: {first_line(error)} Try again, put it here from "
                f"https://github.com/ultralytics/assets/releases, {APACHE}."
            ) from error


@dataclass(frozen=True)
class Letterboxed:
    """An image in a grey frame.

    Attributes:
        pixels: `(height, width, 3)` uint8, blue first.
        image_size: (width, height) of the original image.
        scale: pixels of the frame per pixel of the original, (x, y).
        offset: where the image begins in the frame, (left, top).
    """

    pixels: np.ndarray
    image_size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[int, int]

    def original_boxes(self, boxes: list[list[float]]) -> list[list[float]]:
        """Boxes (x1, y1, x2, y2) in the frame, brought to pixels of the original image."""
        return [[(value - self.offset[i % 2]) / self.scale[i % 2] for i, value in enumerate(box)] for box in boxes]


def letterbox(image: Image.Image, size: int, stride: int | None) -> Letterboxed:
    """Resize an image so that its longer side is `size` and pad the other one to a multiple of `stride`, as YOLO does.

    `size` is rounded up to a multiple of `stride`; where that is None, the image stays as it is, without a frame.
    """
    if stride is None:
        return Letterboxed(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]), image.size, (1.0, 1.0), (0, 0))
    size = math.ceil(size / stride) * stride
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = np.asarray(image)
    if (width, height) != image.size:
        # PIL's filter differs from the one that YOLO models are trained with.
        pixels = importlib.import_module("cv2").resize(pixels, (width, height))
    across, down = math.ceil(width / stride) * stride, math.ceil(height / stride) * stride
    left, top = (across - width) // 2, (down - height) // 2
    frame = np.full((down, across, 3), 114, dtype=np.uint8)
    frame[top : top + height, left : left + width] = pixels[:, :, ::-1]
    return Letterboxed(frame, image.size, (width / image.width, height / image.height), (left, top))


def _import_ultralytics() -> Any:
    """Imports ultralytics without the settings file, DNS look-ups, messages and global changes that come with it."""
    if "ultralytics" not in sys.modules:
        # ultralytics creates or migrates its settings file at import; a folder that lasts as long as the process keeps
        # it away from the user's.
        own = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "ULTRALYTICS_SAFE_LOAD": "true"}
        if "YOLO_CONFIG_DIR" not in os.environ:
            own["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="fastgoal-ultralytics-")
            atexit.register(shutil.rmtree, own["YOLO_CONFIG_DIR"], ignore_errors=True)
        numpy_options = np.get_printoptions()
        disabled = logging.root.manager.disable
        with _same_environment():
            for key, value in own.items():
                os.environ.setdefault(key, value)
            logging.disable(logging.WARNING)  # its logger is set up by the import itself and then announces the file
            try:
                importlib.import_module("ultralytics")
            except ImportError as error:
                raise ImportError(
                    f"a .pt detector needs the package ultralytics ({error}): pip install 'fastgoal[yolo]'"
                ) from error
            finally:
                logging.disable(disabled)
                np.set_printoptions(**numpy_options)
    for module in ("ultralytics.utils.events", "ultralytics.hub.utils"):  # newer and older home of the statistics
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(module).events.enabled = False
    return sys.modules["ultralytics"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences ultralytics below errors; it also sets the number of torch threads, which is put back."""
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
    """Puts the environment variables back: ultralytics sets OMP_NUM_THREADS=1 and others for the whole process."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update({key: value for key, value in environment.items() if os.environ.get(key) != value})
