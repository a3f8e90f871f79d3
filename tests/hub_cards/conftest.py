"""A model that was really trained, once for all tests of its card, its handler and its way to the Hub, and that Hub."""

import io
import os
import subprocess
import sys

import datasets
import pytest
from PIL import Image, ImageDraw

from .fake_hub import FakeHub

TOKEN = "hf_" + "Secret" * 6
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def row_of(first, second):
    picture = Image.new("RGB", (64, 32), "black")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((18, 4, 29, 15), fill=COLOURS[first])
    draw.rectangle((34, 16, 45, 27), fill=COLOURS[second])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    caption = f"On the left, it is {first}. On the right it is {second}."
    cut = caption.index(". ") + 1
    return {
        "image": {"bytes": buffer.getvalue(), "path": f"{first}-{second}.png"},
        "file_name": f"{first}-{second}.png",
        "caption": caption,
        "width": 64,
        "height": 32,
        "regions": [
            {"box": [18.0, 4.0, 30.0, 16.0], "score": 0.9, "label": "square", "source": "column"},
            {"box": [34.0, 16.0, 46.0, 28.0], "score": 0.8, "label": "square", "source": "column"},
        ],
        "sentences": [{"start": 0, "end": cut}, {"start": cut + 1, "end": len(caption)}],
        "pairs": [
            {"sentence": 0, "region": 0, "score": 0.6, "best": False},
            {"sentence": 1, "region": 1, "score": 0.7, "best": True},
        ],
    }


@pytest.fixture(scope="session")
def trained(tiny_clip, tmp_path_factory):
    """The folder of a run of `fastgoal train`, a checkpoint inside it, made with a token in its arguments."""
    from fastgoal.trainer.run import main

    home = tmp_path_factory.mktemp("home_of_the_user")
    rows = [row_of(first, second) for first in COLOURS for second in COLOURS if first != second]
    (home / "squares").mkdir()
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data.to_parquet(home / "squares" / "train-00000-of-00001.parquet")
    output = home / "my-model"
    settings = {
        "model": tiny_clip,
        "train_data": home / "squares",
        "eval_data": home / "squares",
        "output_dir": output,
        "max_steps": 4,
        "save_steps": 2,
        "save_strategy": "steps",
        "eval_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 0.00123,
        "label_smoothing_factor": 0.0,
        "adam_beta2": 0.98,
        "per_device_train_batch_size": 3,
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "license": "apache-2.0",
        "hub_token": TOKEN,
    }
    assert main([word for name, value in settings.items() for word in (f"--{name}", str(value))]) == 0
    return output


@pytest.fixture
def hub():
    with FakeHub(TOKEN) as server:
        yield server
        assert server.unknown == []


@pytest.fixture
def outside(hub, tmp_path):
    """Runs a Python program in a process that sees this server as the Hub, and a home of its own."""

    def start(*arguments, token=TOKEN):
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment = {
            **keep,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",  # as many networks have it; the other way needs a second server
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_DEBUG": "1",
            **({"HF_TOKEN": token} if token else {}),
        }
        return subprocess.run(
            [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )

    return start
