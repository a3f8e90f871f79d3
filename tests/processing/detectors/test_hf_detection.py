"""Object detectors of transformers: boxes in pixels of each image, whatever the batch."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import YolosForObjectDetection

from fastgoal.processing.detectors import hf_detection as transformers
from fastgoal.processing.detectors.common import batches_of_one_shape
from fastgoal.processing.detectors.hf_detection import TransformersDetector
from fastgoal.processing.detectors.load import load_detector
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.regions import Detector, Region, find_regions
from tests.tiny_models import make_yolos

LANDSCAPE, PORTRAIT = Image.new("RGB", (80, 40), (200, 30, 30)), Image.new("RGB", (40, 60), (30, 30, 200))

# (center x, center y, width, height) as fractions of the image, then the class and how sure of it the model is
OBJECTS = [((0.5, 0.5, 0.5, 0.5), 1, 0.9), ((0.9, 0.1, 0.4, 0.4), 0, 0.6), ((0.2, 0.2, 0.1, 0.1), 0, 0.2)]


@pytest.fixture(scope="module")
def yolos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_yolos(tmp_path_factory.mktemp("yolos"))


class Known(torch.nn.Module):
    """Stands in for a YOLOS: gives `OBJECTS` for every image and notes what it was given."""

    def __init__(self, model: YolosForObjectDetection) -> None:
        super().__init__()
        self.config, self.dtype, self.weight = model.config, model.dtype, model.vit.layernorm.weight
        self.shapes: list[tuple[int, ...]] = []
        self.device = torch.device("cpu")

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> SimpleNamespace:
        assert not torch.is_grad_enabled()
        assert not self.training
        self.shapes.append(tuple(pixel_values.shape))
        logits = torch.full((len(pixel_values), len(OBJECTS), 3), -30.0)
        for index, (_box, label, score) in enumerate(OBJECTS):
            logits[:, index, label] = float(np.log(score))
            logits[:, index, 2] = float(np.log(1 - score))  # the class "no object"
        boxes = torch.tensor([box for box, _, _ in OBJECTS]).expand(len(pixel_values), -1, -1)
        return SimpleNamespace(logits=logits, pred_boxes=boxes)


def _close(found: list[Region], expected: list[Region]) -> bool:
    return [(r.label, r.source) for r in found] == [(r.label, r.source) for r in expected] and np.allclose(
        [[*r.box, r.score] for r in found], [[*r.box, r.score] for r in expected], atol=1e-4
    )


def test_transformers_boxes_in_pixels_of_each_image(yolos_folder: Path) -> None:
    loaded = load_detector(yolos_folder, device="cpu")
    known = Known(loaded.model).eval()
    detector = TransformersDetector(known, loaded.processor, loaded.spec)
    found = find_regions(detector, [LANDSCAPE, PORTRAIT, LANDSCAPE])
    # 80 x 40: the second box, x 56..88 and y -4..12, is clipped; the third is below the smallest score
    landscape = [
        Region((20, 10, 60, 30), 0.9, "dog", "transformers"),
        Region((56, 0, 80, 12), 0.6, "cat", "transformers"),
    ]
    portrait = [
        Region((10, 15, 30, 45), 0.9, "dog", "transformers"),
        Region((28, 0, 40, 18), 0.6, "cat", "transformers"),
    ]
    for regions, expected in zip(found, (landscape, portrait, landscape), strict=True):
        assert _close(regions, expected)
    # nothing is padded
    assert [shape[0] for shape in known.shapes] == [1, 1, 1]
    assert {shape[2:] for shape in known.shapes} == {(32, 64), (48, 32)}
    unsure = TransformersDetector(known, loaded.processor, DetectorSpec("transformers", "known", min_score=0.1))
    assert len(find_regions(unsure, [PORTRAIT])[0]) == 3
    assert find_regions(detector, []) == []


def as_on_a_gpu(shapes: list[Any], device: torch.device) -> list[list[int]]:
    return batches_of_one_shape(shapes, torch.device("cuda"))


def test_transformers_results_do_not_depend_on_the_batch(yolos_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = load_detector(yolos_folder, device="cpu", min_score=0.0)
    assert isinstance(detector, TransformersDetector)
    assert isinstance(detector, Detector)
    assert (detector.spec.kind, detector.spec.name) == ("transformers", yolos_folder.name)
    assert not detector.model.training
    noise = np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8)
    images = [LANDSCAPE, Image.fromarray(noise), PORTRAIT]
    together = find_regions(detector, images)
    assert all(together)
    for image, regions in zip(images, together, strict=True):
        assert _close(find_regions(detector, [image])[0], regions)
    monkeypatch.setattr(transformers, "batches_of_one_shape", as_on_a_gpu)
    for shared, regions in zip(find_regions(detector, [*images, *images]), together * 2, strict=True):
        assert _close(shared, regions)


def test_a_transformers_model_needs_a_fitting_processor(yolos_folder: Path) -> None:
    model = YolosForObjectDetection.from_pretrained(yolos_folder)
    with pytest.raises(ValueError, match=r"`processor` must have .*post_process_object_detection, got a object"):
        TransformersDetector(model, object(), DetectorSpec("transformers", "mine"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda weights: [weights.pop(name) for name in [*weights] if name.startswith("vit.")],
            "is missing, and .* more",
        ),
        (
            lambda weights: weights.update({"class_labels_classifier.layers.0.bias": torch.zeros(3)}),
            r"the shape \(3,\)",
        ),
        (
            lambda weights: weights["vit.layernorm.weight"].fill_(float("nan")),
            r"NaN or infinite \(in vit.layernorm.weight\)",
        ),
    ],
)
def test_damaged_weights_are_refused(yolos_folder, tmp_path, spoil, words):
    folder = shutil.copytree(yolos_folder, tmp_path / "yolos")
    weights = load_file(folder / "model.safetensors")
    spoil(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"`detector={folder}`.*{words}") as error:
        load_detector(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_a_pointer_in_place_of_the_weights(yolos_folder, tmp_path):
    folder = shutil.copytree(yolos_folder, tmp_path / "yolos")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=rf"`detector={folder}` cannot be loaded: .*pointer of git-lfs"):
        load_detector(folder, device="cpu")
