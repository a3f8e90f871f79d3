"""The run script: settings from a file and flags, a training from end to end, and through accelerate."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModel

from fastgoal import EvaluationOptions, evaluate
from fastgoal.trainer.callbacks import Epochs
from fastgoal.trainer.run import _refuse_separate_processes, main, parse
from fastgoal.trainer.trainer import FastGoalTrainer
from tests.tiny_trainers import make_trainer

FAST = "learning_rate: 1.0e-3\nmax_steps: 2\nper_device_train_batch_size: 4\nuse_cpu: true\ndataloader_num_workers: 0\n"
SCRIPT = Path(__file__).resolve().parents[2] / "trainer" / "run.py"


def config(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_flags_overrule_the_file(tmp_path):
    path = config(tmp_path, f"model: clip\ntrain_data: pairs\noutput_dir: {tmp_path}\nobjective: global\n" + FAST)
    run, training = parse([path, "--learning_rate", "0.5", "--objective", "local"])
    assert (run.model, run.train_data, run.max_text_length) == ("clip", "pairs", None)
    assert (training.learning_rate, training.objective, training.max_steps) == (0.5, "local", 2)


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (
            "model: clip\nlerning_rate: 1.0\nxyz: 1\n",
            [],
            "unknown settings lerning_rate: did you mean learning_rate?, xyz",
        ),
        ("model: a: b\n", [], "config.yaml: invalid YAML: mapping values are not allowed here"),
        ("just a text", [], "config.yaml: a settings file has `key: value` lines"),
        ("model: [a\nseed: 1\n", [], "config.yaml: invalid YAML: while parsing a flow sequence"),
        ("model: a\nmodel_name_or_path: a\n", [], "model and model_name_or_path are two names"),
        ("max-steps: 1\nmax_steps: 2\n", [], "max-steps and max_steps are two names"),
        (
            "model: a\n",
            ["--train_data", "a", "--dataset-name", "b"],
            "train_data and dataset-name are two names",
        ),
        ("model: a\n", ["--train", "a"], "unknown option --train"),
        ("model: a\ntrain_data: a\nglobal_weight: -1\n", [], "--global_weight must not be negative, got -1.0."),
        ("model: a\n", ["--objective", "gaol"], "--objective must be one of"),
        ("model: a\ntrain_data: a\n", ["--eval_also", "a=zeroshot:b"], "--eval_also must name one of the protocols"),
    ],
)
def test_wrong_settings_are_two_lines(tmp_path, capsys, text, flags, message):
    with pytest.raises(SystemExit) as stop:
        parse([config(tmp_path, text), *flags])
    assert stop.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.endswith("[CONFIG.yaml] [--model MODEL] [--train_data DATA] [options]")
    assert message in error


def test_names_of_the_ecosystem_and_both_spellings(tmp_path):
    path = config(tmp_path, "model_name_or_path: clip\ndataset-name: pairs\nmax-steps: 3\nuse_cpu: true\n")
    run, training = parse([path, "--model-name-or-path", "other", "--learning-rate", "0.5"])
    assert (run.model, run.train_data, training.max_steps, training.learning_rate) == ("other", "pairs", 3, 0.5)


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    path = config(tmp_path, f"model: clip\ntrain_data: pairs\noutput_dir: {tmp_path}\nlearning_rate: 5e-6\n")
    assert parse([path])[1].learning_rate == 5e-6


def test_a_file_may_hold_dictionaries_and_values_that_begin_with_a_dash(tmp_path):
    values = "lr_scheduler_kwargs:\n  num_cycles: 2\nrun_name: --long\nseed: -1\n"
    path = config(tmp_path, f"model: clip\ntrain_data: pairs\noutput_dir: {tmp_path}\n{values}")
    training = parse([path])[1]
    assert (training.lr_scheduler_kwargs, training.run_name, training.seed) == ({"num_cycles": 2}, "--long", -1)


def test_from_data_to_a_loadable_folder(tiny_clip, pairs_folder, tmp_path, capsys):
    output = tmp_path / "out"
    for name in ("red/1.png", "red/2.png", "blue/1.png"):
        (tmp_path / "classes" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), name.split("/")[0]).save(tmp_path / "classes" / name)
    path = config(
        tmp_path,
        f"model: {tiny_clip}\ntrain_data: {pairs_folder}\neval_data: {pairs_folder}\noutput_dir: {output}\n"
        f"local_weight: 0.25\nmax_eval_rows: 6\n{FAST}"
        f"eval_also: ['short=folder:{pairs_folder}', 'colors=zero-shot:{tmp_path / 'classes'}']\n",
    )
    assert main([path]) == 0
    # What the training gained and lost is on the card, with the numbers of the base as `fastgoal evaluate` gives them.
    options = EvaluationOptions(protocol="zero-shot", device="cpu", resamples=0)
    base, tuned = (evaluate(str(name), tmp_path / "classes", options).metrics["top_1"] for name in (tiny_clip, output))
    card = (output / "README.md").read_text()
    assert f"| colors: top 1 | {100 * base:.2f} | {100 * tuned:.2f} | {100 * (tuned - base):+.2f} |" in card
    assert (
        card.index("## Gained and lost") < card.index("| short: R@1, text to image | ") < card.index("## Limitations")
    )
    assert f"colors: top 1: {100 * base:.2f} % before, {100 * tuned:.2f} % after" in capsys.readouterr().out
    model = AutoModel.from_pretrained(output)
    assert model.config.text_config.max_position_embeddings == 248
    saved = json.loads((output / "config.json").read_text())
    assert (saved["global_weight"], saved["local_weight"], saved["tsl_weight"]) == (1.0, 0.25, 1.0)
    metrics = json.loads((output / "eval_results.json").read_text())
    assert 0 <= metrics["eval_text_to_image_R@1"] <= 100
    assert metrics["eval_loss_local"] > 0
    assert json.loads((output / "train_results.json").read_text())["train_loss"] > 0
    # Going on from where it stopped: nothing is left to do.
    assert main([path, "--resume_from_checkpoint", "true"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", [[str(SCRIPT)], ["-m", "fastgoal.trainer.run"]])
def test_accelerate_launch(tiny_clip, pairs_folder, tmp_path, program):
    output = tmp_path / "out"
    path = config(tmp_path, f"model: {tiny_clip}\ntrain_data: {pairs_folder}\noutput_dir: {output}\n" + FAST)
    settings = SCRIPT.parent / "accelerate_configs" / "cpu.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings)]
    done = subprocess.run([*launch, *program, path], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (output / "model.safetensors").is_file()


def test_processes_that_do_not_know_of_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    _refuse_separate_processes(2)
    with pytest.raises(ValueError, match=r"2 processes .*no GPUs.*fastgoal train --num_processes 2"):
        _refuse_separate_processes(1)


def interrupt_at(step):
    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return interrupt


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_training_is_evaluated_once_and_resumed_without_a_trace(
    tiny_clip, pairs_folder, tmp_path, monkeypatch, capfd
):
    evaluated, evaluate = [], FastGoalTrainer.evaluate

    def noted(self, *args, **kwargs):
        evaluated.append(self.state.global_step)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(FastGoalTrainer, "evaluate", noted)
    data = f"train_data: {pairs_folder}\neval_data: {pairs_folder}\n"
    path = config(tmp_path, f"model: {tiny_clip}\n{data}output_dir: {tmp_path / 'out'}\n{FAST}num_train_epochs: 1\n")
    longer = [path, "--max_steps", "6"]  # two epochs
    monkeypatch.setattr(Epochs, "on_step_end", interrupt_at(4), raising=False)
    with pytest.raises(KeyboardInterrupt):
        main(longer)
    assert evaluated == [0, 3]
    resume = [*longer, "--resume_from_checkpoint", "true"]
    assert main(resume) == 0
    assert evaluated == [0, 3, 6]
    card = (tmp_path / "out/README.md").read_text()
    assert re.search(r"\| 0 \|.*\n\| 3 \|.*\n\| 6 \|", card)
    before = hashes(tmp_path / "out")
    capfd.readouterr()
    assert main(resume) == 0
    assert hashes(tmp_path / "out") == before
    assert evaluated == [0, 3, 6]
    assert "R@1 text to image" in capfd.readouterr().out
    # A training that was ended before its model was saved is completed.
    (tmp_path / "out/trainer_state.json").unlink()
    (tmp_path / "out/model.safetensors").unlink()
    assert main(resume) == 0
    after = hashes(tmp_path / "out")
    assert after[tmp_path / "out/model.safetensors"] == before[tmp_path / "out/model.safetensors"]


def test_the_card_and_checkpoints_count_the_time_before_a_resume(tiny_clip, rows, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    make_trainer(tiny_clip, tmp_path, rows, **settings).train()
    shutil.rmtree(tmp_path / "checkpoint-3")
    path = tmp_path / "checkpoint-2/fastgoal_training.json"
    known = json.loads(path.read_text())
    assert 0 < known["seconds"] < 100
    path.write_text(json.dumps({**known, "seconds": 7200.0}))
    trainer = make_trainer(tiny_clip, tmp_path, rows, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert 7200 < json.loads((tmp_path / "checkpoint-3/fastgoal_training.json").read_text())["seconds"] < 7300
    trainer.save_model()
    assert "| time | 2.0 h |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_report_to(name, tmp_path, tiny_clip, rows, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    pytest.importorskip(name)
    options = {"max_steps": 2, "logging_steps": 1, "report_to": name, "project": "tests", "run_name": "first"}
    trainer = make_trainer(tiny_clip, tmp_path / "out", rows, **options)
    trainer.train()
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "events")).Reload()
        kept = [event.value for event in events.Scalars("train/loss_global")]
    else:
        from trackio.sqlite_storage import SQLiteStorage

        logs = SQLiteStorage.get_logs("tests", "first")
        kept = [entry["train/loss_global"] for entry in logs if "train/loss_global" in entry]
    assert len(kept) == 2
    assert kept == pytest.approx(
        [entry["loss_global"] for entry in trainer.state.log_history if "loss_global" in entry]
    )
