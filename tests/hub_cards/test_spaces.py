"""A Space: its files, and its app, which starts from these files alone and answers gradio's own client."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fastgoal.cli import main
from fastgoal.hub_cards.spaces import package_files, push_space, requirements, small_copies

from .conftest import TOKEN

pytest.importorskip("gradio")
from gradio_client import Client, handle_file

# Starts the app of the current folder where fastgoal is not installed: not importable, and without its metadata.
START = """
import importlib.metadata, runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "fastgoal" not in getattr(finder, "__module__", "")]
from_name = importlib.metadata.Distribution.from_name
def hidden(name):
    if name == "fastgoal":
        raise importlib.metadata.PackageNotFoundError(name)
    return from_name(name)
importlib.metadata.Distribution.from_name = hidden
sys.path[0] = sys.argv.pop(1)
assert all(part == sys.path[0] or "fastgoal" not in part for part in sys.path), sys.path
runpy.run_path("app.py", run_name="__main__")
others = [name for name, module in sys.modules.items() if name.partition(".")[0] == "fastgoal" and not
          str(getattr(module, "__file__", sys.path[0])).startswith(sys.path[0])]
assert not others, others
"""


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x010F] = "A camera of mine"
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (1500, 900), color).save(folder / f"{name}.jpg", exif=exif, comment=b"A camera of mine")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.mark.slow
def test_the_app_starts_from_the_files_of_the_space_alone(online, trained, images, tmp_path):
    assert main(["push", str(trained), "me/squares"]) == 0
    assert main(["push-space", "me/demo", "--model", "me/squares", "--images", str(images)]) == 0
    files = online.repos["spaces/me/demo"].files
    assert {"README.md", "app.py", "space.json", "requirements.txt", "fastgoal/demo/app.py"} <= files.keys()
    assert sorted(name for name in files if name.startswith("images/")) == ["images/0000.jpg", "images/0001.jpg"]
    assert not [name for name, content in files.items() if b"A camera of mine" in content or TOKEN.encode() in content]
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["models"]) == ("gradio", "app.py", ["me/squares"])

    space = tmp_path / "space"
    for name, content in files.items():
        path = space / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and name != "PYTHONPATH"}
    environment = {**keep, "HF_ENDPOINT": online.url, "HF_HOME": str(tmp_path / "hf"), "GRADIO_SERVER_PORT": str(port)}
    command = [sys.executable, "-c", START, str(space)]
    with subprocess.Popen(command, cwd=space, env=environment, stderr=subprocess.PIPE, text=True) as app:
        try:
            end = time.monotonic() + 120
            while time.monotonic() < end and app.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            client = Client(f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False)
            page = client.predict(handle_file(images / "a.jpg"), "A red square. A blue one.", api_name="/explain")
            assert "iframe" in page
            assert len(client.predict("A red square.", api_name="/search")) == 2
        finally:
            app.send_signal(signal.SIGINT)  # which ends the app, and then the program checks where it came from
            errors = app.communicate(timeout=30)[1]
    assert "AssertionError" not in errors, errors


def test_a_dry_run_sends_nothing(images):
    found = push_space("me/demo", ["me/squares", "openai/clip-vit-base-patch16"], str(images), dry_run=True)
    assert (found.repo_type, found.url) == ("space", None)
    assert found.files["images/0000.jpg"] > 0
    assert found.images == ["images/0000.jpg", "images/0001.jpg"]


def test_a_key_stops_a_dry_run_too(images, monkeypatch):
    key = "AKIA" + "Q" * 16
    monkeypatch.setattr("fastgoal.hub_cards.spaces.package_files", lambda: {"fastgoal/a.py": f"x = '{key}'".encode()})
    for dry_run in (True, False):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with pytest.raises(ValueError, match=r"fastgoal/a\.py, line 1: .*access key \(AWS\)") as caught:
            push_space("me/demo", ["me/squares"], str(images), dry_run=dry_run)
        assert key not in str(caught.value)


def test_the_package_goes_without_weights_and_tests():
    files = package_files()
    assert {
        "fastgoal/__init__.py",
        "fastgoal/processing/checkpoints/load.py",
        "fastgoal/pages/templates/style.css",
        "fastgoal/hub_cards/model_card.md",
    } <= files.keys()
    assert not [name for name in files if "test" in Path(name).name or name.endswith((".safetensors", ".pyc"))]
    assert sum(map(len, files.values())) < 2_000_000
    root = Path(__file__).parents[2]
    code = {path.read_bytes() for name in ("fastgoal", "hub_cards", "trainer") for path in (root / name).rglob("*.py")}
    assert code <= {*files.values()}


def test_images_of_subfolders_are_sent(images):
    """As `search` and `demo` find them: hidden folders are left out, and the limit counts all images."""
    for name in ("trips/2024/c.png", ".cache/d.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), "green").save(images / name)
    copies = small_copies(images)
    assert [*copies] == ["images/0000.jpg", "images/0001.jpg", "images/0002.jpg"]
    assert Image.open(io.BytesIO(copies["images/0002.jpg"])).size == (30, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgoal.hub_cards.spaces.MOST_IMAGES", 2)
        with pytest.raises(ValueError, match=r"`images` must be a folder with at most 2 images, got .* 3 of them"):
            small_copies(images)


def test_requirements_are_those_of_the_demo():
    needs = requirements(["demo", "adapters"])
    assert any(line.startswith("peft") for line in needs)  # of a model that is an adapter
    assert any(line.startswith("gradio") for line in needs)
    assert any(line.startswith("torch") for line in needs)
    assert not any(line.startswith(("ultralytics", "pytest", "lancedb")) for line in needs)


def test_other_models_and_images_are_refused(images, tmp_path, trained, monkeypatch):
    with pytest.raises(ValueError, match=rf"`model` must be OWNER/NAME.*{trained.name}.*`fastgoal push`"):
        push_space("me/demo", [str(trained)], dry_run=True)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="no access token"):
        push_space("me/demo", ["me/squares"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty and its subfolders have no images"):
        small_copies(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"`images` must be a folder, got .*absent"):
        small_copies(tmp_path / "absent")
    (tmp_path / "private.jpg").write_bytes((images / "a.jpg").read_bytes())
    (images / "c.jpg").symlink_to(tmp_path / "private.jpg")
    with pytest.raises(ValueError, match=r"c\.jpg: the link leads out"):
        small_copies(images)
