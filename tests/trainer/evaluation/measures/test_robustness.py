import pytest

from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.processing.embedding import embed_texts
from fastgoal.processing.sentences import split_sentences
from fastgoal.trainer.evaluation.measures.embeddings import EncodedSource
from fastgoal.trainer.evaluation.measures.robustness import change_captions, measure_robustness

CAPTIONS = ["A cat sleeps. It is grey. The sofa is red.", "A dog runs. Grass is wet.", "One boat.", "A cat. A mouse."]
OWNER = [0, 1, 2, 0]


def sentences(text):
    return [sentence.text for sentence in split_sentences(text)]


def test_inserted_is_one_sentence_of_another_image():
    for number, changed in enumerate(change_captions(CAPTIONS, OWNER, "inserted")):
        before, after = sentences(CAPTIONS[number]), sentences(changed)
        (false,) = [sentence for sentence in after if sentence not in before]
        assert [sentence for sentence in after if sentence != false] == before
        others = [i for i in range(4) if OWNER[i] != OWNER[number]]
        assert any(false in sentences(CAPTIONS[i]) for i in others)


def test_shuffled_and_dropped():
    shuffled, dropped = (change_captions(CAPTIONS, OWNER, change) for change in ("shuffled", "dropped"))
    for before, order, less in zip(CAPTIONS, shuffled, dropped, strict=True):
        assert sorted(sentences(order)) == sorted(sentences(before))
        if len(sentences(before)) == 1:
            assert order == less == before
        else:
            assert order != before
            assert len(sentences(less)) == len(sentences(before)) - 1


def test_the_seed_decides():
    assert change_captions(CAPTIONS, OWNER, "inserted", 1) == change_captions(CAPTIONS, OWNER, "inserted", 1)
    assert change_captions(["A. B."], [0], "inserted") == ["A. B."]  # there is no other image
    with pytest.raises(ValueError, match=r"`change` .* got 'turned'"):
        change_captions(CAPTIONS, OWNER, "turned")


@pytest.mark.parametrize(("length", "changed"), [(77, 0), (248, 2)])
def test_a_model_of_77_tokens_loses_nothing_to_truncation(length, changed, tiny_clip):
    model = FastGoalCLIPModel.from_base(str(tiny_clip), max_text_length=length)
    processor = FastGoalProcessor.from_base(str(tiny_clip), max_text_length=length)
    captions = ["x " * 70, "x " * 90, "x " * 100, "x"]
    embeds = embed_texts(model, processor, captions)
    encoded = EncodedSource(embeds, embeds, captions, [0, 1, 2, 3], [0, 1, 2, 3])
    result = measure_robustness(model, processor, encoded, encoded.ranks("cpu"))["truncated"]
    assert (result.changed, result.drop == 0) == (changed, not changed)
