"""Stored tokens against those that the tokenizer makes for a batch."""

import pytest
import torch
from datasets import Dataset

from fastgoal import FastGoalCollator, FastGoalProcessor
from fastgoal.trainer.batches import rows as rows_module
from fastgoal.trainer.batches import token_table
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.batches.token_table import TokenTable, pad_tokens

CAPTIONS = ["A red cup.", "Höfe und 😀 Bäume. " * 3, "x", "Word " * 400, "  Two  spaces. And   more."]


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return FastGoalProcessor.from_base(tiny_clip)


@pytest.fixture
def data(pairs_folder):
    return TrainingData(str(pairs_folder))


@pytest.mark.parametrize("chunk", [2, 10_000])
def test_the_tokens_are_those_of_the_tokenizer(processor, monkeypatch, chunk):
    monkeypatch.setattr(token_table, "CHUNK", chunk)
    table = TokenTable(CAPTIONS, processor.tokenizer)
    for rows in ([0], [4, 1], [3, 2, 0], range(5)):
        expected = processor.tokenizer(
            [CAPTIONS[row] for row in rows],
            padding=True,
            truncation=True,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        padded = pad_tokens([table[row] for row in rows], processor.tokenizer)
        assert padded.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(padded[name], value), name
    assert table.lengths == [len(ids) for ids in processor.tokenizer(CAPTIONS, truncation=True)["input_ids"]]


def test_positions_beyond_16_bits(processor):
    caption = " " * 70_000 + "end"
    offsets = TokenTable([caption], processor.tokenizer)[0].spans
    expected = processor.tokenizer(caption, truncation=True, return_offsets_mapping=True)["offset_mapping"]
    assert offsets.tolist() == [list(span) for span in expected]


def test_lengths_before_truncation(processor, data, monkeypatch):
    """Of all captions if they are tokenized, of a sample of others, and of none that cannot be read alone."""
    tokenizer = processor.tokenizer
    captions = [*CAPTIONS, "x" * 246, "x" * 247]
    expected = [len(ids) for ids in tokenizer(captions, truncation=False)["input_ids"]]
    assert (expected[-2:], tokenizer.model_max_length) == ([248, 249], 248)
    rows = [{"image": None, "caption": caption} for caption in captions]
    for known in (TrainingData(rows), TrainingData(Dataset.from_list(rows))):
        assert known.whole_caption_lengths(tokenizer) == expected
    tokenized = TrainingData(rows)
    tokenized.tokens = TokenTable(captions, tokenizer)
    read = []
    monkeypatch.setattr(
        tokenized, "captions", lambda indices: [read.append(index) or captions[index] for index in indices]
    )
    assert tokenized.whole_caption_lengths(tokenizer) == expected
    assert read == [3, 5, 6]  # those that may be truncated
    assert data.whole_caption_lengths(tokenizer) == data.caption_lengths(processor)  # a source of short captions
    monkeypatch.setattr(rows_module, "SAMPLED_CAPTIONS", 3)
    assert TrainingData(rows).whole_caption_lengths(tokenizer) == expected[::3]
    assert TrainingData(range(3)).whole_caption_lengths(tokenizer) == []


def test_batches_are_the_same_with_and_without(data, processor):
    collator = FastGoalCollator(processor)
    plain = collator([data[row] for row in (3, 0, 5)])
    counts = data.caption_lengths(processor)
    tokenized = data.for_training(processor.tokenizer)
    rows = [tokenized[row] for row in (3, 0, 5)]
    assert [len(row.tokens.ids) for row in rows] == [counts[row] for row in (3, 0, 5)]
    assert tokenized.caption_lengths(processor) == counts
    batch = collator(rows)
    assert batch.keys() == plain.keys()
    assert batch.pop("names") == plain.pop("names")
    for name, value in plain.items():
        assert torch.equal(batch[name], value), name


def test_tokens_belong_to_one_training(data, processor, tiny_clip):
    data.for_training(processor.tokenizer)
    shorter = FastGoalProcessor.from_base(tiny_clip, 77)
    plain = FastGoalCollator(shorter)([data[row] for row in range(4)])
    again = data.for_training(shorter.tokenizer)
    batch = FastGoalCollator(shorter)([again[row] for row in range(4)])
    assert torch.equal(batch["input_ids"], plain["input_ids"])
    assert batch["input_ids"].shape[1] <= 77


def test_captions_are_not_tokenized_where_it_does_not_pay(data, processor, monkeypatch):
    assert data.for_training(processor.tokenizer, rows_seen=4).tokens is None  # of 12
    assert data.for_training(processor.tokenizer, rows_seen=12).tokens is not None
    assert data.for_training(processor.tokenizer, rows_seen=-4).tokens is not None
    monkeypatch.setattr(rows_module, "MOST_TOKENIZED", 3)
    assert data.for_training(processor.tokenizer).tokens is None
    assert data.for_training(processor.tokenizer)[0].tokens is None


def test_rows_with_and_without_tokens_make_a_batch(data, processor):
    expected = FastGoalCollator(processor)([data[1], data[2]])
    batch = FastGoalCollator(processor)([data.for_training(processor.tokenizer)[1], data[2]])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
