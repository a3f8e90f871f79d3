"""A sample of the campaign; `make campaign` runs all of it."""

import json
import os
import subprocess
import sys

import pytest

RUN = """
import json, pathlib, sys, tempfile
from tests.campaign.harness import Kit, run_case
from tests.campaign.run import all_cases, warm_up

cases = [case for case in all_cases() if case.sample]
warm_up()
with tempfile.TemporaryDirectory() as place:
    kit = Kit.make(pathlib.Path(place))
    found = [run_case(case, kit, pathlib.Path(place) / "cases") for case in cases]
print(json.dumps([[one.case.area, one.case.name, one.result, one.right, one.why] for one in found]))
"""


@pytest.mark.slow
def test_a_sample_of_it_is_answered_as_due():
    # In a process that has no threads yet: the cases are forked from it.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) >= 30
    assert len({area for area, *_ in outcomes}) >= 9
    assert not [outcome for outcome in outcomes if not outcome[3]]


def test_every_case_has_a_name_of_its_own():
    from tests.campaign.run import all_cases

    assert len(all_cases()) >= 500
