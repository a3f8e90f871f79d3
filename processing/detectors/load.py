"""Object detectors that propose regions: ultralytics YOLO weights and transformers object-detection checkpoints."""

import contextlib
import importlib
import logging
import math
import os
import re
import sys
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from fastgoal.processing.images import load_image
from fastgoal.processing.regions import Detector, Region, clip_box

_FORMS = (
    'Allowed are "none", a local ultralytics file that ends in .pt (yolo11n.pt), a folder that holds a transformers '
    "object-detection model, or the Hub id of one (hustvl/yolos-tiny)."
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_detector(
    name: str | os.PathLike[str] | None, device: str | torch.device | None = None, min_score: float = 0.25
) -> Detector | None:
    """Loads a detector by name; never downloads ultralytics weights.

    Loading an ultralytics `.pt` file may run code that is in the file, see `UltralyticsDetector`.

    Args:
        name: "none" or None for no detector; a local file that ends in `.pt` for ultralytics; a folder or the Hub id
            (`owner/name`) of a transformers object-detection model.
        device: where it runs; None takes a GPU if there is one.
        min_score: smallest confidence of a region.

    Returns:
        The detector, or None for "none".

    Raises:
        FileNotFoundError: if the `.pt` file does not exist.
        ValueError: for any other name, a file that is no detector, or "column:NAME", which names boxes of the data.
        ImportError: if ultralytics is needed and missing.
    """
    if name is None:
        return None
    text = os.fspath(name)
    if text.lower() == "none":
        return None
    if not text:
        raise ValueError(f"`name` is empty. {_FORMS}")
    if text.startswith("column:"):
        raise ValueError(
            f"`name` is {text!r}, which is no detector but a column of boxes in the data: the command `fastgoal pairs` "
            f"reads it; in Python give the boxes to `propose_regions`. {_FORMS}"
        )
    if text.lower().endswith(".pt") and not Path(text).is_dir():
        return UltralyticsDetector(text, device=device, min_score=min_score)
    if Path(text).is_dir():
        if not (Path(text) / "config.json").is_file():
            raise ValueError(f"The detector folder {text} has no config.json, so it holds no model. {_FORMS}")
        return TransformersDetector(text, device=device, min_score=min_score)
    if not Path(text).exists() and _HUB_ID.fullmatch(text):
        return TransformersDetector(text, device=device, min_score=min_score)
    raise ValueError(f"`name` is an unknown detector: {text!r}. {_FORMS}")


class UltralyticsDetector:
    """A detector of the package ultralytics (AGPL-3.0): YOLO or RT-DETR weights in a local `.pt` file.

    **A `.pt` file is a pickle, and loading a pickle can run any code that its maker put in.** Load only files whose
    maker you trust, and never one that came with somebody else's data set. Where the installed ultralytics can load
    with a list of allowed classes only, that is switched on, unless the environment variable ULTRALYTICS_SAFE_LOAD says
    otherwise or ultralytics was imported before.

    ultralytics is imported here and kept quiet: it downloads and installs nothing, sends no usage statistics from this
    process, neither reads nor writes the user's ultralytics settings (unless YOLO_CONFIG_DIR names a place for them),
    and the environment, the number of torch threads and numpy's print options stay as they were.

    Args:
        weights: the local file.
        device: where it runs; None takes a GPU if there is one.
        min_score: smallest confidence of a region.
        image_size: length in pixels to which the longer side of each image is resized.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is no ultralytics model or gives no boxes.
        ImportError: if ultralytics is missing.
    """

    source = "ultralytics"

    def __init__(
        self,
        weights: str | os.PathLike[str],
        device: str | torch.device | None = None,
        min_score: float = 0.25,
        image_size: int = 640,
    ) -> None:
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(
                f"The detector file {path} does not exist, and none is downloaded in its place. Get ultralytics "
                "weights from https://github.com/ultralytics/assets/releases and give the path of the file."
            )
        if path.suffix.lower() != ".pt":
            raise ValueError(f"`weights` must be a file that ends in .pt, got {path}.")
        if image_size < 32:
            raise ValueError(f"`image_size` must be at least 32 pixels, got {image_size}: the default is 640.")
        self.name = path.name
        self.min_score = _check_score(min_score)
        self.device = _device(device)
        self.image_size = image_size
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
                f"The detector file {path} is no ultralytics model that can be loaded: {_first_line(error)} Give a .pt "
                "file that ultralytics saved. If you trust a file of custom classes, set ULTRALYTICS_SAFE_LOAD=false."
            ) from error
        if task not in ("detect", "segment", "pose"):
            raise ValueError(
                f"The detector file {path} has the task {task!r}, which gives no boxes: give one of the tasks detect, "
                "segment or pose."
            )
        # An RT-DETR stretches every image to a square by itself; a YOLO wants a frame around it.
        self.stride = None if "RTDETR" in type(self.model).__name__ else max(32, int(max(self.model.model.stride)))
        # The first call sets the model up and changes the number of threads, and with it the last bits of its boxes.
        self([Image.new("RGB", (64, 4))])

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Region]]:
        """See `Detector`."""
        return self.detect([self.prepare(image) for image in images])

    def prepare(self, image: Image.Image) -> "Letterboxed":
        """The image as the model sees it; see `Detector`."""
        # The model's own step takes the smallest frame for one image alone but a square for several of different sizes:
        # slower, and the boxes of an image would depend on its neighbours in the batch.
        return letterbox(load_image(image), self.image_size, self.stride)

    def detect(self, prepared: Sequence["Letterboxed"]) -> list[list[Region]]:
        """Find the objects in prepared images, see `batches_of_one_shape`."""
        regions: list[list[Region]] = [[] for _ in prepared]
        for group in batches_of_one_shape([item.pixels.shape for item in prepared], self.device):
            with _quiet():
                results = self.model.predict(
                    [prepared[index].pixels for index in group],
                    conf=self.min_score,
                    imgsz=self.image_size,
                    device=self.device,
                    verbose=False,
                    save=False,
                )
            for index, result in zip(group, results, strict=True):
                boxes, names = result.boxes, result.names
                regions[index] = _regions(
                    prepared[index].original_boxes(boxes.xyxy.tolist()),
                    boxes.conf.tolist(),
                    [str(names[int(label)]) for label in boxes.cls.tolist()],
                    prepared[index].image_size,
                    self.source,
                )
        return regions


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

    Args:
        image: an RGB image.
        size: pixels, rounded up to a multiple of `stride`.
        stride: pixels; None for the image as it is, without a frame.
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


