"""Which region a sentence gets, and which pair is the best of an image."""

import torch

from fastgoal import Region
from fastgoal.processing.matching import pair_up, rank_pairs

CAPTION = "A cup. " + "Many letters. " * 4 + "The end."


def test_the_best_pair_is_one_the_model_can_see(processor):
    """The model reads 248 tokens, each a letter, and sees the square in the middle of an image of 64 x 32 pixels."""
    sentences = processor.split_sentences(CAPTION)[::5]
    regions = [Region((16, 0, 48, 32)), Region((0, 0, 8, 32))]

    def chosen(caption, *scores, spans=sentences):
        pairs = pair_up(processor, caption, spans, regions, (64, 32), torch.tensor(scores))
        assert [pair.sentence_index for pair in pairs] == [0, 1]
        assert [pair.score for pair in pairs] == torch.tensor(scores).amax(1).tolist()
        return [(pair.region_index, pair.best) for pair in pairs]

    assert chosen(CAPTION, [0.9, 0.1], [0.8, 0.7]) == [(0, True), (0, False)]
    # The better region lies outside the crop.
    assert chosen(CAPTION, [0.6, 0.1], [0.2, 0.7]) == [(0, True), (1, False)]
    assert chosen(CAPTION, [0.1, 0.6], [0.2, 0.7]) == [(1, False), (1, True)]  # the model sees neither pair
    # The better sentence lies past the tokens that the model reads.
    long = "A cup. " + "x" * 300 + ". The end."
    spans = processor.split_sentences(long)
    assert chosen(long, [0.9, 0.1], [0.95, 0.7], spans=[spans[0], spans[-1]]) == [(0, True), (0, False)]


def test_pairs_are_ranked_among_those_the_model_sees():
    scores = [0.5, 0.9, 0.9, 0.1]
    assert rank_pairs(scores, lambda index: True) == [1, 2, 0, 3]
    assert rank_pairs(scores, lambda index: index != 1, 2) == [2, 0]
    assert rank_pairs(scores, lambda index: False) == [1]
    assert rank_pairs([], lambda index: True) == []
