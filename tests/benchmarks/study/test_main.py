"""The study as a command, in small: runs are kept and told truly."""

import json
import sys

import pytest
from PIL import Image

from benchmarks.study import __main__ as study
from benchmarks.study import report, runs
from benchmarks.study.arms import Arm, Question, Sizes
from benchmarks.study.runs import Seed
from fastgoal.quickstart.tour import BASE


@pytest.mark.slow
def test_runs_once_and_tells_what_came_out(tmp_path, monkeypatch, capsys):
    page = tmp_path / "STUDY.md"
    page.write_text("# Study\n<!-- table q1 -->\nstale\n<!-- end -->\n![R@1](results/q1.png)\n")
    arms = (Arm("before", "none"), Arm("global", "global"), Arm("FAST-GOAL"))
    halfway = Arm("half", average=0.5)
    questions = {1: Question("Which losses help?", (*arms, halfway), "global")}
    monkeypatch.setattr(study, "QUESTIONS", questions)
    monkeypatch.setattr(report, "QUESTIONS", questions)
    monkeypatch.setattr(study, "HERE", tmp_path)
    command = ["study", "--base", str(BASE), "--work", str(tmp_path / "work"), "--question", "1", "--seeds", "0", "1"]
    command += ["--train-scenes", "16", "--test-scenes", "20", "--batch-size", "8", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", command)
    study.main()
    result = json.loads((tmp_path / "results" / "q1.json").read_text())
    rows = {row["arm"]: row for row in result["rows"]}
    assert [rows[name]["steps"] for name in ("before", "global", "FAST-GOAL")] == [0, 2, 2]
    assert len(rows["before"]["R@1"]["values"]) == 2
    assert "| FAST-GOAL |" in capsys.readouterr().out

    monkeypatch.setattr(runs, "train_arm", None)  # a second run finds everything there
    study.main()
    assert json.loads((tmp_path / "results" / "q1.json").read_text()) == result

    # Tables of what is trained: a seed that an arm lacks is not counted, an arm without any is left out.
    sizes = Sizes(**result["sizes"])
    kept = {seed: Seed(seed, sizes, "test", None, BASE, tmp_path / "work") for seed in (0, 1)}
    kept[1].result_path(arms[2]).unlink()
    for seed in kept.values():
        seed.result_path(halfway).unlink()
    monkeypatch.setattr(sys, "argv", [*command, "--tables"])
    study.main()
    fewer = {row["arm"]: row for row in json.loads((tmp_path / "results" / "q1.json").read_text())["rows"]}
    assert fewer.keys() == {"before", "global", "FAST-GOAL"}
    assert fewer["FAST-GOAL"]["seeds"] == [0]
    assert fewer["FAST-GOAL"]["R@1"]["values"] == rows["FAST-GOAL"]["R@1"]["values"][:1]
    assert fewer["global"] == rows["global"]
    assert "(seeds: 1)" in capsys.readouterr().out

    assert "stale" not in page.read_text()
    assert "| before |" in page.read_text()
    assert Image.open(tmp_path / "results" / "q1.png").width > 500
