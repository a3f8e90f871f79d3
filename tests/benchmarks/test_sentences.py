"""The comparison of sentence splitters prints what they disagree about, and no more lines than asked for."""

import json
from pathlib import Path

import pytest

from benchmarks import sentences


def test_differences_name_the_splitters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "captions.jsonl"
    rows = [
        {"id": "same", "caption": "A dog.  A cat."},
        {"id": "art", "captions": ["Street art. Posters hang.", "Trees, etc. Birds fly."]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    real = sentences.load_splitters()
    monkeypatch.setattr(sentences, "load_splitters", lambda: {name: real[name] for name in ("fastgoal", "sentencex")})
    monkeypatch.setattr("sys.argv", ["sentences.py", str(path), "--lines", "1"])
    sentences.main()
    difference, summary = capsys.readouterr().out.splitlines()
    assert difference == "art [fastgoal] 'Street art. | Posters hang.'"
    assert summary.startswith("3 captions, 2 differences, captions per second: fastgoal ")
