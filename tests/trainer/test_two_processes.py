"""Training in two processes is training in one with the whole batch: each part of the loss, each gradient."""

import json
import os

import datasets
import pytest
import torch
from transformers import TrainerCallback

from fastgoal import FastGoalTrainer, build_pairs
from fastgoal.trainer.batches.rows import TrainingData
from tests.squares import image_of
from tests.tiny_trainers import make_trainer
from tests.trainer.processes import in_two_processes
from tests.trainer.small_memory import SmallMemory

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
    "all, halved": {"sparc_weight": 0.5, "mini_batch_size": "auto", "fails_in": "forward"},
    "all, halved and accumulated": {
        "sparc_weight": 0.5,
        "gradient_accumulation_steps": 2,
        "mini_batch_size": "auto",
        "fails_in": "backward",
    },
    "siglip": {"base": "siglip", "sparc_weight": 0.5, "token_weight": 0.5},
    "siglip, cached": {
        **{"base": "siglip", "sparc_weight": 0.5, "token_weight": 0.5},
        **{"mini_batch_size": 3, "crop_size": 16},
    },
    "siglip with softmax": {"base": "siglip2", "contrastive": "softmax"},
    "siglip, sparc": {
        "base": "siglip",
        "global_weight": 0.0,
        "local_weight": 0.0,
        "tsl_weight": 0.0,
        "sparc_weight": 1.0,
    },
    "frozen layers": {"freeze": "text", "freeze_layers": 1},
    "adapter": {"lora_r": 2, "local_weight": 0.0, "tsl_weight": 0.0},
    "tsl, checkpointed": {"global_weight": 0.0, "local_weight": 0.0, "gradient_checkpointing": True},
    "metaclip2": {"base": "metaclip2", "sparc_weight": 0.5},
}
FAST = ["all, cached and accumulated", "siglip, cached"]


class Recorder(FastGoalTrainer):
    """Record the loss of every batch."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


class Gradients(TrainerCallback):
    """Record the gradients that the optimizer sees."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def train(bases, pairs, folder, batch, case):
    """Return losses and gradients of an epoch over the first rows in order, without changing the weights."""
    settings = dict(CASES[case])
    base, fails_in = bases[settings.pop("base", "clip")], settings.pop("fails_in", None)
    gradients = Gradients()
    trainer = make_trainer(
        base,
        folder,
        TrainingData(str(pairs), limit=ROWS),
        trainer_class=Recorder,
        callbacks=[gradients],
        per_device_train_batch_size=batch,
        learning_rate=0.0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        logging_steps=10,
        logging_first_step=True,
        **settings,
    )
    trainer.losses = []
    if fails_in and trainer.args.process_index == 1:
        SmallMemory(trainer, 2, fails_in == "backward")
    trainer.train()
    logged = {name: value for line in trainer.state.log_history for name, value in line.items() if "loss" in name}
    return {
        "losses": trainer.losses,
        "gradients": gradients.steps,
        "processes": trainer.args.world_size,
        "model": type(trainer.model_wrapped).__name__,
        "searches": getattr(trainer.model_wrapped, "find_unused_parameters", None),
        "logged": logged,
        "size": trainer._halved.size if fails_in else 2,
    }


def neighbors(clip, pairs, folder, rows=ROWS):
    """Return the neighbors of the images."""
    trainer = make_trainer(clip, folder, TrainingData(str(pairs), limit=rows), hard_negatives=True)
    return trainer._find_neighbors(trainer.train_dataset)


