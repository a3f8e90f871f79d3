"""Captions and rows of the benchmarks, and the cost of their batches before the model sees them."""

import random

import pytest
import torch

from benchmarks import loader as bench
from benchmarks.random_clip import build_processor


def test_share_of_padding():
    # 1 + 3 and 2 + 2 tokens in batches of two: 8 of 10 positions are not padding.
    assert bench.padded_share([torch.tensor([1, 3]), torch.tensor([2, 2])]) == pytest.approx(0.2)


def test_made_up_captions_have_one_token_a_letter():
    processor = build_processor(None, "b32")
    caption, spans = bench.read_captions(None, random.Random(0))[0]
    ids = processor.tokenizer(caption, truncation=False)["input_ids"]
    assert len(ids) == len(caption.split()) + 2
    assert all(caption[start:end].endswith(" .") for start, end in spans)
    assert processor.sentence_mask(caption, *spans[1]).sum() == len(caption[slice(*spans[1])].split())


def test_the_collator_makes_what_the_processor_makes(monkeypatch):
    monkeypatch.setattr(bench, "ROWS", 5)
    rng = random.Random(1)
    processor = build_processor(None, "b32")
    rows = bench.make_rows(bench.read_captions(None, rng), rng)
    expected, batch = bench.plain_batch(processor, rows), bench.FastGoalCollator(processor)(rows)
    assert set(expected) == set(batch)
    for name, value in expected.items():
        torch.testing.assert_close(batch[name], value, rtol=0, atol=2e-6)


def test_reports(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["loader", "--batch-size", "4"])
    monkeypatch.setattr(bench, "ROWS", 8)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    bench.main()
    out = capsys.readouterr().out
    assert all(out.count(f"| {size} | collator | ") == 1 for size in ("640x480", "1024x768"))
    shares = [float(line.split("|")[2].strip(" %")) for line in out.splitlines() if line.endswith("% |")]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 3


def test_shapes_of_an_epoch_are_counted():
    lengths = torch.tensor([[9, 3], [16, 4], [12, 5], [10, 8], [17, 2], [17, 9], [100, 100]])
    # Batches of two have (16, 4), (12, 8) and (17, 9); in eights (2, 1), (2, 1) and (3, 2).
    assert [bench.count_shapes(lengths, 2, multiple) for multiple in (1, 8)] == [3, 2]