class TransformersDetector:
    """Any object-detection model of transformers, such as YOLOS (the paper's), DETR or RT-DETR.

    Images whose size after the model's own resizing is the same may share a forward. They are never padded to a common
    size: YOLOS has no padding mask, so padding would shift its boxes, and results would depend on the batch.

    Args:
        name_or_model: a folder or Hub id for `AutoModelForObjectDetection`, or a model (put into eval mode).
        device: where it runs; None takes a GPU if there is one, or leaves a given model where it is.
        min_score: smallest confidence of a region.
        processor: the model's image processor; needed with a model, by default loaded from the same name.

    Raises:
        ValueError: if the name cannot be loaded as an object-detection model or the processor does not fit.
    """

    source = "transformers"

    def __init__(
        self,
        name_or_model: str | os.PathLike[str] | torch.nn.Module,
        device: str | torch.device | None = None,
        min_score: float = 0.25,
        processor: Any = None,
    ) -> None:
        self.min_score = _check_score(min_score)
        model: Any
        if isinstance(name_or_model, torch.nn.Module):
            model = name_or_model
            self.name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
            self.device = model.device if device is None else _device(device)
            if processor is None:
                raise ValueError("`processor` must be given with a model: load it with AutoImageProcessor.")
        else:
            self.name = os.fspath(name_or_model)
            self.device = _device(device)
            try:
                model = AutoModelForObjectDetection.from_pretrained(self.name)
                processor = AutoImageProcessor.from_pretrained(self.name) if processor is None else processor
            except ImportError:
                raise
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(
                    f"{self.name!r} cannot be loaded as a transformers object-detection model: {_first_line(error)} "
                    f"{_FORMS}"
                ) from error
        if not hasattr(processor, "post_process_object_detection"):
            raise ValueError(
                f"`processor` must have post_process_object_detection, got {type(processor).__name__}: give the image "
                "processor of the detector."
            )
        self.model = model.to(self.device).eval()
        self.processor = processor

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Region]]:
        """See `Detector`."""
        return self.detect([self.prepare(image) for image in images])

    def prepare(self, image: Image.Image) -> tuple[Any, tuple[int, int]]:
        """The model's inputs for one image, and the image's (width, height); see `Detector`."""
        upright = load_image(image)
        return self.processor(images=upright, return_tensors="pt"), upright.size

    @torch.no_grad()
    def detect(self, prepared: Sequence[tuple[Any, tuple[int, int]]]) -> list[list[Region]]:
        """Find the objects in prepared images, see `batches_of_one_shape`."""
        regions: list[list[Region]] = [[] for _ in prepared]
        for group in batches_of_one_shape([inputs["pixel_values"].shape for inputs, _ in prepared], self.device):
            keys = prepared[group[0]][0]
            batch = {key: torch.cat([prepared[i][0][key] for i in group]).to(self.device) for key in keys}
            batch["pixel_values"] = batch["pixel_values"].to(self.model.dtype)
            sizes = [prepared[i][1] for i in group]
            found = self.processor.post_process_object_detection(
                self.model(**batch), threshold=self.min_score, target_sizes=[(height, width) for width, height in sizes]
            )
            for index, size, result in zip(group, sizes, found, strict=True):
                regions[index] = _regions(
                    result["boxes"].tolist(),
                    result["scores"].tolist(),
                    [self._label(int(label)) for label in result["labels"].tolist()],
                    size,
                    self.source,
                )
        return regions

    def _label(self, index: int) -> str:
        names = getattr(self.model.config, "id2label", None) or {}
        return str(names.get(index, index))


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


