"""The benchmark for a GPU runs as a whole on the CPU with tiny models."""

import json

import pytest

from benchmarks import gpu as bench


@pytest.mark.slow
def test_all_parts_come_out(tmp_path, capsys):
    report = bench.main(["--tiny", "--device", "cpu", "--model", "b32", "--json", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text()) == report
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == report
    assert [*report["results"]] == ["matmul", "step", "loader", "pairs", "evaluation"]
    steps = {row["step"]: row for row in report["results"]["step"]}
    assert {"our step", "our step, mini-batches of 2", "plain CLIP fine-tuning, plain transformers"} <= steps.keys()
    assert all(row["seconds"] > 0 for row in steps.values())
    for package in ("open_clip", "sentence_transformers"):
        name = f"plain CLIP fine-tuning, {package}"
        assert name in steps or f"{name}: not installed" in report["notes"]
        assert name in printed
    assert report["results"]["evaluation"][0]["captions"] == 8


def test_what_is_not_reached_or_fails_is_named(monkeypatch, capsys):
    def fails(made):
        raise RuntimeError("out of memory\nmore lines")

    def slow(made):
        made.args.minutes = 0
        return [{"x": 1}]

    monkeypatch.setattr(bench, "PARTS", {"matmul": fails, "step": slow, "compile": slow, "pairs": slow})
    report = bench.main(["--device", "cpu", "--tiny"])
    assert report["results"] == {"step": [{"x": 1}]}
    assert report["notes"] == ["matmul: out of memory", "pairs: not reached"]
    assert "| x |\n| --- |\n| 1 |" in capsys.readouterr().out


def test_a_step_that_fails_or_is_late_is_named(tmp_path):
    made = bench.Bench(bench.parse(["--device", "cpu", "--tiny"]), tmp_path)

    def fails():
        raise RuntimeError("too little memory")

    def late():
        made.end = 0.0
        return {"step": "late"}

    made.end = float("inf")
    assert list(made.time_steps({"a": fails, "b": late, "c": late})) == [{"step": "late"}]
    assert made.notes == ["a: too little memory", "c: not reached"]
