"""A trained model for the tests of its card, its handler, and its push, and a server that stands in for the Hub."""

import os
import subprocess
import sys

import pytest

from tests.squares import rows_of_squares, write_pairs

from .fake_hub import FakeHub

TOKEN = "hf_" + "Secret" * 6


@pytest.fixture(scope="session")
def trained(tiny_clip, tmp_path_factory):
    """Output folder of `fastgoal train`, with checkpoints inside it, from a run that got a token as an argument."""
    from fastgoal.trainer.run import main

    home = tmp_path_factory.mktemp("home_of_the_user")
    write_pairs(rows_of_squares("On the left, it is", ("red", "green", "blue")), home / "squares")
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
        "card_images": True,
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
def online(hub, monkeypatch):
    """Make this process, with a token, take the server for the Hub."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)  # the other way to upload needs a second server
    monkeypatch.setattr(f"{constants}.ENDPOINT", hub.url)
    monkeypatch.setattr(
        f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    # Two clients that keep the address of the Hub.
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture
def outside(hub, tmp_path):
    """Run a Python program in a process of its own that takes the server for the Hub."""

    def start(*arguments, token=TOKEN, **changes):
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment = {
            **keep,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_DEBUG": "1",
            **({"HF_TOKEN": token} if token else {}),
            **changes,
        }
        return subprocess.run(
            [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )

    return start
