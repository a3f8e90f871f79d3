"""Which checkpoints are complete, which one a training resumes from, and which output folders are refused."""

import json
import os
import re
import shutil
from contextlib import suppress

import pytest

from fastgoal.trainer.card import CardOptions
from fastgoal.trainer.checkpoints import (
    checkpoints,
    damage,
    hold_output,
    newest_checkpoint,
    refuse_other_settings,
    refuse_output,
    require_checkpoint,
    step_of,
)
from tests.tiny_trainers import make_trainer


@pytest.fixture(scope="module")
def trained(tiny_clip, rows, tmp_path_factory):
    """Return the output folder of a training with three checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 3}
    make_trainer(tiny_clip, folder, rows, card=CardOptions(images=False), **settings).train()
    return folder


@pytest.fixture
def output(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "out")


def test_saved_checkpoints_are_complete(output):
    assert [step for step, _ in checkpoints(output)] == [3, 2, 1]
    for step, path in checkpoints(output):
        assert damage(path) is None
        assert step_of(path) == step
    assert newest_checkpoint(output).name == "checkpoint-3"


def cut(path, keep=0.5):
    os.truncate(path, int(path.stat().st_size * keep))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: cut(path / "model.safetensors"), "model.safetensors is truncated or damaged"),
        (lambda path: cut(path / "optimizer.pt"), "optimizer.pt is truncated or damaged"),
        (lambda path: cut(path / "scheduler.pt"), "scheduler.pt is truncated or damaged"),
        (lambda path: cut(path / "trainer_state.json"), "trainer_state.json cannot be read"),
        (lambda path: (path / "trainer_state.json").write_text("[]"), "trainer_state.json cannot be read"),
        (lambda path: (path / "trainer_state.json").unlink(), "trainer_state.json cannot be read"),
        (lambda path: (path / "model.safetensors").unlink(), "it has no weights"),
        (lambda path: (path / "optimizer.pt").unlink(), "it has no optimizer state"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_reason(output, caplog, spoil, words):
    newest = output / "checkpoint-3"
    spoil(newest)
    assert newest_checkpoint(output).name == "checkpoint-2"
    assert words in damage(newest)
    assert re.search(rf"checkpoint-3 is skipped: .*{re.escape(words)}", caplog.text)
    with pytest.raises(ValueError, match=r"Cannot resume from \S*checkpoint-3: .*Use \S*checkpoint-2"):
        require_checkpoint(newest)


def test_without_a_complete_checkpoint(output, tmp_path):
    for _, path in checkpoints(output):
        (path / "model.safetensors").unlink()
    assert newest_checkpoint(output) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="nowhere: it is not a folder"):
        require_checkpoint(tmp_path / "nowhere")


def test_output_folders_with_contents_are_refused(output, tmp_path, tiny_clip, pairs_folder):
    def refused(folder, words, overwrite=False, checkpoint=None, resume=False, **given):
        with pytest.raises(ValueError, match=words):
            refuse_output(folder, given, overwrite, checkpoint, resume)

    model = shutil.copytree(tiny_clip, tmp_path / "clip")
    data = shutil.copytree(pairs_folder, tmp_path / "pairs")
    (tmp_path / "file").touch()
    link = tmp_path / "link"
    link.symlink_to(model)
    refused(tmp_path / "file", "`output_dir` .*is a file")
    refused(model, "is the folder of `model`", model=str(model))
    refused(link, "is the folder of `model`", model=str(model))
    refused(data, "is the folder of `train_data`", train_data=str(data))
    refused(model, "holds a model.*`overwrite_output_dir=True`")
    refused(data, "holds a dataset")
    refused(output, r"holds checkpoints of a training \(checkpoint-3\).*`resume_from_checkpoint=True`")
    inside = str(output / "checkpoint-1")
    refused(output, "deletes the old checkpoints .*`model` .* is in one of them", overwrite=True, model=inside)
    # A finished model without checkpoints cannot be resumed.
    refused(model, "holds a model", resume=True)

    for folder in (tmp_path / "new", tmp_path / "clip", data, output):
        refuse_output(folder, {"model": str(model), "train_data": str(data)}, True, None, False)
    refuse_output(tmp_path / "new", {"model": "owner/name", "eval_data": None}, False, None, False)
    refuse_output(output, {}, False, output / "checkpoint-3", True)
    refuse_output(output, {}, False, None, True)  # none is complete: the training starts from the beginning
    assert {path.name for path in tmp_path.iterdir()} == {"clip", "pairs", "file", "link", "out"}


@pytest.mark.parametrize("written", [None, "out/card.md", "out/.fastgoal/state"])
def test_a_refused_training_leaves_no_folder(tmp_path, written):
    folder = tmp_path / "out"
    with suppress(ValueError), hold_output(folder), hold_output(folder):  # the run script and the trainer
        if written is not None:
            (tmp_path / written).touch()
        raise ValueError("refused")
    assert folder.exists() == (written is not None)
    folder.mkdir(exist_ok=True)
    with hold_output(folder):  # a folder that the user made
        pass
    assert folder.is_dir()


def test_only_settings_known_to_both_are_compared(output, caplog):
    folder = output / "checkpoint-1"
    settings = json.loads((folder / "fastgoal_training.json").read_bytes())
    refuse_other_settings(folder, settings, False)
    refuse_other_settings(folder, {**settings, "of a later version": 1}, False)
    with pytest.raises(ValueError, match="`seed` was 42 and is now 7"):
        refuse_other_settings(folder, {**settings, "seed": 7}, False)
    refuse_other_settings(folder, {**settings, "seed": 7}, True)
    assert "`seed` was 42 and is now 7" in caplog.text
    for text in ("{", "[1]"):
        (folder / "fastgoal_training.json").write_text(text)
        with pytest.raises(ValueError, match=r"fastgoal_training.json: cannot be read"):
            refuse_other_settings(folder, settings, False)
    (folder / "fastgoal_training.json").unlink()
    refuse_other_settings(folder, settings, False)


def test_checkpoints_hold_their_settings(trained):
    settings = json.loads((trained / "checkpoint-1/fastgoal_training.json").read_bytes())
    assert (settings["objective"], settings["batch size"], settings["tsl_weight"]) == ("fast_goal", 4, 1.0)
