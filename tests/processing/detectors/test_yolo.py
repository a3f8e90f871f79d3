"""Ultralytics: boxes in pixels, and that it neither prints, writes, downloads nor reports anything."""

import os
import pickle
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from fastgoal.processing.detectors.load import load_detector
from fastgoal.processing.detectors.yolo import UltralyticsDetector, letterbox
from fastgoal.processing.regions import Detector, Region, find_regions

LANDSCAPE, PORTRAIT = Image.new("RGB", (80, 40), (200, 30, 30)), Image.new("RGB", (40, 60), (30, 30, 200))


class FakeYOLO:
    """Finds the same three boxes in every frame, one of them outside of it, one larger than it."""

    task = "detect"
    calls: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, path: str) -> None:
        if not os.path.isabs(path):
            raise AssertionError("a bare name may be downloaded")
        self.path = path
        self.model = SimpleNamespace(stride=torch.tensor([8.0, 16.0, 32.0]), named_parameters={}.items)

    def predict(self, source: list[np.ndarray], **options: Any) -> list[Any]:
        torch.set_num_threads(1)
        FakeYOLO.calls.append({"source": source, **options})
        boxes = torch.tensor([[32.0, 40.0, 164.0, 240.0], [-3.0, -2.0, 9999.0, 9999.0], [900.0, 0.0, 990.0, 9.0]])
        return [
            SimpleNamespace(
                names={0: "cat", 1: "dog"},
                boxes=SimpleNamespace(
                    xyxy=boxes, conf=torch.tensor([0.5, 0.75, 0.9]), cls=torch.tensor([1.0, 0.0, 0.0])
                ),
            )
            for _ in source
        ]


