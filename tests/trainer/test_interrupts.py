"""Interrupted trainings: real signals at each point of a training, then a resume that ends at the same weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.card import CardOptions
from fastgoal.trainer.checkpoints import damage
from fastgoal.trainer.interrupts import Interrupted
from fastgoal.trainer.run import main
from tests.tiny_trainers import make_trainer

ROWS = 11  # three batches of an epoch, the last one of three rows


class Signals(TrainerCallback):
    """Send signals to this process at an event of the training, the first time that the step is reached."""

    def __init__(self, event, step, *numbers):
        self.event, self.step, self.numbers = event, step, [*numbers]

    def __getattribute__(self, name):
        if name.startswith("on_") and name == object.__getattribute__(self, "event"):
            return self.send
        return object.__getattribute__(self, name)

    def send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            while self.numbers:
                os.kill(os.getpid(), self.numbers.pop(0))


def trainer_of(clip, pairs, folder, *callbacks, **changes):
    settings = {"num_train_epochs": 2, "card": CardOptions(images=False), "logging_steps": 2, **changes}
    data = TrainingData(str(pairs), limit=ROWS)
    return make_trainer(clip, folder, data, data, callbacks=[*callbacks], **settings)


def checkpoints(folder):
    return sorted(int(path.name.rpartition("-")[2]) for path in Path(folder).glob("checkpoint-*"))


def evaluated(trainer):
    return [line["step"] for line in trainer.state.log_history if "eval_loss" in line]


@pytest.fixture(scope="module")
def whole(tiny_clip, pairs_folder, tmp_path_factory):
    """Return the weights of uninterrupted trainings by their settings."""
    known = {}

    def weights(**settings):
        key = repr(settings)
        if key not in known:
            trainer = trainer_of(tiny_clip, pairs_folder, tmp_path_factory.mktemp("whole"), **settings)
            trainer.train()
            known[key] = trainer.model.state_dict()
        return known[key]

    return weights


EPOCHS = {"save_strategy": "epoch", "eval_strategy": "epoch"}
STEPS = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
CASES = {
    # The event and the number of finished steps at which the signal arrives, the step that is saved, and the settings.
    "in a step": ("on_pre_optimizer_step", 1, 2, EPOCHS),
    "at the end of an epoch": ("on_pre_optimizer_step", 2, 3, EPOCHS),
    "while gradients are accumulated": ("on_substep_end", 2, 3, {**EPOCHS, "gradient_accumulation_steps": 2}),
    "in an evaluation": ("on_prediction_step", 2, 2, STEPS),
    "in an evaluation at the end of an epoch": ("on_prediction_step", 3, 3, EPOCHS),
    "after a checkpoint": ("on_save", 3, 3, EPOCHS),
    "between two epochs": ("on_epoch_begin", 3, 4, EPOCHS),
    "without checkpoints": ("on_pre_optimizer_step", 1, 2, {"save_strategy": "no"}),
    "with checkpoints of models": ("on_pre_optimizer_step", 3, 4, {**EPOCHS, "save_only_model": True}),
    "in the last step": ("on_pre_optimizer_step", 5, 6, EPOCHS),
}


FAST = ("at the end of an epoch", "in an evaluation")


@pytest.mark.parametrize("case", [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_the_step_is_finished_and_saved_and_a_resume_ends_at_the_same_weights(
    tiny_clip, pairs_folder, tmp_path, whole, case
):
    event, step, saved, settings = CASES[case]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stopped = trainer_of(tiny_clip, pairs_folder, tmp_path, Signals(event, step, signal.SIGTERM), **settings)
    with pytest.raises(KeyboardInterrupt, match=rf"step {saved}\..*checkpoint-{saved}\b") as stop:
        stopped.train()
    assert stop.value.signum == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert checkpoints(tmp_path)[-1] == saved
    assert damage(tmp_path / f"checkpoint-{saved}") is None
    resumed = trainer_of(tiny_clip, pairs_folder, tmp_path, **settings)
    assert resumed.train(resume_from_checkpoint=True).global_step == resumed.state.max_steps
    for name, tensor in whole(**settings).items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    expected = {"epoch": [3, 6], "steps": [2, 4, 6]}.get(settings.get("eval_strategy"), [])
    if "gradient_accumulation_steps" in settings:
        expected = [2, 4]
    assert evaluated(resumed) == expected[: 1 if case == "in the last step" else None]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_dropout_is_the_same_after_an_interrupted_evaluation(tiny_clip, pairs_folder, tmp_path):
    # Evaluations must not draw from the generator of the training: this one is repeated at another point of it.
    def weights(folder, *callbacks, resume=None):
        trainer = trainer_of(tiny_clip, pairs_folder, folder, *callbacks, **STEPS)
        for module in trainer.model.modules():
            if hasattr(module, "dropout"):
                module.dropout = 0.2  # of the attention
        trainer.train(resume_from_checkpoint=resume)
        return torch.cat([value.flatten() for value in trainer.model.state_dict().values()])

    expected = weights(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        weights(tmp_path / "stopped", Signals("on_prediction_step", 2, signal.SIGINT))
    assert torch.equal(weights(tmp_path / "stopped", resume=True), expected)


def test_a_signal_while_a_checkpoint_is_written(tiny_clip, pairs_folder, tmp_path):
    trainer = trainer_of(tiny_clip, pairs_folder, tmp_path, **EPOCHS)
    write = trainer._save_rng_state
    trainer._save_rng_state = lambda folder: (os.kill(os.getpid(), signal.SIGINT), write(folder))
    with pytest.raises(KeyboardInterrupt, match="step 3"):
        trainer.train()
    assert checkpoints(tmp_path) == [3]
    assert damage(tmp_path / "checkpoint-3") is None


@pytest.mark.parametrize("event", ["on_prediction_step", "on_epoch_begin"])
def test_before_the_first_step_a_signal_stops_at_once(tiny_clip, pairs_folder, tmp_path, event):
    signals = Signals(event, 0, signal.SIGTERM)
    trainer = trainer_of(tiny_clip, pairs_folder, tmp_path, signals, eval_on_start=True, **EPOCHS)
    with pytest.raises(KeyboardInterrupt) as stop:
        trainer.train()
    assert stop.value.signum == signal.SIGTERM
    assert checkpoints(tmp_path) == []
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("numbers", "saved"),
    [
        ((signal.SIGINT, signal.SIGINT), []),
        ((signal.SIGTERM, signal.SIGINT), []),
        ((signal.SIGTERM, signal.SIGTERM), [2]),  # as a scheduler and a launcher send it
    ],
)
def test_a_second_ctrl_c_stops_at_once(tiny_clip, pairs_folder, tmp_path, numbers, saved):
    trainer = trainer_of(tiny_clip, pairs_folder, tmp_path, Signals("on_pre_optimizer_step", 1, *numbers), **EPOCHS)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoints(tmp_path) == saved
    assert trainer.state.global_step == (2 if saved else 1)


def test_the_command_names_the_command_that_resumes(tiny_clip, pairs_folder, tmp_path, monkeypatch):
    output = tmp_path / "the output"
    argv = [
        *("--model", str(tiny_clip), "--train_data", str(pairs_folder), "--output_dir", str(output), "--use_cpu"),
        *("--dataloader_num_workers", "0", "--max_text_length", "77", "--card_images", "false"),
        *("--per_device_train_batch_size", "8"),
    ]
    from fastgoal.trainer.callbacks import Epochs

    monkeypatch.setattr(Epochs, "on_pre_optimizer_step", Signals("", 0, signal.SIGINT).send, raising=False)
    with pytest.raises(Interrupted) as stop:
        main(argv)
    words = " ".join(argv[:-5]).replace(str(output), f"'{output}'")
    assert f"run.py {words}" in str(stop.value)
    assert str(stop.value).endswith("--per_device_train_batch_size 8 --resume_from_checkpoint true")
    assert f"{output / 'checkpoint-1'}." in str(stop.value)
    # The command works as printed, and does not grow when it is interrupted again.
    monkeypatch.setattr(Epochs, "on_pre_optimizer_step", Signals("", 1, signal.SIGINT).send)
    with pytest.raises(Interrupted) as again:
        main([*argv, "--resume_from_checkpoint", "true"])
    assert str(again.value) == str(stop.value).replace("checkpoint-1", "checkpoint-2")


def command(clip, pairs, output, *more):
    """Return the command of a training of 40 steps without checkpoints."""
    return [
        *(sys.executable, "-m", "fastgoal", "train", "--model", str(clip), "--train_data", str(pairs)),
        *("--output_dir", str(output), "--max_steps", "40", "--save_strategy", "no", "--logging_steps", "1"),
        *("--per_device_train_batch_size", "2", "--use_cpu", "--learning_rate", "1e-3", "--max_text_length", "77"),
        *("--card_images", "false", "--pair_sampling", "any", "--disable_tqdm", "true", "--report_to", "none", *more),
    ]


def start(argv, folder):
    """Start a command in a process group of its own, in which SIGINT has its usual effect."""
    return subprocess.Popen(
        argv,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def read_until(process, step):
    """Read the output of a training until it has logged that many steps."""
    for line in process.stdout:
        step -= "'loss'" in line
        if step <= 0:
            return
    pytest.fail("the training ended early")


def finish(argv, folder):
    process = start(argv, folder)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "processes"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 2)])
def test_an_interrupted_command_resumes_at_the_next_step(tiny_clip, pairs_folder, tmp_path, number, code, processes):
    more = ["--num_processes", str(processes), "--dataloader_num_workers", "2" if processes == 1 else "1"]
    # A process that forks workers in every short epoch can hang in CPython 3.11, if one of its threads ends meanwhile.
    more += ["--dataloader_persistent_workers", "true"]
    argv = command(tiny_clip, pairs_folder, tmp_path / "stopped", *more)
    process = start(argv, tmp_path)
    read_until(process, 5)
    # As a terminal does, to all processes of the group: the loaders' workers, or the launcher that passes it on.
    os.killpg(process.pid, number)
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == code, printed
    assert "Traceback" not in printed
    assert "Press Ctrl-C again" in printed
    (saved,) = checkpoints(tmp_path / "stopped")
    assert 5 <= saved < 40
    assert printed.count("'loss'") == saved - 5  # no step is lost
    assert f"{tmp_path}/stopped/checkpoint-{saved}" in printed
    resume = [line for line in printed.splitlines() if line.startswith("fastgoal train ")]
    assert resume == [" ".join(["fastgoal", *argv[3:], "--resume_from_checkpoint", "true"])]
    if processes == 2:  # that two processes resume exactly is tested without commands
        assert damage(tmp_path / "stopped" / f"checkpoint-{saved}") is None
        return
    printed = finish([*argv[:3], *resume[0].split()[1:]], tmp_path)
    assert printed.count("'loss'") == 40 - saved
    finish(command(tiny_clip, pairs_folder, tmp_path / "whole", *more), tmp_path)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("stopped", "whole")]
    for name, tensor in weights[1].items():
        assert torch.equal(weights[0][name], tensor), name


@pytest.mark.slow
def test_a_second_ctrl_c_stops_a_command_at_once(tiny_clip, pairs_folder, tmp_path):
    # A step of ten minutes: after the first Ctrl-C it would have to be finished.
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time, sys, runpy\nfrom fastgoal.trainer.callbacks import Epochs\n"
        "def wait(self, args, state, control, **kwargs):\n"
        "    if state.global_step == 2:\n        print('waits', flush=True)\n        time.sleep(600)\n"
        "Epochs.on_pre_optimizer_step = wait\n"
        "sys.argv[0] = 'fastgoal'\n"
        "from fastgoal.trainer.cli import launch\nlaunch.SCRIPT = __file__\n"
        "from fastgoal.trainer.run import main, run_parser\nfrom fastgoal.trainer.cli.terminal import run_cleanly\n"
        "sys.exit(run_cleanly(run_parser, lambda: main(sys.argv[1:])))\n"
    )
    more = ["--num_processes", "2", "--dataloader_num_workers", "0"]
    argv = [sys.executable, str(slow), *command(tiny_clip, pairs_folder, tmp_path / "out", *more)[4:]]
    process = start(argv, tmp_path)
    for line in process.stdout:
        if "waits" in line:
            break
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if "Press Ctrl-C again" in line:
            break
    time.sleep(1)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=100)
    assert time.monotonic() - began < 20
    assert process.returncode == 130, printed
    assert checkpoints(tmp_path / "out") == []
