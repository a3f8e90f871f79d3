"""Names are refused for what is not there, with the argument, the name and the way out."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from huggingface_hub import is_offline_mode

from fastgoal.processing.names import (
    check_data_name,
    check_detector_name,
    check_hub,
    check_model_name,
    check_path,
    is_hub_id,
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Has a model, an adapter, an empty folder and a file."""
    monkeypatch.chdir(tmp_path)
    for folder, file in (("model", "config.json"), ("adapter", "adapter_config.json"), ("empty", None)):
        (tmp_path / folder).mkdir()
        if file is not None:
            (tmp_path / folder / file).write_text("{}")
    (tmp_path / "a.pt").touch()
    return tmp_path


@pytest.mark.usefixtures("here")
def test_models():
    for name in ("model", "./model/", "adapter", os.path.abspath("model"), "openai/clip-vit-base-patch16", "a.pt"):
        check_model_name(name)
    for name in ("nothing", "./nothing", "/nothing", "openai/", "a/b/c", "../x", "~/model", ""):
        with pytest.raises(ValueError, match=rf"^`base={name}` does not exist\. .*save_pretrained"):
            check_model_name(name, "base")
    with pytest.raises(ValueError, match=r"^`model=empty` has neither config\.json nor adapter_config\.json"):
        check_model_name("empty")
    for name in ("model/adapter", "./adapter/checkpoint-5"):  # the first has the form of a Hub id
        with pytest.raises(ValueError, match=rf"^`model={name}` does not exist"):
            check_model_name(name)


@pytest.mark.usefixtures("here")
def test_detectors():
    for name in ("none", "None", "column:boxes", "a.pt", "yolo11n.pt", "model", "hustvl/yolos-tiny"):
        check_detector_name(name)
    for name in ("nothing", "./nothing", "a/b/c"):
        with pytest.raises(ValueError, match=r"^`detector` must be the name of a detector, got .*yolo11n\.pt"):
            check_detector_name(name)
    with pytest.raises(ValueError, match=r"^`detector=empty` has no config\.json"):
        check_detector_name("empty")


@pytest.mark.usefixtures("here")
def test_data_and_paths():
    for name in ("model", "a.pt", "owner/data"):
        check_data_name(name)
    for name in ("nothing", "./nothing", "owner/..", ""):
        with pytest.raises(ValueError, match=rf"^`source={name}` does not exist\. Expected .* Hub"):
            check_data_name(name, "source")
    check_path("a.pt", "image")
    with pytest.raises(ValueError, match=r"^`image=owner/data` does not exist"):
        check_path("owner/data", "image")
    assert is_hub_id("owner/data")
    assert not is_hub_id("model/config.json")


def test_a_hub_that_cannot_be_reached_is_asked_once(here, monkeypatch):
    """A port without a server stands for a machine without a network; the Hub's client would retry for 23 seconds."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    start = time.monotonic()
    for repo_type in ("model", "dataset"):
        with pytest.raises(ValueError, match=r"^`model=out/fast-gaol`: .*folder here.*http://127\.0\.0\.1:1.*path"):
            check_hub("out/fast-gaol", "model", repo_type)
    assert time.monotonic() - start < 1
    for name in ("model", "none", "column:boxes"):
        check_hub(name, "model")

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        answers = threading.Thread(target=_answer, args=(server,))
        answers.start()
        check_hub("owner/name", "model")  # any answer will do: loading explains what the Hub says about the name
        answers.join()
    assert not is_offline_mode()

    (here / "cache" / "models--owner--cached").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    check_hub("owner/cached", "model")  # the server has ended
    assert is_offline_mode()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def _answer(server):
    connection, _ = server.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


def test_nothing_is_imported():
    code = "import sys, fastgoal.processing.names; print(len({'torch', 'numpy', 'yaml', 'PIL'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"0\n"


def test_the_folder_of_a_training_that_has_not_ended_names_its_newest_checkpoint(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-last"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"so it is not a model\. .*resume it, .*checkpoint-10\.$"):
        check_model_name(str(tmp_path))
