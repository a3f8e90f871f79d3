"""The study's page is what its results say."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.study import report

STUDY = Path(__file__).resolve().parents[3] / "benchmarks" / "study"


def test_interval():
    mean, half = report.interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.303 / math.sqrt(3)))


def test_the_page_has_the_tables_of_the_results_beside_it():
    page = (STUDY / "STUDY.md").read_text(encoding="utf-8")
    paths = sorted((STUDY / "results").glob("q*.json"))
    assert len(paths) == 12
    for path in paths:
        table = report.table(json.loads(path.read_text()))
        assert f"<!-- table {path.stem} -->\n{table}\n<!-- end -->" in page, path.name


def test_a_page_without_results(tmp_path):
    (tmp_path / "STUDY.md").write_text("<!-- table q9 -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="q9"):
        report.write_report(tmp_path, tmp_path / "STUDY.md")
