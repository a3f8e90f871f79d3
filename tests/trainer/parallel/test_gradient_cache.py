"""Gradient caching gives the loss and the gradients of the whole batch."""

import pytest
import torch

from fastgoal.trainer.parallel.gradient_cache import HalvedOnError, cached_backward, split_batch
from tests.tiny_trainers import make_trainer
from tests.trainer.small_memory import SmallMemory

WEIGHTS = {
    "fast_goal": {},
    "global": {"objective": "global"},
    "local": {"objective": "local"},
    "tsl": {"global_weight": 0.0, "local_weight": 0.0, "tsl_weight": 1.0},
    "sparc": {"objective": "sparc"},
    "all": {"sparc_weight": 0.7},
    "smaller crops": {"token_weight": 0.1, "crop_size": 16},
}


@pytest.fixture
def trainer_for(tiny_clip, rows, tmp_path):
    def make(**changes):
        return make_trainer(tiny_clip, tmp_path / "run", rows, **{"per_device_train_batch_size": 12, **changes})

    return make


def step_of(trainer, batch):
    """Return the loss and the gradients of one step from the initial weights."""
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    loss = trainer.training_step(trainer.model, dict(batch))
    return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def assert_same(cached, whole, tolerance=1e-5):
    assert cached[0] == pytest.approx(whole[0], abs=tolerance)
    assert cached[1].keys() == whole[1].keys()
    for name, gradient in whole[1].items():
        torch.testing.assert_close(cached[1][name], gradient, atol=tolerance, rtol=tolerance, msg=name)
    assert max(gradient.abs().max() for gradient in whole[1].values()) > 1e-3


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("size", [1, 5, 100])
def test_same_as_the_whole_batch(trainer_for, rows, weights, size):
    whole = trainer_for(**WEIGHTS[weights])
    batch = whole.data_collator(rows)
    if "region_mask" in batch:
        batch["region_mask"][2] = False  # a row without TSL
    cached = trainer_for(**WEIGHTS[weights], mini_batch_size=size)
    assert_same(step_of(cached, batch), step_of(whole, batch))
    assert cached._part_sums.keys() == whole._part_sums.keys()
    for name, value in whole._part_sums.items():
        torch.testing.assert_close(cached._part_sums[name], value, msg=name)


def test_same_with_accumulation(trainer_for, rows):
    whole = trainer_for(gradient_accumulation_steps=4)
    cached = trainer_for(gradient_accumulation_steps=4, mini_batch_size=5)
    batch = whole.data_collator(rows)
    assert_same(step_of(cached, batch), step_of(whole, batch))


def test_same_under_autocast(trainer_for, rows):
    whole = trainer_for(bf16=True, sparc_weight=0.7)
    cached = trainer_for(bf16=True, sparc_weight=0.7, mini_batch_size=5)
    batch = whole.data_collator(rows)
    # bfloat16 has 8 bits: sums over mini-batches of 5 rows are rounded differently than sums over 12 rows.
    largest = max(gradient.abs().max() for gradient in step_of(trainer_for(sparc_weight=0.7), batch)[1].values())
    assert_same(step_of(cached, batch), step_of(whole, batch), tolerance=float(largest) / 100)
    one = trainer_for(bf16=True, sparc_weight=0.7, mini_batch_size=12)
    assert_same(step_of(one, batch), step_of(trainer_for(bf16=True, sparc_weight=0.7), batch))


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_auto_halves_until_the_memory_is_enough(trainer_for, rows, in_backward, steps, caplog):
    small = trainer_for(mini_batch_size=3, gradient_accumulation_steps=steps)
    auto = trainer_for(mini_batch_size="auto", gradient_accumulation_steps=steps)
    batch = small.data_collator(rows)
    for number in range(steps):  # the memory becomes smaller during the last of the accumulated batches
        memory = SmallMemory(auto, 12 if number < steps - 1 else 4, in_backward)
        expected, got = step_of(small, batch), step_of(auto, batch)
        if number < steps - 1:
            assert memory.sizes == [12]  # once: the whole batch needs no cache
    # In the backward pass the first of two mini-batches has added its gradients before the second one fails.
    assert memory.sizes == [12, *([6] * 4 if in_backward else [6]), *[3] * 8]
    assert auto._halved.size == 3
    assert_same(got, expected, 1e-6)
    assert "`mini_batch_size=3`" in caplog.text


