"""Load a saved folder without this package: as plain CLIP, and with our classes if their code is trusted."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from fastgoal import FastGoalCLIPModel, FastGoalProcessor

CAPTION = "A red cup stands on a table. " * 6

BEGIN = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fastgoal", "sentencex", "ultralytics"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, pipeline
folder, caption = sys.argv[1:]
image = Image.radial_gradient("L").convert("RGB").resize((60, 40))
"""

PLAIN = """
model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
inputs = processor(images=image, text=[caption], return_tensors="pt", truncation=True)
outputs = model(**inputs)
found = pipeline("zero-shot-image-classification", model=folder)(image, candidate_labels=["a cup", caption[:200]])
print(json.dumps({
    "model": [type(model).__module__, type(model).__name__],
    "processor": [type(processor).__module__, type(processor).__name__],
    "positions": model.config.text_config.max_position_embeddings,
    "lengths": [processor.tokenizer.model_max_length, AutoTokenizer.from_pretrained(folder).model_max_length],
    "image_processor": type(AutoImageProcessor.from_pretrained(folder)).__name__,
    "tokens": inputs["input_ids"].shape[1],
    "image": outputs.image_embeds[0].tolist(),
    "text": outputs.text_embeds[0].tolist(),
    "labels": len(found),
}))
"""

TRUSTED = """
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=image, text=[caption])
mask = processor.region_mask((0, 0, 30, 40), image.size)
sentence = processor.sentence_mask(caption, 0, 28)
try:
    processor.match([image], [caption], model)
except ImportError as error:
    message = str(error)
outputs = model(
    **inputs, local_input_ids=inputs["input_ids"], local_pixel_values=inputs["pixel_values"],
    region_mask=mask[None], sentence_mask=sentence[None], return_loss=True,
)
print(json.dumps({
    "model": [type(model).__module__, type(model).__name__],
    "processor": [type(processor).__module__, type(processor).__name__],
    "positions": model.config.text_config.max_position_embeddings,
    "patches": int(mask.sum()),
    "message": message,
    "loss": outputs.loss.item(),
    "image": outputs.image_embeds[0].tolist(),
    "text": outputs.text_embeds[0].tolist(),
}))
"""


@pytest.fixture(scope="module")
def folder(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    FastGoalCLIPModel.from_base(str(tiny_clip)).save_pretrained(folder)
    FastGoalProcessor.from_base(str(tiny_clip)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    model, processor = FastGoalCLIPModel.from_pretrained(folder), FastGoalProcessor.from_pretrained(folder)
    image = Image.radial_gradient("L").convert("RGB").resize((60, 40))
    with torch.no_grad():
        return model(**processor(images=image, text=[CAPTION]))


@pytest.fixture(scope="module")
def loaded(folder) -> list[dict]:
    """Return what a process without this package sees: as plain CLIP, and with trusted code."""
    command = [sys.executable, "-c", BEGIN + PLAIN + TRUSTED, str(folder), CAPTION]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-2:]]


def test_any_transformers_program_loads_it(loaded, expected):
    got = loaded[0]
    assert got["model"] == ["transformers.models.clip.modeling_clip", "CLIPModel"]
    assert got["processor"][1] == "CLIPProcessor"
    assert got["image_processor"].startswith("CLIPImageProcessor")
    assert got["positions"] == 248
    assert got["lengths"] == [248, 248]
    assert got["tokens"] > 77
    assert got["labels"] == 2
    torch.testing.assert_close(torch.tensor(got["image"]), expected.image_embeds[0])
    torch.testing.assert_close(torch.tensor(got["text"]), expected.text_embeds[0])


def test_our_classes_travel_with_it(loaded, expected):
    got = loaded[1]
    assert got["model"][0].startswith("transformers_modules.")
    assert got["model"][1] == "FastGoalCLIPModel"
    assert got["processor"][1] == "FastGoalProcessor"
    assert got["positions"] == 248
    assert got["patches"] > 0
    assert "pip install fastgoal" in got["message"]
    assert got["loss"] > 0
    torch.testing.assert_close(torch.tensor(got["image"]), expected.image_embeds[0])
    torch.testing.assert_close(torch.tensor(got["text"]), expected.text_embeds[0])
