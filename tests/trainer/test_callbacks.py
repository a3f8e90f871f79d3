"""Callbacks: the bound of the logit scale against the same training without one, and L2-SP against autograd."""

import math

import pytest
import torch

from fastgoal import FastGoalCLIPModel
from fastgoal.trainer.callbacks import LogitScaleLimit, TowardsBase
from tests.tiny_trainers import make_trainer


def scales(clip, rows, folder, start, **changes):
    """Return the logit scales before each step and after the last, of a training that changes nothing else."""
    model = FastGoalCLIPModel.from_base(str(clip))
    model.logit_scale.data = torch.tensor(math.log(start))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "logit_scale")
    settings = {"max_steps": 2, "learning_rate": 3.0, "weight_decay": 0.0, **changes}
    trainer = make_trainer(clip, folder, rows, model=model, **settings)
    trainer.train()
    seen = [line["logit_scale"] for line in trainer.state.log_history if "logit_scale" in line]
    return [*seen, round(model.logit_scale.exp().item(), 2)]


def test_the_logit_scale_stays_within_its_bounds(tiny_clip, rows, tmp_path, capsys):
    free = scales(tiny_clip, rows, tmp_path, 50.0, max_logit_scale=0.0)
    assert "runs on     1 process on cpu, float32, 4 pairs a step\n" in capsys.readouterr().out
    assert free[2] < 1 < free[1] < free[0] == 50.0  # with random embeddings, confident logits are worse
    assert scales(tiny_clip, rows, tmp_path, 50.0) == [*free[:2], 1.0]
    assert scales(tiny_clip, rows, tmp_path, 50.0, max_logit_scale=20.0)[0] == 20.0


def test_a_step_beyond_the_limit_ends_at_it():
    model = torch.nn.Module()
    model.logit_scale = torch.nn.Parameter(torch.tensor(4.7))
    LogitScaleLimit(100.0).on_optimizer_step(None, None, None, model=model)
    assert model.logit_scale.exp().item() == pytest.approx(100.0)


def test_l2sp_adds_the_gradient_of_the_squared_distance():
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    pull = TowardsBase(0.25, model)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += torch.arange(6.0).reshape(2, 3)
    loss = model(torch.ones(1, 3)).sum()
    loss.backward()
    pull.on_pre_optimizer_step(None, None, None, model=model)
    gradient, model.weight.grad = model.weight.grad, None
    (model(torch.ones(1, 3)).sum() + 0.25 * ((model.weight - start) ** 2).sum()).backward()
    assert torch.equal(gradient, model.weight.grad)
    assert model.bias.grad is None
