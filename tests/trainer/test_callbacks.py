"""The limit of the logit scale, against the same training without one, and the lines at the start."""

import math

import pytest
import torch

from fastgoal import FastGoalCLIPModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.trainer.callbacks import LogitScaleLimit, TowardsBase


def scales(clip, rows, folder, start, **changes):
    """Factors in the logits, before each step and after the last."""
    model = FastGoalCLIPModel.from_base(clip)
    model.logit_scale.data = torch.tensor(math.log(start))
    args = FastGoalTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=4,
        max_steps=2,
        learning_rate=3.0,
        weight_decay=0.0,
        dataloader_num_workers=0,
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **changes,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "logit_scale")
    trainer = FastGoalTrainer(
        model=model, args=args, processing_class=FastGoalProcessor.from_base(clip), train_dataset=rows
    )
    trainer.train()
    seen = [line["logit_scale"] for line in trainer.state.log_history if "logit_scale" in line]
    return [*seen, round(model.logit_scale.exp().item(), 2)]


def test_the_factor_stays_within_its_limits(tiny_clip, rows, tmp_path, capsys):
    free = scales(str(tiny_clip), rows, str(tmp_path), 50.0, max_logit_scale=0.0)
    assert "runs on     1 process on cpu, float32, 4 pairs a step\n" in capsys.readouterr().out
    assert free[2] < 1 < free[1] < free[0] == 50.0  # random embeddings: the surer, the worse
    assert scales(str(tiny_clip), rows, str(tmp_path), 50.0) == [*free[:2], 1.0]
    assert scales(str(tiny_clip), rows, str(tmp_path), 50.0, max_logit_scale=20.0)[0] == 20.0


def test_a_step_beyond_the_limit_ends_at_it():
    model = torch.nn.Module()
    model.logit_scale = torch.nn.Parameter(torch.tensor(4.7))
    LogitScaleLimit(100.0).on_optimizer_step(None, None, None, model)
    assert model.logit_scale.exp().item() == pytest.approx(100.0)


def test_the_pull_towards_the_base_is_that_of_the_squared_distance():
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    pull = TowardsBase(0.25, model)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += torch.arange(6.0).reshape(2, 3)
    loss = model(torch.ones(1, 3)).sum()
    loss.backward()
    pull.on_pre_optimizer_step(None, None, None, model)
    found, model.weight.grad = model.weight.grad, None
    (model(torch.ones(1, 3)).sum() + 0.25 * ((model.weight - start) ** 2).sum()).backward()
    assert torch.equal(found, model.weight.grad)
    assert model.bias.grad is None


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`max_logit_scale` must be .*got 0.5"):
        FastGoalTrainingArguments(output_dir=str(tmp_path), max_logit_scale=0.5)
