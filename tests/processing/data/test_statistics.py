"""Statistics of a folder with known counts, and of one with damaged rows."""

import re

import numpy as np
import pytest

from fastgoal.processing.data.duplicates import jaccard, word_runs
from fastgoal.processing.data.pairs_dataset import PairsFolder
from fastgoal.processing.data.statistics import histogram, inspect_pairs, nice_edges, summary
from fastgoal.processing.data.tokens import TokenCounter
from tests.known_pairs import rows, write


def test_known_counts(tmp_path, tiny_clip):
    folder = PairsFolder(write(tmp_path / "pairs", rows()))
    facts = inspect_pairs(folder, TokenCounter(str(tiny_clip)))
    assert (facts["rows"], facts["shards"], facts["missing_shards"], facts["finished"]) == (5, 2, [], True)
    assert facts["pairs"]["count"] == 14
    assert facts["pairs"]["best_scores"]["mean"] == pytest.approx((0.5 + 0.25 + 0.4 + 0.1 - 0.2) / 5)
    assert sum(facts["pairs"]["histogram"]["counts"]) == 14
    assert sum(facts["pairs"]["best_histogram"]["counts"]) == 5
    assert facts["regions"]["by_source"] == {
        "default": {"candidates": 25, "chosen": 8, "best": 2},
        "ultralytics": {"candidates": 4, "chosen": 6, "best": 3},
    }
    assert facts["regions"]["chosen_labels"][0] == {"label": "thing", "source": "ultralytics", "chosen": 6}
    assert (facts["no_detection"]["rows"], facts["no_detection"]["files"]) == (2, ["2.jpg", "4.jpg"])
    assert facts["captions"]["sentences"]["max"] == 5
    # The tiny tokenizer has a token for every character that is not a space.
    lengths = [len(re.sub(r"\s", "", one["caption"])) + 2 for one in rows()]
    assert facts["captions"]["tokens"]["mean"] == pytest.approx(np.mean(lengths))
    assert max(lengths) <= facts["captions"]["tokens"]["fitting"] < max(lengths) + 8
    assert facts["captions"]["tokens"]["truncated"] == {
        "77": {"rows": 2, "share": 0.4},
        "248": {"rows": 2, "share": 0.4},
    }
    assert facts["duplicate_captions"]["rows"] == 2
    assert facts["duplicate_captions"]["worst"][0]["files"] == ["0.jpg", "1.jpg"]
    near = facts["near_duplicate_captions"]
    assert (near["rows"], near["groups"], near["worst"][0]["files"]) == (2, 1, ["2.jpg", "3.jpg"])
    assert near["worst"][0]["jaccard"] == pytest.approx(jaccard(*(word_runs(one["caption"]) for one in rows()[2:4])))
    assert facts["duplicate_images"]["worst"] == [{"times": 2, "files": ["0.jpg", "1.jpg"]}]
    assert facts["problems"]["count"] == 0
    assert facts["shown"] == {"sample": [0, 1, 2, 3, 4], "lowest": [4, 3, 1]}


def test_without_repetitions_no_image_is_read(tmp_path, monkeypatch):
    folder = PairsFolder(write(tmp_path / "pairs", rows()))
    whole = inspect_pairs(folder)
    read = []
    batches = folder.batches
    monkeypatch.setattr(folder, "batches", lambda columns, size=1024: read.extend(columns) or batches(columns, size))
    facts = inspect_pairs(folder, repetitions=False)
    assert not any(column.startswith("image") for column in read)
    assert set(whole) - set(facts) == {"duplicate_captions", "near_duplicate_captions", "duplicate_images"}
    assert facts == {name: whole[name] for name in facts}
    words = [len(one["caption"].split()) for one in rows()]
    assert facts["captions"]["words"]["mean"] == pytest.approx(np.mean(words))
    assert facts["captions"]["words"]["median"] == np.median(words)
    assert facts["captions"]["words"]["max"] == max(words)


def test_damaged_rows_are_named(tmp_path):
    broken = rows()
    broken[0]["pairs"][1]["score"] = None
    broken[1]["pairs"][0]["region"] = None
    broken[2]["pairs"][0]["region"] = 99
    broken[3]["pairs"][0]["best"] = False
    broken[4]["caption"] = None
    facts = inspect_pairs(PairsFolder(write(tmp_path / "pairs", broken)))
    assert sorted(facts["problems"]["first"]) == [
        "row 0 (0.jpg) has a pair without a region, a sentence or a score",
        "row 1 (1.jpg) has a pair without a region, a sentence or a score",
        "row 2 (2.jpg) has a pair without a region, a sentence or a score",
        "row 3 (3.jpg) does not have exactly one best pair",
        "row 4 (4.jpg) has a sentence outside of its caption",
        "row 4 (4.jpg) has no caption",
    ]
    assert facts["problems"]["count"] == 6
    assert facts["pairs"]["count"] == 11


def test_histograms_have_round_edges_and_lose_nothing():
    values = np.random.default_rng(0).normal(0.2, 0.05, 999)
    edges = nice_edges(float(values.min()), float(values.max()))
    counts = histogram(values, edges)["counts"]
    assert sum(counts) == 999
    assert counts == np.histogram(values, edges)[0].tolist()
    assert np.allclose(np.diff(edges), 0.01)
    assert sum(histogram(values, [0.2, 0.21])["counts"]) == 999
    assert summary(values[:0]) == {}