def work(bases, pairs, folder, cases):
    results = {case: train(bases, pairs, folder, WHOLE // 2, case) for case in cases}
    # With one row, the share of the second process is empty.
    return os.getpid(), results, *(neighbors(bases["clip"], pairs, folder, rows=rows) for rows in (ROWS, 1))


@pytest.mark.parametrize(
    "cases",
    [FAST, pytest.param([case for case in CASES if case not in FAST], marks=pytest.mark.slow)],
    ids=["fast", "rest"],
)
def test_two_processes_do_what_one_does(cases, tiny_bases, pairs_folder, tmp_path):
    ranks = in_two_processes(work, tiny_bases, pairs_folder, tmp_path, cases, folder=tmp_path)
    assert len({pid for pid, *_ in ranks} | {os.getpid()}) == 3
    for case in cases:
        whole = train(tiny_bases, pairs_folder, tmp_path, WHOLE, case)
        assert whole["processes"] == 1
        assert len(whole["gradients"]) == (1 if "accumulated" in case else 2)
        results = [results[case] for _, results, *_ in ranks]
        assert [len(result["losses"]) for result in results] == [2, 2]
        losses = [sum(shares) / 2 for shares in zip(*(result["losses"] for result in results), strict=True)]
        assert losses == pytest.approx(whole["losses"], abs=1e-5)
        for result in results:
            assert (result["processes"], result["model"]) == (2, "DistributedDataParallel")
            # Without, three processes add gradients in another order after a resume.
            assert result["searches"] is ("checkpointed" not in case)
            assert result["size"] == 2  # although the first process had enough memory for four
            assert result["logged"] == pytest.approx(whole["logged"], abs=2e-4)
            for got, expected in zip(result["gradients"], whole["gradients"], strict=True):
                assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
                for name, gradient in expected.items():
                    close = 1e-5 * max(1.0, gradient.abs().max().item())  # sums over many tokens round
                    torch.testing.assert_close(got[name], gradient, atol=close, rtol=1e-5, msg=f"{case}: {name}")
                # DDP gives parameters without a part in the loss a gradient of 0.
                for name in got.keys() - expected.keys():
                    assert (got[name] == 0).all()
    alone = neighbors(tiny_bases["clip"], pairs_folder, tmp_path)
    assert alone.shape == (ROWS, ROWS - 1)
    for *_, shared, of_one_row in ranks:
        assert torch.equal(shared, alone)
        assert of_one_row.shape == (1, 0)


@pytest.fixture
def grouped_folders(tiny_clip, tmp_path):
    """Pairs of `captions=each`: rows 0 to 3 show the images of rows 4 to 7; and the same rows without their groups."""
    data, lines = tmp_path / "data", []
    data.mkdir()
    for number, (left, right) in enumerate((("red", "green"), ("green", "blue"), ("blue", "red"), ("red", "blue"))):
        image_of(left, right).save(data / f"{number}.png")
        captions = [f"A {left} square. A {right} square.", f"On the left is {left}. On the right is {right}."]
        lines.append(json.dumps({"file_name": f"{number}.png", "captions": captions}))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    build_pairs(data, tmp_path / "pairs", tiny_clip, None, captions="each", progress=False)
    rows = datasets.load_dataset("parquet", data_dir=str(tmp_path / "pairs"), cache_dir=tmp_path / "cache")["train"]
    rows = rows.select([0, 2, 4, 6, 1, 3, 5, 7])
    folders = []
    for name, written in (("grouped", rows), ("apart", rows.remove_columns("image_group"))):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        written.to_parquet(folders[-1] / "train.parquet")
    return folders


def trained_weights(base, pairs, folder, batch):
    """Return the weights after three steps over all rows, and the numbers of the images of each batch."""
    trainer = make_trainer(
        base,
        folder,
        TrainingData(str(pairs)),
        per_device_train_batch_size=batch,
        num_train_epochs=3,
        optim="sgd",
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
    )
    batches = [batch["image_groups"].tolist() for batch in trainer.get_train_dataloader() if "image_groups" in batch]
    trainer.train()
    return batches, {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


@pytest.mark.slow
def test_rows_of_one_image_are_no_negatives_across_processes(tiny_clip, grouped_folders, tmp_path):
    grouped, apart = grouped_folders
    ranks = in_two_processes(trained_weights, tiny_clip, grouped, tmp_path, WHOLE // 2, folder=tmp_path)
    # Each process has every image once: only the other one has the rows that must not be negatives.
    assert [batches for batches, _ in ranks] == [[[0, 1, 2, 3]], [[0, 1, 2, 3]]]
    batches, whole = trained_weights(tiny_clip, grouped, tmp_path, WHOLE)
    assert batches == [[0, 1, 2, 3, 0, 1, 2, 3]]
    _, unmasked = trained_weights(tiny_clip, apart, tmp_path, WHOLE)
    for _, weights in ranks:
        for name, weight in whole.items():
            torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=0, msg=name)
    assert max((unmasked[name] - weight).abs().max() for name, weight in whole.items()) > 1e-3
