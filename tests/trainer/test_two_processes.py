"""Training in two processes is training in one with the whole batch: each part of the loss, each gradient."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from transformers import TrainerCallback

from fastgoal import FastGoalCLIPModel, FastGoalModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.trainer.batches.rows import TrainingData

WHOLE, ROWS = 8, 11  # a full batch and one of 3 rows, which two processes with batches of 4 cannot share evenly
CASES = {
    "global": {"objective": "global"},
    "local": {"objective": "local"},
    "tsl": {"global_weight": 0.0, "local_weight": 0.0},
    "sparc": {"global_weight": 0.0, "local_weight": 0.0, "tsl_weight": 0.0, "sparc_weight": 1.0},
    "all": {"sparc_weight": 0.5},
    "all, cached": {"sparc_weight": 0.5, "mini_batch_size": 3},
    "tsl, cached": {"global_weight": 0.0, "local_weight": 0.0, "mini_batch_size": 3},
    "all, accumulated": {"sparc_weight": 0.5, "gradient_accumulation_steps": 2},
    "all, cached and accumulated": {
        "sparc_weight": 0.5,
        "gradient_accumulation_steps": 2,
        "mini_batch_size": 3,
    },
    "siglip": {"base": "siglip", "sparc_weight": 0.5, "token_weight": 0.5},
    "siglip, cached": {"base": "siglip", "sparc_weight": 0.5, "token_weight": 0.5, "mini_batch_size": 3},
    "siglip with softmax": {"base": "siglip2", "contrastive": "softmax"},
    "metaclip2": {"base": "metaclip2", "sparc_weight": 0.5},
}


class Recorder(FastGoalTrainer):
    """Keeps the loss of every batch."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


class Gradients(TrainerCallback):
    """Keeps every parameter's gradient as the optimizer is about to see it."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def train(bases, pairs, folder, batch, case):
    """Losses and gradients of an epoch over the first rows in their order, from and at the same weights."""
    settings = dict(CASES[case])
    base = bases[settings.pop("base", "clip")]
    args = FastGoalTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=0.0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        dataloader_num_workers=0,
        save_strategy="no",
        logging_first_step=True,
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    gradients = Gradients()
    trainer = Recorder(
        model=FastGoalModel.from_base(base),
        args=args,
        processing_class=FastGoalProcessor.from_base(base),
        train_dataset=TrainingData(pairs, limit=ROWS),
        callbacks=[gradients],
    )
    trainer.losses = []
    trainer.train()
    wrapped = type(trainer.model_wrapped).__name__
    logged = {name: value for line in trainer.state.log_history for name, value in line.items() if "loss" in name}
    return {
        "losses": trainer.losses,
        "gradients": gradients.steps,
        "processes": args.world_size,
        "model": wrapped,
        "logged": logged,
    }


def near(clip, pairs, folder, again=False, rows=ROWS):
    """Neighbors of the images; `again` they must come out of the file."""
    args = FastGoalTrainingArguments(output_dir=folder, dataloader_num_workers=0, use_cpu=True, hard_negatives=True)
    trainer = FastGoalTrainer(
        model=FastGoalCLIPModel.from_base(clip),
        args=args,
        processing_class=FastGoalProcessor.from_base(clip),
        train_dataset=TrainingData(pairs, limit=rows),
    )
    if again:
        trainer.model.get_image_features = None
    return trainer._find_neighbors(trainer.train_dataset)


def work(rank, port, bases, pairs, folder):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    results = {case: train(bases, pairs, folder, WHOLE // 2, case) for case in CASES}
    results["near"] = [near(bases["clip"], pairs, folder, again) for again in (False, True)]
    results["near, one row"] = near(bases["clip"], pairs, folder, rows=1)  # the share of the other process is empty
    torch.save({"pid": os.getpid(), **results}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tiny_bases, pairs_folder, tmp_path_factory):
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, tiny_bases, str(pairs_folder), str(folder))
    context = mp.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_two_processes_ran(ranks):
    assert len({rank["pid"] for rank in ranks} | {os.getpid()}) == 3
    for rank in ranks:
        for case in CASES:
            assert rank[case]["processes"] == 2
            assert rank[case]["model"] == "DistributedDataParallel"
            assert len(rank[case]["losses"]) == 2


@pytest.mark.parametrize("case", CASES)
def test_they_are_one(ranks, case, tiny_bases, pairs_folder, tmp_path):
    whole = train(tiny_bases, str(pairs_folder), str(tmp_path), WHOLE, case)
    assert whole["processes"] == 1
    assert len(whole["gradients"]) == (1 if "accumulated" in case else 2)
    losses = [sum(shares) / len(ranks) for shares in zip(*(rank[case]["losses"] for rank in ranks))]
    assert losses == pytest.approx(whole["losses"], abs=1e-5)
    for rank in ranks:
        assert rank[case]["logged"] == pytest.approx(whole["logged"], abs=2e-4)
        assert len(rank[case]["gradients"]) == len(whole["gradients"])
        for got, expected in zip(rank[case]["gradients"], whole["gradients"]):
            assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
            for name, gradient in expected.items():
                close = 1e-5 * max(1.0, gradient.abs().max().item())  # of the largest one: sums over many tokens round
                torch.testing.assert_close(got[name], gradient, atol=close, rtol=1e-5, msg=f"{case}: {name}")
            # DDP gives the parameters that had no part in the loss a gradient of 0.
            for name in got.keys() - expected.keys():
                assert (got[name] == 0).all()


def test_they_find_the_same_neighbors(ranks, tiny_clip, pairs_folder, tmp_path):
    alone = near(str(tiny_clip), str(pairs_folder), str(tmp_path))
    assert alone.shape == (ROWS, ROWS - 1)
    for rank in ranks:
        assert all(torch.equal(found, alone) for found in rank["near"])
        assert rank["near, one row"].shape == (1, 0)
