"""The benchmark of the search writes an index of made-up vectors and measures it."""

import re
import sys

import pytest

pytest.importorskip("lancedb")

from benchmarks import search
from fastgoal.search import index


def test_it_writes_and_searches(monkeypatch, capsys):
    monkeypatch.setattr(index, "embedder_fingerprint", index.embedder_fingerprint)  # main replaces these three
    monkeypatch.setattr(index, "_list_files", index._list_files)
    monkeypatch.setattr(index, "EXACT_UP_TO", index.EXACT_UP_TO)
    monkeypatch.setattr(search, "GROUPS", 20)
    monkeypatch.setattr(sys, "argv", ["search", "--images", "3000"])
    search.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3,000 vectors of width 512: written in ")
    assert float(re.findall(r"(\S+) MB", lines[0])[0]) >= 3  # 512 numbers of two bytes each
    assert "opened" in lines[1]
    assert "a query: " in lines[2]
