"""Tokens that were made beforehand against those that the tokenizer makes for a batch."""

import pytest
import torch

from fastgoal import FastGoalCollator, FastGoalProcessor, FastGoalTrainingArguments
from fastgoal.trainer.batches import rows as pair_data
from fastgoal.trainer.batches import token_table
from fastgoal.trainer.batches.rows import PairData, token_counts
from fastgoal.trainer.batches.token_table import MADE_TOKENS, TokenTable

CAPTIONS = ["A red cup.", "Höfe und 😀 Bäume. " * 3, "x", "Word " * 400, "  Two  spaces. And   more."]


@pytest.fixture(scope="module")
def processor(tiny_clip):
    return FastGoalProcessor.from_base(tiny_clip)


@pytest.fixture
def data(pairs_folder):
    return PairData(str(pairs_folder))


def plan(**options):
    return FastGoalTrainingArguments(use_cpu=True, **options)


@pytest.mark.parametrize("at_once", [2, 10_000])
def test_the_tokens_are_those_of_the_tokenizer(processor, monkeypatch, at_once):
    monkeypatch.setattr(token_table, "AT_ONCE", at_once)
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
        found = table.batch(list(rows), processor.tokenizer)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
    assert table.lengths == [len(ids) for ids in processor.tokenizer(CAPTIONS, truncation=True)["input_ids"]]


def test_positions_beyond_16_bits(processor):
    caption = " " * 70_000 + "end"
    offsets = TokenTable([caption], processor.tokenizer).batch([0], processor.tokenizer)["offset_mapping"]
    expected = processor.tokenizer([caption], truncation=True, return_offsets_mapping=True)["offset_mapping"]
    assert offsets.tolist() == [[list(span) for span in row] for row in expected]


def test_batches_are_the_same_with_and_without(data, processor):
    collator = FastGoalCollator(processor)
    plain = collator([data[row] for row in (3, 0, 5)])
    counts = token_counts(data, processor)
    data.tokenize(processor, plan())
    rows = [data[row] for row in (3, 0, 5)]
    assert rows[0][MADE_TOKENS] == (data.tokens, 3)
    assert token_counts(data, processor) == counts
    made = collator(rows)
    assert made.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(made[name], value), name


def test_a_tokenizer_that_has_changed_is_asked_again(data, processor, tiny_clip):
    data.tokenize(processor, plan())
    shorter = FastGoalProcessor.from_base(tiny_clip, 77)
    rows = [data[row] for row in range(4)]
    made = FastGoalCollator(shorter)(rows)
    plain = [{name: value for name, value in row.items() if name != MADE_TOKENS} for row in rows]
    assert torch.equal(made["input_ids"], FastGoalCollator(shorter)(plain)["input_ids"])
    assert made["input_ids"].shape[1] <= 77


def test_when_it_does_not_pay(data, processor, monkeypatch):
    data.tokenize(processor, plan(max_steps=2, per_device_train_batch_size=2))
    assert data.tokens is None
    monkeypatch.setattr(pair_data, "MOST_TOKENIZED", 3)
    data.tokenize(processor, plan())
    assert data.tokens is None
    assert MADE_TOKENS not in data[0]


def test_rows_of_two_tables_are_not_mixed(data, pairs_folder, processor):
    other = PairData(str(pairs_folder))
    other.source.captions = lambda count: ["Other words."] * count
    plain = FastGoalCollator(processor)([data[1], data[2]])
    for one in (data, other):
        one.tokenize(processor, plan())
    made = FastGoalCollator(processor)([data[1], other[2]])
    assert torch.equal(made["input_ids"], plain["input_ids"])
