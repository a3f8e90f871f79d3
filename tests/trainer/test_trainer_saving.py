"""Checkpoints appear complete or not at all, trainings resume from complete ones, and NaN is never saved."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from fastgoal.processing.files import hold_folder
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.run import main
from fastgoal.trainer.trainer import FastGoalTrainer
from tests.locks import held_by_another
from tests.tiny_trainers import make_trainer


@pytest.fixture
def trainer_for(tiny_clip, rows):
    def make(folder, data=None, **changes):
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **changes}
        return make_trainer(tiny_clip, folder, rows if data is None else data, rows, **settings)

    return make


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".fastgoal")


class At(TrainerCallback):
    """Call a function at the end of a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.function(kwargs["model"])


@pytest.mark.parametrize("stage", ["_save_rng_state", "_save_optimizer_and_scheduler"])
def test_a_checkpoint_that_fails_half_way_does_not_appear(trainer_for, tmp_path, monkeypatch, stage):
    trainer = trainer_for(tmp_path)
    whole, calls = getattr(trainer, stage), []

    def fails(folder):
        calls.append(folder)
        assert names(tmp_path)[-1] != f"checkpoint-{trainer.state.global_step}"
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(folder)

    monkeypatch.setattr(trainer, stage, fails)
    with pytest.raises(
        OSError, match=r"Could not save \S*checkpoint-4: .*No space left.*`resume_from_checkpoint=True`"
    ):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-2"]
    again = trainer_for(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_resuming_a_finished_training_trains_nothing(trainer_for, tmp_path):
    # With three steps per epoch, the training ends in the middle of the second one.
    whole = trainer_for(tmp_path)
    whole.train()
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    again = trainer_for(tmp_path)
    assert again.train(resume_from_checkpoint=True).global_step == 4
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_best_checkpoint_is_recorded_under_its_final_name(trainer_for, tmp_path):
    trainer = trainer_for(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="loss",
        load_best_model_at_end=True,
        greater_is_better=False,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path
    newest = json.loads((tmp_path / "checkpoint-4/trainer_state.json").read_text())
    assert newest["best_model_checkpoint"] == str(best)
    assert json.loads((best / "config.json").read_text())["architectures"] == ["CLIPModel"]
    assert all(
        torch.equal(tensor, trainer.model.state_dict()[name])
        for name, tensor in load_file(best / "model.safetensors").items()
    )


@pytest.mark.parametrize("size", [None, 2])
def test_a_nan_loss_stops_the_training(trainer_for, tmp_path, rows, size):
    trainer = trainer_for(tmp_path, mini_batch_size=size)
    trainer.add_callback(At(3, lambda model: model.text_projection.weight.data.fill_(float("nan"))))
    with pytest.raises(ValueError, match=r"loss of step 4 .*loss_global nan.* \S*checkpoint-2") as stop:
        trainer.train()
    assert sum(row["file_name"] in str(stop.value) for row in rows) == 4
    assert names(tmp_path) == ["checkpoint-2"]


def test_rows_with_nan_embeddings_are_named(trainer_for, tmp_path, rows):
    trainer = trainer_for(tmp_path, per_device_train_batch_size=len(rows))
    bad = rows[3]["file_name"]
    collate = trainer.data_collator.__class__.__call__

    def spoil(collator, batch):
        made = collate(collator, batch)
        made["pixel_values"] = made["pixel_values"].float()
        made["pixel_values"][[row.name for row in batch].index(bad)] = float("nan")
        return made

    trainer.data_collator = type("Spoiling", (type(trainer.data_collator),), {"__call__": spoil})(
        trainer.processing_class
    )
    with pytest.raises(ValueError, match="loss of step 1 ") as stop:
        trainer.train()
    assert f": {bad}. " in str(stop.value)
    assert "no checkpoint yet" in str(stop.value)


def test_weights_that_are_not_finite_are_not_saved(trainer_for, tmp_path):
    trainer = trainer_for(tmp_path)
    trainer.add_callback(At(4, lambda model: model.visual_projection.weight.data[0].fill_(float("inf"))))
    with pytest.raises(ValueError, match=r"after step 4 has weights that are NaN .*visual_projection.weight"):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-2"]


def test_a_second_training_in_the_folder_is_refused(trainer_for, tmp_path):
    with (
        held_by_another(tmp_path / ".fastgoal") as number,
        pytest.raises(ValueError, match=f"process {number} on the machine .* writes this folder"),
    ):
        trainer_for(tmp_path).train()
    trainer_for(tmp_path, max_steps=1, save_strategy="no").train()
    # A lock that this process holds does not stop it, and is still held afterwards.
    with hold_folder(tmp_path / ".fastgoal", again=True):
        trainer_for(tmp_path, max_steps=1, save_strategy="no").train()
        assert json.loads((tmp_path / ".fastgoal/run.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".fastgoal/run.json").exists()


def test_resuming_with_other_settings_is_refused_unless_allowed(trainer_for, tmp_path, pairs_folder, caplog):
    data = TrainingData(str(pairs_folder))
    trainer_for(tmp_path, data, max_steps=2).train()
    for changes, words in (
        ({"objective": "global"}, "`objective` was 'fast_goal' and is now 'global'"),
        ({"per_device_train_batch_size": 2}, "`batch size` was 4 and is now 2"),
        ({"learning_rate": 1e-2}, "`learning_rate` was 0.001 and is now 0.01"),
        ({"data": TrainingData(str(pairs_folder), limit=5)}, "`rows` was 12 and is now 5"),
    ):
        with pytest.raises(ValueError, match=rf"{words}.*`ignore_resume_mismatch=True`"):
            trainer_for(tmp_path, **{"data": data, **changes}).train(resume_from_checkpoint=True)
    trainer = trainer_for(tmp_path, data, per_device_train_batch_size=2, ignore_resume_mismatch=True)
    assert trainer.train(resume_from_checkpoint=True).global_step == 4
    assert "`batch size` was 4 and is now 2" in caplog.text


def test_a_saved_model_replaces_an_earlier_one(trainer_for, tmp_path, monkeypatch):
    trainer = trainer_for(tmp_path, max_steps=1, save_strategy="no")
    trainer.train()
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier model")
    (tmp_path / "notes.txt").write_text("mine")
    trainer.save_model()
    left = names(tmp_path)
    assert "model-00001-of-00002.safetensors" not in left
    assert {"notes.txt", "model.safetensors", "config.json", "README.md", "handler.py"} <= {*left}
    assert not [name for name in left if name.endswith(".tmp")]
    before = (tmp_path / "model.safetensors").read_bytes()
    trainer.model.logit_scale.data += 1

    def fails(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastgoal.trainer.trainer.finish_folder", fails)
    with pytest.raises(OSError, match="Could not save"):
        trainer.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert names(tmp_path) == left


KILLED_WHILE_SAVING = """
import os, signal, sys
from fastgoal.trainer.trainer import FastGoalTrainer
from fastgoal.trainer.run import main
from fastgoal.trainer.trainer import FastGoalTrainer
whole = FastGoalTrainer._save_rng_state
def killed(self, folder):
    if self.state.global_step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, folder)
FastGoalTrainer._save_rng_state = killed
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written(tiny_clip, pairs_folder, tmp_path, caplog):
    def command(folder, *more):
        return [
            *("--model", str(tiny_clip), "--train_data", str(pairs_folder), "--output_dir", str(folder)),
            *("--max_steps", "3", "--save_steps", "1", "--per_device_train_batch_size", "4", "--use_cpu"),
            *("--learning_rate", "1e-3", "--dataloader_num_workers", "0", "--card_images", "false", *more),
        ]

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = command(tmp_path / "killed")
    stopped = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, *killed], env=environment, capture_output=True, text=True
    )
    assert stopped.returncode == -signal.SIGKILL
    left = names(tmp_path / "killed")
    assert left[-1] == "checkpoint-1"
    assert len(left) == 2
    assert left[0].endswith(".tmp")
    # An incomplete checkpoint, as `transformers` leaves one.
    half = shutil.copytree(tmp_path / "killed/checkpoint-1", tmp_path / "killed/checkpoint-2")
    (half / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="holds checkpoints of a training"):
        main(killed)
    assert main([*killed, "--resume_from_checkpoint", "true"]) == 0
    assert "checkpoint-2 is skipped: it has no optimizer state" in caplog.text
    assert not [name for name in names(tmp_path / "killed") if name.endswith(".tmp")]
    assert main(command(tmp_path / "whole")) == 0
    for folder in (".", "checkpoint-3"):
        weights = [(tmp_path / name / folder / "model.safetensors").read_bytes() for name in ("killed", "whole")]
        assert weights[0] == weights[1]
    # Once more: nothing is left to train, and no result is overwritten.
    results = (tmp_path / "killed/train_results.json").read_bytes()
    assert main([*killed, "--resume_from_checkpoint", "true"]) == 0
    assert "Nothing was left to train" in caplog.text
    assert (tmp_path / "killed/train_results.json").read_bytes() == results
    assert (tmp_path / "killed/model.safetensors").read_bytes() == weights[1]
    # It is overwritten on request.
    assert main([*killed, "--overwrite_output_dir", "--max_steps", "1"]) == 0
    assert names(tmp_path / "killed").count("checkpoint-1") == 1
    assert "checkpoint-3" not in names(tmp_path / "killed")


class Scored(FastGoalTrainer):
    """Evaluations return these values of R@1."""

    scores = (7.0, 9.0, 8.0, 8.5)

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        line = self.state.log_history[-1]
        line["eval_text_to_image_R@1"] = self.scores[round(self.state.epoch or 0) - 1]
        return {**metrics, "eval_text_to_image_R@1": line["eval_text_to_image_R@1"]}


@pytest.mark.parametrize(("limit", "kept"), [(1, [6, 12]), (2, [6, 12]), (3, [6, 9, 12])])
def test_the_best_checkpoint_is_kept_and_the_card_says_which_data_chose_it(
    tiny_clip, pairs_folder, tmp_path, limit, kept
):
    data = TrainingData(str(pairs_folder))
    settings = {"num_train_epochs": 4, "eval_strategy": "epoch", "save_total_limit": limit}
    trainer = make_trainer(tiny_clip, tmp_path, data, data, Scored, **settings, save_strategy=None)
    trainer.train()
    assert sorted(int(name.rpartition("-")[2]) for name in names(tmp_path)) == kept
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-6")
    trainer.save_model()
    best = f"The best text_to_image_R@1 on {pairs_folder.name} was 9, after step 6. The model here is that of the last"
    assert best in (tmp_path / "README.md").read_text()


def test_checkpoints_within_long_epochs(tiny_clip, rows, tmp_path):
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 3, "save_total_limit": None}
    # Epochs of four steps: one within each epoch, and none at its end but the epoch's.
    make_trainer(tiny_clip, tmp_path, rows, save_strategy="epoch", save_steps=3, **settings).train()
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4", "checkpoint-7", "checkpoint-8"]


def test_checkpoints_of_another_training_are_refused(trainer_for, tmp_path):
    trainer = trainer_for(tmp_path / "out")
    trainer.train()
    trainer.train()  # its own
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"`output_dir` .*holds checkpoints .*checkpoint-4.*`overwrite_output_dir"):
        trainer_for(tmp_path / "out", seed=1).train()
    # A training that resumes from another folder would delete them too.
    trainer_for(tmp_path / "other", max_steps=2).train()
    with pytest.raises(ValueError, match="holds checkpoints"):
        trainer_for(tmp_path / "out", max_steps=3).train(str(tmp_path / "other/checkpoint-2"))
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again = trainer_for(tmp_path / "out", max_steps=2, overwrite_output_dir=True)
    again.train()
    assert names(tmp_path / "out") == ["checkpoint-2"]


def test_evaluation_data_without_pairs_are_evaluated(tiny_clip, rows, tmp_path):
    without = [{"image": row["image"], "caption": row["caption"]} for row in rows]
    metrics = [
        make_trainer(tiny_clip, tmp_path, rows, data, dataloader_num_workers=workers).evaluate()
        for data, workers in ((rows, 0), (without, 0), ([*without[:6], *rows[6:]], 1))
    ]
    recalls = [{name: value for name, value in part.items() if "_to_" in name} for part in metrics]
    assert recalls[0] == recalls[1] == recalls[2]
    assert [("eval_loss" in part, "eval_loss_local" in part) for part in metrics] == [(True, True)] + 2 * [(False,) * 2]
