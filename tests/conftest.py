"""What all tests share: no network, nothing written outside temporary folders, and a tiny CLIP.

The environment is set before any test module imports a library that reads it.
"""

import atexit
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

_HOME = tempfile.mkdtemp(prefix="fastgoal-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_TOKEN", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)
os.environ.update(
    HF_HOME=os.path.join(_HOME, "huggingface"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    YOLO_CONFIG_DIR=os.path.join(_HOME, "ultralytics"),
    YOLO_OFFLINE="true",
    TOKENIZERS_PARALLELISM="false",
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers share the cores; one thread each is faster than all of them competing.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("fastgoal", deadline=None, derandomize=True, database=None)
settings.load_profile("fastgoal")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails at once, also on a machine that has one."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            pytest.fail(f"a test tried to connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a plain CLIP checkpoint as on the Hub: random weights, 77 text positions, a token for each byte,
    images of 32 pixels in patches of 8."""
    from tests.tiny_models import make_clip

    return make_clip(tmp_path_factory.mktemp("tiny_clip"))


@pytest.fixture(scope="session")
def tiny_bases(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family by name, see `tiny_models`."""
    from tests.tiny_models import make_metaclip2, make_siglip

    folder = tmp_path_factory.mktemp("tiny_bases")
    return {
        "clip": tiny_clip,
        "metaclip2": make_metaclip2(folder / "metaclip2"),
        "siglip": make_siglip(folder / "siglip"),
        "siglip2": make_siglip(folder / "siglip2", second=True),
    }


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    from tests.squares import rows_of_squares

    return rows_of_squares()


@pytest.fixture(scope="session")
def pairs_folder(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows as `fastgoal pairs` would write them."""
    from tests.squares import write_pairs

    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(rows, folder / "data")
    return folder


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `tiny_models.make_vlm`."""
    from tests.tiny_models import make_vlm

    return make_vlm(tmp_path_factory.mktemp("tiny_vlm"))