@pytest.fixture
def fake_ultralytics(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    package, utils = ModuleType("ultralytics"), ModuleType("ultralytics.utils")
    events = ModuleType("ultralytics.utils.events")
    package.YOLO, events.events = FakeYOLO, SimpleNamespace(enabled=True)  # type: ignore[attr-defined]
    for module in (package, utils, events):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(FakeYOLO, "calls", [])
    return events.events  # type: ignore[attr-defined, no-any-return]


def test_ultralytics_boxes_are_clipped_and_named(tmp_path: Path, fake_ultralytics: SimpleNamespace) -> None:
    path = tmp_path / "tiny.pt"
    path.touch()
    detector = load_detector(path, device="cpu", min_score=0.3)
    assert isinstance(detector, UltralyticsDetector)
    assert isinstance(detector, Detector)
    assert (detector.spec.kind, detector.spec.name, detector.spec.min_score) == ("ultralytics", "tiny.pt", 0.3)
    threads = torch.get_num_threads()
    FakeYOLO.calls.clear()
    # The longer side becomes 640 pixels. The other one, 427 pixels, is padded to 448: 10 pixels on the left.
    wide, tall = LANDSCAPE, PORTRAIT.convert("L")
    dog = Region((4, 5, 20.5, 30), 0.5, "dog", "ultralytics")
    all_of_it = Region((0, 0, 80, 40), 0.75, "cat", "ultralytics")
    found = find_regions(detector, [wide, tall, wide])
    assert found[0] == found[2] == [dog, all_of_it]
    assert found[1][0].box == pytest.approx(
        ((32 - 10) * 40 / 427, 40 / (640 / 60), (164 - 10) * 40 / 427, 240 / (640 / 60))
    )
    assert found[1][1] == Region((0, 0, 40, 60), 0.75, "cat", "ultralytics")
    # Nobody's frame depends on who else is there.
    assert [[frame.shape for frame in call["source"]] for call in FakeYOLO.calls] == [
        [(320, 640, 3)],
        [(640, 448, 3)],
        [(320, 640, 3)],
    ]
    options = {"conf": 0.3, "imgsz": 640, "verbose": False, "save": False, "device": torch.device("cpu")}
    assert {key: FakeYOLO.calls[0][key] for key in options} == options
    assert torch.get_num_threads() == threads
    assert fake_ultralytics.enabled is False  # no usage statistics
    assert find_regions(detector, []) == []
    # On a GPU images of one shape share a call.
    FakeYOLO.calls.clear()
    detector.device = torch.device("cuda")
    assert find_regions(detector, [wide, tall, wide]) == found
    assert [len(call["source"]) for call in FakeYOLO.calls] == [2, 1]


def test_a_letterbox_pads_and_reverses_the_colors() -> None:
    image = Image.new("RGB", (40, 30), (10, 20, 30))
    boxed = letterbox(image, 64, 32)
    assert boxed.pixels.shape == (64, 64, 3)  # 64 x 48 pixels with 8 above and below
    assert (boxed.scale, boxed.offset, boxed.image_size) == ((1.6, 1.6), (0, 8), (40, 30))
    assert (boxed.pixels[8:56] == (30, 20, 10)).all()
    assert (boxed.pixels[:8] == 114).all()
    assert (boxed.pixels[56:] == 114).all()
    assert boxed.original_boxes([[0.0, 8.0, 64.0, 56.0]]) == [[0.0, 0.0, 40.0, 30.0]]
    assert letterbox(image, 50, 32).pixels.shape == (64, 64, 3)  # no frame is smaller than asked for
    assert letterbox(Image.new("RGB", (300, 2)), 64, 32).pixels.shape == (32, 64, 3)
    whole = letterbox(image, 64, None)
    assert (whole.pixels.shape, whole.scale, whole.offset) == ((30, 40, 3), (1.0, 1.0), (0, 0))


def test_weights_of_other_tasks_are_refused(
    tmp_path: Path, fake_ultralytics: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cls.pt").touch()
    monkeypatch.setattr(FakeYOLO, "task", "classify")
    with pytest.raises(ValueError, match=r"cls\.pt`.*'classify'"):
        load_detector(tmp_path / "cls.pt")


def test_missing_ultralytics_names_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    monkeypatch.delitem(sys.modules, "ultralytics")
    monkeypatch.setattr("fastgoal.processing.detectors.yolo.importlib.import_module", _no_module)
    (tmp_path / "a.pt").touch()
    with pytest.raises(ImportError, match=r"pip install .fastgoal\[yolo\]., or a detector .*yolos-base"):
        load_detector(tmp_path / "a.pt")


def _no_module(name: str) -> ModuleType:
    raise ModuleNotFoundError(f"No module named {name!r}")


SCRIPT = """
import os, socket, sys
from pathlib import Path

def no_network(*args, **kwargs):
    raise AssertionError("network")

socket.getaddrinfo = socket.socket.connect = no_network
import numpy as np
import torch
from PIL import Image
from fastgoal.processing.detectors.load import load_detector
from fastgoal.processing.detectors.yolo import _import_ultralytics
from fastgoal.processing.regions import find_regions

assert "ultralytics" not in sys.modules
before = dict(os.environ), str(np.get_printoptions()), torch.get_num_threads()
_import_ultralytics()
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils.events import events

# A random YOLO whose classes 0 and 2 are sure of themselves.
torch.manual_seed(0)
yolo = YOLO("yolo11n.yaml")
for key, weight in yolo.model.named_parameters():
    if weight.ndim == 4 and "dfl" not in key:
        weight.data *= 2.5  # the usual random weights let nothing of the image through
for branch in yolo.model.model[-1].cv3:
    branch[-1].bias.data[:] = -9.0
    branch[-1].bias.data[[0, 2]] = 1.0
yolo.model.names = {index: f"class {index}" for index in range(80)}
yolo.save("random.pt")
os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)

detector = load_detector("random.pt", device="cpu", min_score=0.3)
detector.image_size = 128
noise = np.random.default_rng(0).integers(0, 255, (2, 90, 120, 3), dtype=np.uint8)
found = find_regions(detector, [Image.fromarray(noise[0]), Image.fromarray(noise[1]).resize((50, 200))])
assert all(found) and {r.label for rs in found for r in rs} <= {"class 0", "class 2"}
for regions, (width, height) in zip(found, [(120, 90), (50, 200)]):
    for r in regions:
        x1, y1, x2, y2 = r.box
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and 0.3 <= r.score <= 1

# ultralytics takes arrays as BGR: the same picture given so must give the same boxes.
alone = find_regions(detector, [Image.fromarray(noise[0])])[0]
for flip, same in ((True, True), (False, False)):
    array = noise[0][:, :, ::-1] if flip else noise[0]
    result = YOLO("random.pt").predict(np.ascontiguousarray(array), conf=0.3, imgsz=128, device="cpu", verbose=False)[0]
    scores = result.boxes.conf.tolist()
    equal = len(scores) == len(alone) and np.allclose(scores, [r.score for r in alone], rtol=0, atol=1e-7)
    assert equal == same, (flip, scores, alone)
    if same:  # our frame around the image is the one that ultralytics puts around it
        assert np.allclose(result.boxes.xyxy.tolist(), [r.box for r in alone], rtol=0, atol=1e-3)
        assert [r.box for r in found[0]] == [r.box for r in alone], "neighbors in a batch matter"
os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)

for name in ("noise.pt", "list.pt", "dict.pt", "empty.pt", "module.pt", "evil.pt"):
    try:
        load_detector(name)
    except ValueError as error:
        assert name in str(error) and "not an ultralytics model" in str(error), error
    else:
        raise AssertionError(name)
assert not (getattr(tasks, "SAFE_LOAD", False) and os.path.exists("ran")), "the pickle ran"
assert events.enabled is False
torch.set_num_threads(before[2])  # the plain YOLO above changed it
assert before == (dict(os.environ), str(np.get_printoptions()), torch.get_num_threads())
assert not list(Path.home().iterdir()), list(Path.home().rglob("*"))
"""


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("ran", "w")


@pytest.mark.slow
def test_ultralytics_is_quiet_offline_and_right(tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    (work / "noise.pt").write_bytes(np.random.default_rng(0).bytes(5000))
    (work / "empty.pt").touch()
    torch.save([1, 2, 3], work / "list.pt")
    torch.save({"model": {"weight": torch.zeros(3)}}, work / "dict.pt")
    (work / "module.pt").write_bytes(b"\x80\x02cno_such_package\nThing\n.")
    (work / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    kept = {
        key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV") if key in os.environ
    }
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        cwd=work,
        env={**kept, "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("", "")


FETCH = """
import sys
from fastgoal.processing.detectors.load import describe_detector
from fastgoal.processing.detectors.yolo import _import_ultralytics
_import_ultralytics()
from ultralytics.utils import downloads
download = downloads.safe_download
def from_here(url, **options):
    assert url.startswith("https://github.com/ultralytics/assets/releases/download/"), url
    return download(url=url.replace("https://github.com", sys.argv[1]), **options, retry=0)
downloads.safe_download = from_here
for name in ("yolo11n.pt", "yolo11s.pt", "best.pt"):
    try:
        print(describe_detector(name).weights)
    except FileNotFoundError as error:
        print(error)
"""


@pytest.mark.slow
def test_published_weights_are_fetched_by_ultralytics_own_downloader(tmp_path: Path) -> None:
    weights = os.urandom(200_000)

    class Assets(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = self.path.endswith("/yolo11n.pt")
            self.send_response(200 if there else 404)
            self.send_header("Content-Length", str(len(weights) if there else 0))
            self.end_headers()
            self.wfile.write(weights if there else b"")

        def log_message(self, *_: object) -> None:
            pass

    keep = {name: value for name, value in os.environ.items() if name not in ("YOLO_OFFLINE", "HF_HUB_OFFLINE")}
    with ThreadingHTTPServer(("127.0.0.1", 0), Assets) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [sys.executable, "-c", FETCH, f"http://127.0.0.1:{server.server_port}"],
            cwd=tmp_path,
            env={**keep, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()[-3:]
    assert first.startswith("yolo11n.pt#")
    assert "yolo11s.pt` does not exist, and ultralytics cannot download it" in second
    assert "best.pt` does not exist, and ultralytics does not publish it" in third
    assert "AGPL-3.0" in done.stderr
    assert "pickle" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["yolo11n.pt"]
    assert (tmp_path / "yolo11n.pt").read_bytes() == weights
