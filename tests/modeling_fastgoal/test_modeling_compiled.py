"""Under `torch.compile` a model with its losses is one graph, and computes the same losses and gradients."""

import pytest
import torch
from torch._dynamo.utils import counters

from fastgoal import FastGoalCollator, FastGoalModel, FastGoalProcessor

WEIGHTS = {"clip": {"sparc_weight": 0.5, "short_weight": 0.3}, "siglip": {"matryoshka_dims": [8]}}


def losses_and_gradients(model, forward, batch):
    model.zero_grad()
    losses = {name: value for name, value in forward(**batch, return_loss=True).items() if name.startswith("loss")}
    losses["loss"].backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, gradients


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "metaclip2", "siglip"])
def test_one_graph_computes_the_same(family, tiny_bases, rows):
    model = FastGoalModel.from_base(tiny_bases[family]).train()
    for name, value in WEIGHTS.get(family, {}).items():
        setattr(model.config, name, value)
    batch = FastGoalCollator(FastGoalProcessor.from_base(tiny_bases[family]), short_captions=True)(rows[:4])
    batch["image_groups"] = torch.tensor([0, 0, 1, -1])
    batch["sentence_mask"][1] = False
    # Nothing may have run before: transformers takes a lock only the first time that hidden states are asked for.
    torch._dynamo.reset()
    counters.clear()
    got, compiled_gradients = losses_and_gradients(model, torch.compile(model, backend="aot_eager"), batch)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    torch._dynamo.reset()
    expected, gradients = losses_and_gradients(model, model, batch)
    assert {"loss_tsl_text", "loss_global"} < got.keys() == expected.keys()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(compiled_gradients, gradients, atol=1e-5, rtol=1e-4)