def _regions(
    boxes: list[list[float]], scores: list[float], labels: list[str], image_size: tuple[int, int], source: str
) -> list[Region]:
    """Regions of one image, clipped to it; boxes with no area inside or with a NaN are left out."""
    regions = []
    for box, score, label in zip(boxes, scores, labels, strict=True):
        clipped = clip_box(box, image_size) if all(map(math.isfinite, box)) else None
        if clipped is not None:
            regions.append(Region(clipped, score, label, source))
    return regions


def _check_score(min_score: float) -> float:
    if not 0 <= min_score <= 1:
        raise ValueError(f"`min_score` must be between 0 and 1, got {min_score}: the default is 0.25.")
    return min_score


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _first_line(error: Exception) -> str:
    """What an error says, short and with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = text if len(text) <= 300 else text[:300].rsplit(" ", 1)[0] + " ..."
    return text if text[-1] in ".!?" else text + "."


def _import_ultralytics() -> Any:
    """Imports ultralytics without the settings file, DNS look-ups, messages and global changes that come with it."""
    if "ultralytics" not in sys.modules:
        # ultralytics creates or migrates its settings file at import; a folder that lasts as long as the process keeps
        # it away from the user's.
        own = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "ULTRALYTICS_SAFE_LOAD": "true"}
        if "YOLO_CONFIG_DIR" not in os.environ:
            own["YOLO_CONFIG_DIR"] = _settings_folder().name
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
                    f"A .pt detector needs the package ultralytics ({error}): pip install ultralytics"
                ) from error
            finally:
                logging.disable(disabled)
                np.set_printoptions(**numpy_options)
    for module in ("ultralytics.utils.events", "ultralytics.hub.utils"):  # newer and older home of the statistics
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(module).events.enabled = False
    return sys.modules["ultralytics"]


_SETTINGS: list[tempfile.TemporaryDirectory[str]] = []


def _settings_folder() -> tempfile.TemporaryDirectory[str]:
    """The folder for this process's ultralytics settings, removed when the process ends."""
    if not _SETTINGS:
        _SETTINGS.append(tempfile.TemporaryDirectory(prefix="fastgoal-ultralytics-"))
    return _SETTINGS[0]


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
