"""Trained weights are those that the losses depend on, and the configuration of the model has the losses."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from fastgoal import FastGoalModel, FastGoalTrainingArguments
from fastgoal.modeling_fastgoal.losses_fastgoal import LossWeights
from fastgoal.trainer.objectives import WEIGHTS
from fastgoal.trainer.trained_weights import write_losses
from tests.tiny_trainers import make_trainer

GLOBAL = LossWeights(**{name: float(name == "global_weight") for name in LossWeights.__dataclass_fields__})


@pytest.mark.parametrize("contrastive", ["softmax", "sigmoid", None])
def test_a_saved_model_computes_the_contrastive_loss_of_its_training(contrastive, tiny_bases, tmp_path):
    model = FastGoalModel.from_base(str(tiny_bases["siglip"]))
    write_losses(model, GLOBAL, FastGoalTrainingArguments(str(tmp_path), contrastive=contrastive, use_cpu=True))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("contrastive") == contrastive
    again = FastGoalModel.from_pretrained(tmp_path).eval()
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(3, 30, (4, 256)), "pixel_values": torch.randn(4, 3, 32, 32)}
    with torch.no_grad():
        loss, logits = again(**inputs, return_loss=True).loss, again(**inputs).logits_per_image
    if contrastive == "softmax":
        logits, labels = logits - again.logit_bias, torch.arange(4)
        expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    else:
        expected = -logsigmoid((2 * torch.eye(4) - 1) * logits).sum() / 4
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("base", "weight", "settings", "frozen"),
    [
        ("clip", "tsl_weight", {}, ["logit_scale"]),
        ("clip", "sparc_weight", {}, []),
        ("clip", "token_weight", {}, []),
        ("siglip", "global_weight", {}, []),
        ("siglip", "global_weight", {"contrastive": "softmax"}, ["logit_bias"]),
        ("siglip", "tsl_weight", {}, ["logit_bias", "logit_scale"]),
        ("siglip", "sparc_weight", {}, ["logit_bias", "vision_model.head.probe"]),
    ],
)
def test_weights_without_a_part_in_the_loss_are_frozen(tiny_bases, rows, tmp_path, base, weight, settings, frozen):
    weights = {**dict.fromkeys(WEIGHTS, 0.0), weight: 1.0}
    trainer = make_trainer(tiny_bases[base], tmp_path, rows, **weights, **settings)
    without = []
    trainer.accelerator.backward = lambda loss: (
        loss.backward(),
        without.extend(name for name, parameter in trainer.model.named_parameters() if parameter.grad is None),
    )
    trainer.train_dataset = rows[:4]
    trainer.train()
    assert sorted(without) == frozen
    assert sorted(name for name, value in trainer.model.named_parameters() if not value.requires_grad) == frozen
