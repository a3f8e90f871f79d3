"""What a worker says about a machine that lacks something."""

import base64
import subprocess
import sys
from importlib.metadata import version

import pytest
from ray import cloudpickle

from fastgoal.processing.builders import worker
from fastgoal.processing.builders.engine import Shard

JOB = {"folder": "/nowhere", "paths": [], "versions": {"torch": version("torch")}, "load_maker": b"no pickle"}

ELSEWHERE = """
import base64, importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fastgoal":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
from ray import cloudpickle
kind, job = cloudpickle.loads(base64.b64decode(sys.argv[1]))
from importlib import metadata
find = metadata.version
def version(name):
    if name == "fastgoal":
        raise metadata.PackageNotFoundError(name)
    return find(name)
metadata.version = version
kind(1).make(b"", job)
"""


def test_a_machine_without_the_package_says_so():
    cloudpickle.register_pickle_by_value(worker)
    try:
        sent = cloudpickle.dumps((worker.Worker, {**JOB, "versions": {**JOB["versions"], "fastgoal": "0.1.0"}}))
    finally:
        cloudpickle.unregister_pickle_by_value(worker)
    command = [sys.executable, "-c", ELSEWHERE, base64.b64encode(sent).decode()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "ImportError: The worker on " in done.stderr
    assert "the package fastgoal" in done.stderr
    assert "install fastgoal 0.1.0 there" in done.stderr


def make(**changes):
    return worker.Worker(1).make(cloudpickle.dumps(Shard(0, [1])), {**JOB, **changes})


def test_other_versions_are_refused_but_not_another_build():
    with pytest.raises(ValueError, match=r"worker on .* torch .*, and this process has torch 1\.0\.0"):
        make(versions={"torch": "1.0.0"})
    plain = version("torch").partition("+")[0]
    with pytest.raises(ValueError, match="cannot open the data"):
        make(versions={"torch": f"{plain}+cu999"})


def test_data_that_cannot_be_opened():
    with pytest.raises(ValueError, match=r"worker on '.*' cannot open the data: .*the same folders"):
        make()
