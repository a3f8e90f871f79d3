"""FSDP2 in two processes computes what one process does, saves whole models, and resumes.

accelerate supports FSDP on GPUs only, so its state is patched to accept CPUs. Everything else is its own FSDP2.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import AutoModel

from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.card import CardOptions
from fastgoal.trainer.parallel.strategy import describe
from tests.tiny_trainers import make_trainer
from tests.trainer.processes import in_two_processes

CONFIG = Path(__file__).resolve().parents[3] / "trainer" / "accelerate_configs" / "fsdp.yaml"
CASES = {
    "plain": {"l2sp_weight": 0.5, "token_weight": 0.1},
    "cached and accumulated": {
        **{"mini_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 4},
        "crop_size": 16,
    },
    "bfloat16": {"bf16": True},
    "siglip": {"base": "siglip", "token_weight": 0.1},
}
STEPS, BATCH = 4, 6


def use_fsdp_on_cpus():
    """Use the packaged FSDP configuration on CPUs."""
    settings = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
    renamed = {"fsdp_transformer_layer_cls_to_wrap": "fsdp_transformer_cls_to_wrap"}  # as accelerate launch does
    for name, value in settings.items():
        os.environ[renamed.get(name, name).upper()] = str(value).lower() if isinstance(value, bool) else str(value)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    start, plugins = AcceleratorState.__init__, []

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            plugins.append(fsdp_plugin)
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
        if plugins:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugins[-1]

    AcceleratorState.__init__ = patched


def train(bases, pairs, folder, case, processes=1, resume=None):
    """Train four steps with a checkpoint after two, or resume there; return the log and the class of the model."""
    settings = dict(CASES[case])
    base = bases[settings.pop("base", "clip")]
    settings = {
        "per_device_train_batch_size": BATCH // processes,
        "num_train_epochs": 2,
        "adam_epsilon": 1e-3,  # AdamW makes full steps even of gradients that are 0 but for rounding
        "save_strategy": "steps",
        "save_steps": 2,
        "card": CardOptions(images=False),
        **settings,
    }
    trainer = make_trainer(base, folder, TrainingData(str(pairs)), **settings)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    names = ("loss", "loss_tsl_text", "grad_norm")
    lines = [{name: line.get(name) for name in names} for line in trainer.state.log_history]
    return {"log": lines[:STEPS], "model": type(trainer.model_wrapped).__name__}


def train_sharded(bases, pairs, folder, cases):
    """Train some cases in this process of two, and resume the first one."""
    use_fsdp_on_cpus()
    runs = {}
    for case in cases:
        AcceleratorState._reset_state()
        runs[case] = train(bases, pairs, folder / case, case, 2)
    AcceleratorState._reset_state()
    resume = str(folder / cases[0] / "checkpoint-2")
    return runs, train(bases, pairs, folder / "resumed", cases[0], 2, resume)


@pytest.mark.slow
def test_shards_train_as_one_process(tiny_bases, pairs_folder, tmp_path):
    cases = [*CASES]
    ranks = in_two_processes(train_sharded, tiny_bases, pairs_folder, tmp_path / "fsdp", cases, folder=tmp_path)
    for case in cases:
        one = train(tiny_bases, pairs_folder, tmp_path / "one" / case, case)
        assert len(one["log"]) == STEPS
        assert one["log"][-1]["loss"] < one["log"][0]["loss"]
        close = 0.1 if case == "bfloat16" else 1e-4
        for runs, _ in ranks:
            assert runs[case]["model"] == ("FSDPFastGoalSiglipModel" if case == "siglip" else "FSDPFastGoalCLIPModel")
            for line, expected in zip(runs[case]["log"], one["log"], strict=True):
                assert line == pytest.approx(expected, rel=close, abs=close)
        sharded, whole = (load_file(tmp_path / name / case / "model.safetensors") for name in ("fsdp", "one"))
        assert sharded.keys() == whole.keys()
        for name, weight in whole.items():
            torch.testing.assert_close(sharded[name], weight, atol=2e-3 if case == "bfloat16" else 1e-5, rtol=0)
    # A resumed training ends at the same weights.
    runs, resumed = ranks[0]
    for line, expected in zip(resumed["log"][2:], runs[cases[0]]["log"][2:], strict=True):
        assert line == pytest.approx(expected)
    first, second = (load_file(tmp_path / "fsdp" / name / "model.safetensors") for name in (cases[0], "resumed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # What is saved is the model under its own class.
    whole = tmp_path / "one" / cases[0]
    for folder in (tmp_path / "fsdp" / cases[0], tmp_path / "fsdp" / cases[0] / "checkpoint-4"):
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__name__ == "FastGoalCLIPModel"
        assert json.loads((folder / "config.json").read_text()) == json.loads((whole / "config.json").read_text())
        assert {path.name for path in folder.glob("*.py")} == {path.name for path in whole.glob("*.py")}


def state(**changes):
    values = {
        "num_processes": 1,
        "is_fsdp2": False,
        "distributed_type": DistributedType.NO,
        "device": torch.device("cpu"),
        "mixed_precision": "no",
    }
    return SimpleNamespace(**{**values, **changes})


def test_a_run_is_described_in_a_line(monkeypatch):
    assert describe(state(), 64) == "1 process on cpu, float32, 64 pairs a step"
    ddp = state(num_processes=2, distributed_type=DistributedType.MULTI_CPU, mixed_precision="bf16")
    assert describe(ddp, 64) == "2 processes on cpu, data parallel (DDP), bfloat16, 128 pairs a step (2 x 64)"
    sharded = state(num_processes=2, distributed_type=DistributedType.FSDP, is_fsdp2=True)
    assert "sharded weights (FSDP2)" in describe(sharded, 1)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "(DDP) (not FSDP" in describe(ddp, 64)
    assert "not FSDP" not in describe(sharded, 1)