def test_auto_does_not_hide_that_one_row_is_too_many(trainer_for, rows):
    trainer = trainer_for(mini_batch_size="auto")
    SmallMemory(trainer, 0)
    with pytest.raises(torch.OutOfMemoryError):
        step_of(trainer, trainer.data_collator(rows))


def test_failed_steps_leave_random_numbers_alone():
    seen, failed = [], []

    def step(size):
        seen.append(torch.rand(1).item())
        if size > 2:
            failed.append(size)
            raise torch.OutOfMemoryError
        return torch.zeros(())

    halved = HalvedOnError(12)
    halved.run(step, {"x": torch.ones(12)}, [], failed.append)
    assert failed == [12, 6, 6, 3, 3, 1]
    assert len(seen) == 4
    assert len(set(seen)) == 1


def test_both_forward_passes_drop_the_same_units():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3))
    scale = torch.nn.Parameter(torch.tensor(2.0))
    seen = []

    def embed(part):
        embeds = layers(part["x"])
        seen.append(embeds.detach())
        return {"embeds": embeds}, [scale.exp()]

    def loss(rows, logit_scale):
        return {"loss": (logit_scale * rows["embeds"] @ rows["embeds"].T).logsumexp(dim=1).mean()}

    before = torch.get_rng_state()
    cached_backward({"x": torch.ones(6, 4)}, 2, embed, loss)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:]):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], seen[1])
    after = torch.get_rng_state()
    # The generator continues where it was after the first forward passes.
    torch.set_rng_state(before)
    for _ in range(3):
        torch.nn.functional.dropout(torch.ones(2, 64), 0.5)
    assert torch.equal(torch.get_rng_state(), after)


def test_mini_batches_and_exchanges_of_gradients(trainer_for, rows):
    trainer = trainer_for(mini_batch_size=5)
    sizes, waits = [], []
    forward = trainer.model.forward
    trainer.model.forward = lambda **inputs: (sizes.append(len(inputs["input_ids"])), forward(**inputs))[1]
    no_sync = trainer.accelerator.no_sync
    trainer.accelerator.no_sync = lambda model: (waits.append(len(sizes)), no_sync(model))[1]
    step_of(trainer, trainer.data_collator(rows))
    assert sizes == [5, 5, 2] * 2
    assert waits == [3, 4]  # before the backward pass of every mini-batch but the last


def test_training_ends_at_the_same_weights(trainer_for):
    torch.manual_seed(0)
    whole = trainer_for(per_device_train_batch_size=8, learning_rate=1e-3)
    whole.train()
    cached = trainer_for(per_device_train_batch_size=8, learning_rate=1e-3, mini_batch_size=3)
    cached.train()
    assert cached.state.log_history[0]["loss_tsl_text"] == whole.state.log_history[0]["loss_tsl_text"]
    assert cached.state.log_history[-1]["train_loss"] == pytest.approx(whole.state.log_history[-1]["train_loss"])
    for (name, got), expected in zip(cached.model.named_parameters(), whole.model.parameters()):
        # Where a gradient is 0 but for rounding, AdamW still makes steps of the learning rate.
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=0, msg=name)


def test_splitting():
    parts = split_batch({"a": torch.arange(5), "b": torch.arange(10).reshape(5, 2)}, 2)
    assert [part["a"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert parts[2]["b"].tolist() == [[8, 9]]
    with pytest.raises(ValueError, match="same number of rows"):
        split_batch({"a": torch.arange(5), "b": torch.arange(4)}, 2)
