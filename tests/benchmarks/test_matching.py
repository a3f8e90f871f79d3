"""The matching report: known overlaps, and scenes whose right regions are known."""

import json
import sys

import pytest
from PIL import Image

from benchmarks import matching
from fastgoal.processing.matching import LocalPair
from fastgoal.processing.regions import Region
from fastgoal.processing.sentences import Sentence
from fastgoal.quickstart.scenes import draw_scenes


@pytest.mark.parametrize(
    ("box", "tight", "contains"),
    [
        ((0, 0, 10, 10), True, True),
        ((0, 0, 10, 5), True, False),  # IoU of exactly one half
        ((0, 0, 10, 4.9), False, False),
        ((0, 0, 100, 100), False, True),
        ((20, 20, 30, 30), False, False),
    ],
)
def test_overlap(box, tight, contains):
    assert matching.overlap(box, (0, 0, 10, 10)) == (tight, contains)


def test_right_share():
    """Each sentence gets its object's own box but the best pair of every scene, which gets a corner."""
    scenes = draw_scenes(4, 0)
    matches = []
    for scene in scenes:
        pairs = []
        for place, things in enumerate(scene.sentence_things):
            first = place == next(i for i, known in enumerate(scene.sentence_things) if known)
            box = (0.0, 0.0, 1.0, 1.0) if first else tuple(map(float, scene.boxes[things[0] if things else 0]))
            pairs.append(LocalPair(Sentence("", 0, 1), Region(box), 0.5, first, place, 0))
        matches.append(pairs)
    told = sum(len(things) for scene in scenes for things in scene.sentence_things)
    assert matching.right_share(scenes, matches, best=True) == 0.0
    assert matching.right_share(scenes, matches, best=False) == pytest.approx((told - 4) / told)


def test_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["matching", "--scenes", "6"])
    matching.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| base")]
    boxes = next(row for row in rows if "objects' boxes" in row)
    assert len(rows) == 3
    assert float(boxes.split("|")[4].strip(" %")) > 50  # the small CLIP knows what it was trained on

    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    things = [{"bbox": [0, 0, 50, 50]}, {"bbox": [10, 10, 30, 30]}, {"bbox": [45, 5, 60, 95]}, {"bbox": [0, 0, 5, 5]}]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "boxes": things}) + "\n")
    monkeypatch.setattr(matching, "load_detector", lambda name: name)
    monkeypatch.setattr(matching, "find_regions", lambda name, images: [[Region((46.0, 4.0, 60.0, 96.0))]])
    monkeypatch.setattr(sys, "argv", ["matching", "--photographs", str(tmp_path), "--detector", "it"])
    matching.main()
    out = capsys.readouterr().out
    assert "3 true objects" in out  # the fourth is too small
    assert "| detector | 1.0 | 33.3% | 33.3% |" in out
    assert "| five default regions | 5.0 | 33.3% | 66.7% |" in out
    assert "| both | 6.0 | 66.7% | 100.0% |" in out
