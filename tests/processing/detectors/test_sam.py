"""Regions from SAM's masks: a tiny random SAM from end to end, and masks with known boxes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fastgoal.cli import main
from fastgoal.processing.detectors.load import describe_detector, load_detector
from fastgoal.processing.detectors.sam import SamDetector, shrink
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.regions import Detector, Region, find_regions
from tests.tiny_models import make_sam


@pytest.fixture(scope="module")
def tiny_sam(tmp_path_factory):
    return make_sam(tmp_path_factory.mktemp("sam"))


def mask_of(size, left, top, right, bottom):
    mask = np.zeros((size[1], size[0]), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_boxes_of_known_masks(tiny_sam):
    sam = load_detector(tiny_sam, device="cpu")
    size = (100, 50)
    ring = mask_of(size, 10, 5, 40, 45) & ~mask_of(size, 15, 10, 35, 40)
    masks = [
        mask_of(size, 10, 5, 40, 45),
        ring,  # its box counts, background and all
        mask_of(size, 0, 0, 7, 7),  # 0.98 % of the image
        mask_of(size, 0, 0, 10, 5),  # 1 %
        mask_of(size, 0, 0, 81, 50),  # 81 %
        mask_of(size, 0, 0, 80, 50),  # 80 %
        mask_of(size, 0, 0, 0, 0),
        ~mask_of(size, 10, 10, 90, 40),  # 52 %, around a hole: a mask may be small enough where its box is not
    ]
    calls = []

    def generator(image, points_per_batch):
        calls.append((image.size, points_per_batch))
        return {"masks": masks, "scores": torch.tensor([0.9, 1.01, 0.9, 0.95, 0.9, 0.89, 0.9, 0.9])}

    sam.generator = generator
    (regions,) = find_regions(sam, [Image.new("RGB", size)])
    assert calls == [(size, 128)]
    assert [region.box for region in regions] == [
        (10, 5, 40, 45),
        (10, 5, 40, 45),
        (0, 0, 10, 5),
        (0, 0, 80, 50),
        (0, 0, 100, 50),
    ]
    assert [region.score for region in regions] == pytest.approx([0.9, 1.0, 0.95, 0.89, 0.9])
    assert {region.source for region in regions} == {"sam"}


def test_a_large_image_is_shrunk_and_its_boxes_are_not(tiny_sam):
    sam = load_detector(tiny_sam, device="cpu")
    seen = []

    def generator(image, points_per_batch):
        seen.append(image.size)
        return {"masks": [mask_of(image.size, 0, 0, image.width // 2, image.height)], "scores": torch.tensor([0.9])}

    sam.generator = generator
    (regions,) = find_regions(sam, [Image.new("RGB", (4096, 3072))])
    assert seen == [(2048, 1536)]
    assert regions == [Region((0, 0, 2048, 3072), pytest.approx(0.9), "", "sam")]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4000, 3000), (4000, 3000)),
        ((3000, 4000), (3000, 4000)),
        ((4001, 100), (2048, 51)),
        ((3200, 6400), (1024, 2048)),
        ((9000, 1), (2048, 1)),
    ],
)
def test_shrinking_keeps_the_shape(size, expected):
    image = Image.new("L", size)
    shrink(image)
    assert image.size == expected


def test_a_real_sam(tiny_sam):
    sam = load_detector(tiny_sam, device="cpu")
    assert isinstance(sam, SamDetector)
    assert isinstance(sam, Detector)
    picture = Image.effect_noise((48, 36), 80).convert("RGB")
    # Random weights find nothing that they are sure of; without thresholds every point has masks.
    sam.generator._forward_params.update(pred_iou_thresh=-10.0, stability_score_thresh=-1.0)
    found = find_regions(sam, [picture, picture])
    assert found[0] == found[1]
    assert found[0]
    for region in found[0]:
        x1, y1, x2, y2 = region.box
        assert 0 <= x1 < x2 <= 48
        assert 0 <= y1 < y2 <= 36


def test_the_pairs_command(tiny_sam, tiny_clip, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    data.mkdir()
    Image.effect_noise((64, 48), 80).save(data / "a.png")
    (data / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "caption": "A sky. A field."}) + "\n")
    mask = ~mask_of((64, 48), 8, 8, 56, 40)  # half of the image, and its box is all of it
    monkeypatch.setattr(
        "transformers.pipelines.MaskGenerationPipeline.__call__",
        lambda self, image, **kwargs: {"masks": [mask], "scores": torch.tensor([0.9])},
    )
    options = ["pairs", str(data), "--model", str(tiny_clip), "--device", "cpu", "--regions", "sam"]
    assert main([*options, "--detector", str(tiny_sam), "--output", str(tmp_path / "out")]) == 0
    assert "1 sam" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "fastgoal_pairs.json").read_text())["settings"]
    assert DetectorSpec.from_settings(settings) == describe_detector(tiny_sam)


@pytest.mark.parametrize("detector", ["yolo11n.pt", "none", "column:boxes"])
def test_other_detectors_are_refused(detector, tiny_clip, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolo11n.pt").touch()
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "dog.png")
    (tmp_path / "data" / "dog.txt").write_text("A dog.")
    options = ["--model", str(tiny_clip), "--regions", "sam", "--detector", detector, "--output", str(tmp_path / "out")]
    assert main(["pairs", str(tmp_path / "data"), *options]) == 2
    assert "needs a SAM checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda weights: weights.pop("vision_encoder.patch_embed.projection.weight"), "projection.weight is missing"),
        (lambda weights: weights["mask_decoder.iou_token.weight"].fill_(float("nan")), "NaN or infinite"),
    ],
)
def test_damaged_weights_are_refused(tiny_sam, tmp_path, spoil, words):
    folder = shutil.copytree(tiny_sam, tmp_path / "sam")
    weights = load_file(folder / "model.safetensors")
    spoil(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"`detector={folder}`.*{words}"):
        load_detector(folder, device="cpu")
