"""FSDP2 in two processes does what DDP does, is saved whole, and goes on from a checkpoint.

accelerate has FSDP for GPUs only: here its state is told that CPUs are some. All else is its own FSDP2.
"""

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
import yaml
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import AutoModel

from fastgoal import FastGoalModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.parallel.strategy import describe

CONFIG = Path(__file__).resolve().parents[3] / "trainer" / "accelerate_configs" / "fsdp.yaml"
CASES = {
    "plain": {"l2sp_weight": 0.5, "token_weight": 0.1},
    "cached and accumulated": {"mini_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 4},
    "bfloat16": {"bf16": True},
    "siglip": {"base": "siglip", "token_weight": 0.1},
}
STEPS = 4


def use_fsdp_on_cpus():
    """The shipped configuration, in force on CPUs."""
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


def train(bases, pairs, folder, case, resume=None):
    """Four steps, a checkpoint after two, or the last two from there; what was logged, and the class that ran."""
    settings = dict(CASES[case])
    base = bases[settings.pop("base", "clip")]
    AcceleratorState._reset_state()
    args = FastGoalTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=3,
        learning_rate=1e-3,
        adam_epsilon=1e-3,  # random weights have gradients near 0, whose rounding Adam makes steps of
        dataloader_num_workers=0,
        save_strategy="steps",
        save_steps=2,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **{"num_train_epochs": 2, **settings},
    )
    trainer = FastGoalTrainer(
        model=FastGoalModel.from_base(base),
        args=args,
        processing_class=FastGoalProcessor.from_base(base),
        train_dataset=TrainingData(pairs),
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    lines = [
        {name: line.get(name) for name in ("loss", "loss_tsl_text", "grad_norm")} for line in trainer.state.log_history
    ]
    return {"log": lines[:STEPS], "model": type(trainer.model_wrapped).__name__}


def work(rank, port, bases, pairs, folder, fsdp):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    if fsdp:
        use_fsdp_on_cpus()
    found = {case: train(bases, pairs, str(folder / case), case) for case in CASES}
    if fsdp:
        resume = str(folder / "plain" / "checkpoint-2")
        found["resumed"] = train(bases, pairs, str(folder / "resumed"), "plain", resume)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tiny_bases, pairs_folder, tmp_path_factory):
    """Folders of what two processes made with DDP, and with FSDP2."""
    folders = {}
    for name in ("ddp", "fsdp"):
        folders[name] = tmp_path_factory.mktemp(name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (port, tiny_bases, str(pairs_folder), folders[name], name == "fsdp")
        mp.spawn(work, arguments, nprocs=2)
    return folders


def found(folder, case):
    return [json.loads((folder / f"{rank}.json").read_text())[case] for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_shards_train_as_whole_weights_do(runs, case):
    close = 0.1 if case == "bfloat16" else 1e-4
    for shards, whole in zip(found(runs["fsdp"], case), found(runs["ddp"], case)):
        kind = "FastGoalSiglipModel" if case == "siglip" else "FastGoalCLIPModel"
        assert (shards["model"], whole["model"]) == (f"FSDP{kind}", "DistributedDataParallel")
        assert len(whole["log"]) == STEPS
        for got, expected in zip(shards["log"], whole["log"]):
            assert got == pytest.approx(expected, rel=close, abs=close)
    assert whole["log"][-1]["loss"] < whole["log"][0]["loss"]
    got, expected = (load_file(runs[name] / case / "model.safetensors") for name in ("fsdp", "ddp"))
    assert got.keys() == expected.keys()
    for name, weight in expected.items():
        assert got[name].shape == weight.shape
        torch.testing.assert_close(got[name], weight, atol=2e-3 if case == "bfloat16" else 1e-5, rtol=0)


def test_a_run_goes_on_from_its_checkpoint(runs):
    whole, resumed = (found(runs["fsdp"], case)[0]["log"] for case in ("plain", "resumed"))
    for got, expected in zip(resumed[2:], whole[2:], strict=True):
        assert got == pytest.approx(expected)
    first, second = (load_file(runs["fsdp"] / case / "model.safetensors") for case in ("plain", "resumed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_saved_is_the_model(runs):
    for folder in (runs["fsdp"] / "plain", runs["fsdp"] / "plain" / "checkpoint-4"):
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__name__ == "FastGoalCLIPModel"
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["FastGoalCLIPModel"]
        code = {path.name for path in (runs["ddp"] / "plain").glob("*.py")}
        assert {path.name for path in folder.glob("*.py")} == code


def state(**changes):
    values = {
        "num_processes": 1,
        "is_fsdp2": False,
        "distributed_type": DistributedType.NO,
        "device": torch.device("cpu"),
        "mixed_precision": "no",
    }
    return SimpleNamespace(**{**values, **changes})


def test_a_line_says_what_runs(monkeypatch):
    assert describe(state(), 64) == "1 process on cpu, float32, 64 pairs a step"
    ddp = state(num_processes=2, distributed_type=DistributedType.MULTI_CPU, mixed_precision="bf16")
    assert describe(ddp, 64) == "2 processes on cpu, data parallel (DDP), bfloat16, 128 pairs a step (2 x 64)"
    sharded = state(num_processes=2, distributed_type=DistributedType.FSDP, is_fsdp2=True)
    assert "sharded weights (FSDP2)" in describe(sharded, 1)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "(DDP) (not FSDP" in describe(ddp, 64)
    assert "asked for" not in describe(sharded, 1)
