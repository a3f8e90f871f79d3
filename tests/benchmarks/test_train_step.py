"""What the step benchmark compares, on a tiny model: the reference style computes our loss."""

import random
from argparse import Namespace

import pytest
import torch

from benchmarks import train_step as bench
from benchmarks.loader import make_row
from fastgoal import FastGoalCLIPModel, FastGoalProcessor


@pytest.fixture(scope="module")
def batch(tiny_clip):
    rng = random.Random(0)
    caption = "A red barn. A grey dog lies on 3.5 bales of hay. Clouds."
    spans = [(0, 11), (12, 48), (49, 56)]
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    return processor, bench.make_batch(processor, [make_row(caption, spans, rng) for _ in range(4)])


def test_the_reference_style_has_our_loss_and_gradients(batch, tiny_clip, tmp_path):
    processor, batch = batch
    model = FastGoalCLIPModel.from_base(str(tiny_clip))
    steps, trainer = bench.build_steps(model, processor, "cpu", str(tmp_path))
    assert bench.check_equal(model, trainer, batch, processor.tokenizer) < 1e-5
    gradients = []
    for name in ("our step", "reference style"):
        model.zero_grad()
        steps[name](model, batch).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=1e-4, msg=name)


def test_every_step_has_a_loss(batch, tiny_clip, tmp_path):
    processor, batch = batch
    model = FastGoalCLIPModel.from_base(str(tiny_clip))
    steps, _ = bench.build_steps(model, processor, "cpu", str(tmp_path))
    losses = {name: step(model, batch).item() for name, step in steps.items()}
    assert losses["our step without TSL"] < losses["our step"] == pytest.approx(losses["reference style"], abs=1e-5)


def test_operations_are_counted(batch, tiny_clip, tmp_path):
    processor, batch = batch
    model = FastGoalCLIPModel.from_base(str(tiny_clip)).train()
    steps, _ = bench.build_steps(model, processor, "cpu", str(tmp_path), [16])
    work = {name: bench.count_flops(model, step, batch) for name, step in steps.items()}
    assert work["the two towers alone"] < work["our step without TSL"] < work["our step"] < work["reference style"]
    assert work["plain CLIP fine-tuning"] < work["our step, crops of 16 pixels"] < work["the two towers alone"]


def test_tsl_is_timed_by_itself(batch, tiny_clip):
    """It runs on the batch's own masks and leaves no gradient behind."""
    _, batch = batch
    model = FastGoalCLIPModel.from_base(str(tiny_clip))
    assert 0 < bench.tsl_seconds(model, batch, "cpu", repeats=2) < 10
    assert all(parameter.grad is None for parameter in model.parameters())


def test_steps_are_timed(batch, tiny_clip, tmp_path, capsys):
    processor, batch = batch
    model = FastGoalCLIPModel.from_base(str(tiny_clip)).train()
    steps, _ = bench.build_steps(model, processor, "cpu", str(tmp_path))
    steps = {name: steps[name] for name in (bench.OURS, "plain CLIP fine-tuning", bench.FLOOR)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = Namespace(device="cpu", precision="fp32", rounds=2, batch_size=4)
    bench.time_steps(model, steps, lambda: batch, args)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows] == ["step", *steps]
    assert rows[1][5].strip() == "1.000x (1.000x)"  # our step against itself
    assert rows[3][6].strip() == "1.000x (1.000x)"  # the towers against themselves
