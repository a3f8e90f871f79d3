"""What the step benchmark compares, on a tiny model: the reference style computes our loss."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

from fastgoal import FastGoalCLIPModel, FastGoalProcessor

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "train_step.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("train_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_step"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_step"]


@pytest.fixture(scope="module")
def batch(bench, tiny_clip):
    rng = random.Random(0)
    caption = "A red barn. A grey dog lies on 3.5 bales of hay. Clouds."
    spans = [(0, 11), (12, 48), (49, 56)]
    processor = FastGoalProcessor.from_clip(str(tiny_clip))
    return processor, bench.make_batch(processor, [bench.make_row(caption, spans, rng) for _ in range(4)])


def test_the_reference_style_has_our_loss_and_gradients(bench, batch, tiny_clip, tmp_path):
    processor, batch = batch
    model = FastGoalCLIPModel.from_clip(str(tiny_clip))
    steps, trainer = bench.build_steps(model, processor, "cpu", str(tmp_path))
    assert bench.check_equal(model, trainer, batch, processor.tokenizer) < 1e-5
    gradients = []
    for name in ("our step", "reference style"):
        model.zero_grad()
        steps[name](model, batch).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=1e-4, msg=name)


def test_every_step_has_a_loss(bench, batch, tiny_clip, tmp_path):
    processor, batch = batch
    model = FastGoalCLIPModel.from_clip(str(tiny_clip))
    steps, _ = bench.build_steps(model, processor, "cpu", str(tmp_path))
    losses = {name: step(model, batch).item() for name, step in steps.items()}
    assert losses["our step without TSL"] < losses["our step"] == pytest.approx(losses["reference style"], abs=1e-5)


def test_operations_are_counted(bench, batch, tiny_clip, tmp_path):
    processor, batch = batch
    model = FastGoalCLIPModel.from_clip(str(tiny_clip)).train()
    steps, _ = bench.build_steps(model, processor, "cpu", str(tmp_path))
    work = {name: bench.count_flops(model, step, batch) for name, step in steps.items()}
    assert work["the two towers alone"] < work["our step without TSL"] < work["our step"] < work["reference style"]
    assert work["plain CLIP fine-tuning"] < work["the two towers alone"]


def test_share_of_padding(bench):
    # 1 + 3 and 2 + 2 tokens in batches of two: 8 of 10 places are filled.
    assert bench.padded_share([torch.tensor([1, 3]), torch.tensor([2, 2])]) == pytest.approx(0.2)


def test_made_up_captions_have_a_token_a_letter(bench):
    processor = bench.build_processor(None, 32)
    caption, spans = bench.read_captions(None, random.Random(0))[0]
    ids = processor.tokenizer(caption, truncation=False)["input_ids"]
    assert len(ids) == len(caption.split()) + 2
    assert all(caption[start:end].endswith(" .") for start, end in spans)
    assert processor.sentence_mask(caption, *spans[1]).sum() == len(caption[slice(*spans[1])].split())


def test_tsl_is_timed_by_itself(bench, batch, tiny_clip):
    """It runs on the batch's own masks and leaves no gradient behind."""
    _, batch = batch
    model = FastGoalCLIPModel.from_clip(str(tiny_clip))
    assert 0 < bench.tsl_seconds(model, batch, "cpu", repeats=2) < 10
    assert all(parameter.grad is None for parameter in model.parameters())
