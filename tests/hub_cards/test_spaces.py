"""A Space as the Hub gets it: its files, and the app that runs from them alone, asked by gradio's own client."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import yaml
from PIL import Image

from fastgoal.hub_cards.spaces import needed_files, push_space, requirements, small_copies

from .conftest import TOKEN

pytest.importorskip("gradio")
PUSH = """
import sys
from fastgoal.cli import main
trained, images = sys.argv[1:]
assert main(["push", trained, "me/squares"]) == 0
sys.exit(main(["push-space", "me/demo", "--model", "me/squares", "--images", images]))
"""
ASK = """
import sys
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
print("iframe" in client.predict(handle_file(sys.argv[2]), "A red square. A blue one.", api_name="/explain"))
print(len(client.predict("A red square.", api_name="/search")))
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


def test_what_arrives_runs(hub, outside, trained, images, tmp_path):
    done = outside("-c", PUSH, trained, images)
    assert done.returncode == 0, done.stderr
    files = hub.repos["spaces/me/demo"].files
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
    environment = {**keep, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "GRADIO_SERVER_PORT": str(port)}
    with subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, stderr=subprocess.PIPE) as app:
        try:
            end = time.monotonic() + 120
            while time.monotonic() < end and app.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            address = f"http://127.0.0.1:{port}"
            asked = outside("-c", ASK, address, images / "a.jpg", token=None)
        finally:
            app.terminate()
            said = app.stderr.read().decode()
    assert asked.stdout.splitlines()[-2:] == ["True", "2"], said + asked.stderr


def test_a_dry_run_asks_nobody(images):
    found = push_space("me/demo", ["me/squares", "openai/clip-vit-base-patch16"], str(images), dry_run=True)
    assert (found.kind, found.url) == ("space", None)
    assert found.sizes.keys() == {*found.sent}
    assert json.loads(json.dumps(found.sizes))["images/0000.jpg"] > 0


def test_only_modules_that_are_needed_go(tmp_path):
    files = needed_files("fastgoal.demo.app")
    assert {
        "fastgoal/__init__.py",
        "fastgoal/processing/checkpoints/load.py",
        "fastgoal/pages/templates/style.css",
    } <= files.keys()
    assert not [name for name in files if name.startswith(("fastgoal/quickstart", "fastgoal/commands"))]
    assert all(path.is_file() for path in files.values())
    needs = requirements(["demo", "adapters"])
    assert any(line.startswith("peft") for line in needs)  # of a model that is an adapter
    assert any(line.startswith("gradio") for line in needs)
    assert any(line.startswith("torch") for line in needs)
    assert not any(line.startswith(("ultralytics", "pytest", "lancedb")) for line in needs)


def test_what_cannot_be_a_space(images, tmp_path, trained, monkeypatch):
    with pytest.raises(ValueError, match=r"no OWNER/NAME on the Hub.*`fastgoal push` it"):
        push_space("me/demo", [str(trained)], dry_run=True)
    monkeypatch.setattr("fastgoal.hub_cards.push.get_token", lambda: None)
    with pytest.raises(ValueError, match="There is no access token"):
        push_space("me/demo", ["me/squares"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has 0 images"):
        small_copies(tmp_path / "empty")
    with pytest.raises(ValueError, match="is no folder"):
        small_copies(tmp_path / "absent")
    (tmp_path / "private.jpg").write_bytes((images / "a.jpg").read_bytes())
    (images / "c.jpg").symlink_to(tmp_path / "private.jpg")
    with pytest.raises(ValueError, match="a link that leads out"):
        small_copies(images)
