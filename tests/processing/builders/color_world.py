"""A small world for the tests of `write_pairs`, in this process and in others.

The matcher is a model that only sees colors: a crop's embedding is its mean color, a sentence's the colors it names.
"""

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from fastgoal.processing.builders.pairs import PairSettings, write_pairs
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.regions import Region

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
HALVES = DetectorSpec("halves", "thirds of the image")
SETTINGS = PairSettings("colors", HALVES, shard_size=3)


class ColorModel:
    """CLIP's two methods over mean colors."""

    device, dtype, training = torch.device("cpu"), torch.float32, False
    config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=60))

    def __init__(self):
        self.image_batches = []

    def eval(self):
        return self

    def train(self, mode=True):
        return self

    def get_image_features(self, pixel_values):
        self.image_batches.append(len(pixel_values))
        return SimpleNamespace(pooler_output=pixel_values.mean(dim=(2, 3)) - 0.2)

    def get_text_features(self, input_ids, attention_mask):
        words = torch.tensor(list(range(3, 6)))
        return SimpleNamespace(pooler_output=(input_ids[:, :, None] == words).sum(1).float() - 0.2)


class Halves:
    """A detector that finds the left and the right third; it can break or kill the process at an image, or be slow.

    Captions with the word `nothing` name nothing to look for.
    """

    spec = HALVES

    def __init__(self, act_at=None, action=None, pause=0.0):
        self.seen, self.act_at, self.action, self.pause = 0, act_at, action, pause

    def prepare(self, image, caption):
        return None if "nothing" in caption else image.size

    def detect(self, prepared):
        found = []
        for width, height in prepared:
            self.seen += 1
            time.sleep(self.pause)
            if self.seen == self.act_at:
                self.action()
            third = width / 3
            found.append(
                [
                    Region((0, 0, third, height), 0.9, "left", "halves"),
                    Region((2 * third, 0, width, height), 0.8, "right", "halves"),
                ]
            )
        return found


def make_processor(detector=None):
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "red": 3, "green": 4, "blue": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=60, **special)
    images = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    processor = FastGoalProcessor(images, wrapped, patch_size=4)
    processor.detector = detector
    return processor


def matcher(detector=None, model=None):
    return lambda: (model or ColorModel(), make_processor(detector))


def unused():
    raise AssertionError("the matcher was loaded although there was nothing to do")


def make_folder(folder, count=8, extra=None):
    """Pictures of three vertical bands, each of another color, and captions that name the outer two."""
    folder.mkdir(parents=True)
    names = list(COLORS)
    lines = []
    for number in range(count):
        left, middle, right = (names[(number + shift) % 3] for shift in range(3))
        image = Image.new("RGB", (60 + number, 30))
        third = image.width / 3
        for place, color in enumerate((left, middle, right)):
            ImageDraw.Draw(image).rectangle((place * third, 0, (place + 1) * third, 30), COLORS[color])
        image.save(folder / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "caption": f"The right is {right}. The left is {left}."})
        lines[-1].update((extra or {}).get(number, {}))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(folder, output, load=None, settings=SETTINGS, **options):
    options = {"batch_size": 8, "progress": False, **options}
    return write_pairs(load_source(folder), output, settings, load or matcher(Halves()), **options)


def rows_of(output):
    """Hashes of all shards: equal ones hold equal rows."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (output / "data").iterdir()}


def without_times(summary):
    return {
        name: value
        for name, value in summary.items()
        if name not in ("seconds", "images_per_second", "stage_seconds", "shards_made")
    }


def run_as_process(folder, output, settings=SETTINGS, act_at=None, pause=0.0):
    """Make a folder in a process of its own, which kills itself at an image."""
    torch.set_num_threads(1)
    detector = Halves(act_at, lambda: os.kill(os.getpid(), signal.SIGKILL), pause)
    run(Path(folder), Path(output), matcher(detector), settings)
