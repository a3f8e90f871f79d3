import math

import pytest
import torch

from fastgoal.processing.data.sources import SourceRow
from fastgoal.trainer.evaluation.measures.localization import _chance, first_hit, localization_queries


def test_first_hit_counts_ties_against_us():
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.5], [0.3, 0.3, 0.3, 0.3]])
    covered = torch.tensor([[False, False, True, False], [True, True, False, False]])
    assert first_hit(similarity, covered).tolist() == [3, 3]


def test_chance():
    assert _chance(10, 1, 5) == pytest.approx(0.5)
    assert _chance(10, 10, 1) == 1.0
    assert _chance(4, 2, 2) == pytest.approx(1 - 1 / math.comb(4, 2))


def test_labels_are_found_in_sentences():
    boxes = [
        {"bbox": [0, 0, 5, 5], "label": "dog"},
        {"bbox": [5, 0, 9, 5], "label": "dog"},
        {"bbox": [0, 0, 9, 9], "label": "dog", "iscrowd": 1},
        {"bbox": [1, 1, 3, 3], "label": "cat"},
        {"bbox": [2, 2, 4, 4], "sentence": "a red ball"},
    ]
    row = SourceRow("a.jpg", None, ["Two dogs run. A hotdog.", "The Dog sits."], {"boxes": boxes})
    queries = localization_queries(row)
    assert [query.text for query in queries] == ["a red ball", "Two dogs run.", "The Dog sits."]
    assert queries[1].boxes == [(0, 0, 5, 5), (5, 0, 9, 5)]


def test_a_pairs_row():
    columns = {
        "pairs": [{"sentence": 1, "region": 0, "score": 0.3, "best": True}],
        "sentences": [{"start": 0, "end": 2}, {"start": 3, "end": 5}],
        "regions": [{"box": [0, 1, 2, 3]}],
    }
    (query,) = localization_queries(SourceRow("a.jpg", None, ["A. B."], columns))
    assert (query.text, query.boxes) == ("B.", [(0, 1, 2, 3)])


def test_errors():
    with pytest.raises(ValueError, match=r"'boxes'.*`boxes_column`"):
        localization_queries(SourceRow("a.jpg", None, ["A."], {}))
    with pytest.raises(ValueError, match="box 0 must have 'bbox'"):
        localization_queries(SourceRow("a.jpg", None, ["A."], {"boxes": [{"bbox": [0, 0, 1, 1]}]}))
