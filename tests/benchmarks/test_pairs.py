"""The benchmark of making pairs, on a tiny model: both sides work on the same inputs, and the tables come out."""

import json
from argparse import Namespace

import torch
from PIL import Image

from benchmarks import pairs as bench
from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.regions import Region


class LeftHalf:
    """A detector."""

    spec = DetectorSpec("left half", "left half")

    def prepare(self, image, caption):
        return image.size

    def detect(self, prepared):
        return [[Region((0, 0, width / 2, height), 0.9, "half", self.spec.kind)] for width, height in prepared]


def test_rounds_compare_the_same_work(tiny_clip, tmp_path, capsys):
    folder = tmp_path / "photographs"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(6):
        Image.effect_noise((48 + number, 36), 80).save(folder / f"images/{number}.jpg")
        lines.append({"file_name": f"images/{number}.jpg", "caption": "It is grey. Nothing is there."})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    processor.detector = LeftHalf()
    model = FastGoalCLIPModel.from_base(str(tiny_clip))
    args = Namespace(images=folder, rounds=2, images_per_round=3, batch_size=8, num_workers=2, device="cpu")
    assert bench.time_rounds(args, model, processor, tmp_path) > 0
    printed = capsys.readouterr().out
    # Two rounds of three images with six crops each; the two sentences are those of all images.
    assert "6 photographs with 6.0 crops and 2.0 sentences each (4 of 12 distinct in their shard)" in printed
    for row in ("all of `fastgoal pairs`", "detector + CLIP alone", "of these, detector", "| decode |", "| image |"):
        assert row in printed
    assert printed.count("round ") >= 2
    parts = bench.Parts(tmp_path / "rows1", model, processor, 8)
    assert [len(pixels) for pixels in parts.pixels] == [8, 8, 2]
    wanted = processor.image_processor(
        [Image.open(folder / "images/3.jpg").convert("RGB").crop((0, 0, 26, 36))], return_tensors="pt"
    )["pixel_values"]
    torch.testing.assert_close(parts.pixels[0][:1], wanted, atol=1e-5, rtol=0)
