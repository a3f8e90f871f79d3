"""mteb's recalls on the tasks of `mteb_task` are those of `fastgoal evaluate`."""

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from fastgoal import EvaluationOptions, evaluate
from fastgoal.mteb_tasks import mteb_task
from tests.published_files import write_docci

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".outsiders" / "mteb" / "bin" / "python"


@pytest.mark.outsider
@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="mteb is missing: make outsiders")
def test_mteb_finds_what_evaluate_finds(tiny_clip, tmp_path):
    write_docci(tmp_path / "docci", test=12)
    script, site_packages = ROOT / "tests" / "outsiders" / "mteb" / "run.py", sysconfig.get_path("purelib")
    command = [PYTHON, script, site_packages, tiny_clip, "docci", tmp_path / "docci", tmp_path / "recalls.json"]
    subprocess.run(command, check=True, timeout=300)
    metrics = evaluate(str(tiny_clip), tmp_path / "docci", EvaluationOptions(protocol="docci", resamples=0)).metrics
    found = json.loads((tmp_path / "recalls.json").read_text())
    assert found == pytest.approx({name: metrics[name] for name in found}, abs=1e-5)


def test_a_wrong_direction_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`direction`.*image_to_image"):
        mteb_task("docci", tmp_path, "image_to_image")
