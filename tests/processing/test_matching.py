"""Which pair is the best of an image."""

import torch

from fastgoal import Region, Sentence
from fastgoal.processing.matching import pair_up, rank_pairs


def test_the_best_pair_is_one_the_model_can_see():
    sentences = [Sentence("a", 0, 1), Sentence("b", 2, 3), Sentence("c", 4, 5)]
    regions = [Region((0, 0, 1, 1)), Region((1, 1, 2, 2))]
    similarity = torch.tensor([[0.9, 0.1], [0.2, 0.7], [0.5, 0.6]])
    best = lambda visible: [pair.best for pair in pair_up(sentences, regions, similarity, visible)]  # noqa: E731
    assert best(lambda s, r: True) == [True, False, False]
    assert best(lambda s, r: s.text != "a") == [False, True, False]
    assert best(lambda s, r: r is regions[1]) == [False, True, False]
    assert best(lambda s, r: False) == [True, False, False]


def test_pairs_are_ranked_among_those_the_model_sees():
    scores = [0.5, 0.9, 0.9, 0.1]
    assert rank_pairs(scores, lambda index: True) == [1, 2, 0, 3]
    assert rank_pairs(scores, lambda index: index != 1, 2) == [2, 0]
    assert rank_pairs(scores, lambda index: False) == [1]
    assert rank_pairs([], lambda index: True) == []
