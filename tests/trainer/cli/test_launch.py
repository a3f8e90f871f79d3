"""`num_processes` and `accelerate_config` start the processes of a training and pass on how they end."""

import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from fastgoal.trainer.cli import launch as module
from fastgoal.trainer.cli.launch import CONFIGS, STARTED, launch, starts_processes
from fastgoal.trainer.run import main


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU", STARTED):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def commands(monkeypatch):
    """Record the commands that would start processes, on a machine with four GPUs."""
    seen = []
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(module, "_run_on_cpu", lambda count, command, config: seen.append((count, command)))
    monkeypatch.setattr(module, "_run_accelerate", lambda command, replace: seen.append((replace, command)))
    return seen


@pytest.mark.parametrize(
    ("num_processes", "config", "starts"),
    [(None, None, False), (1, None, False), (2, None, True), (None, "cpu", True), (1, "cpu", True)],
)
def test_which_settings_start_processes(num_processes, config, starts):
    assert starts_processes(num_processes, config) is starts


def test_a_process_that_was_started_does_not_start_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not starts_processes(None, None)
    with pytest.raises(ValueError, match=r"`num_processes` and `accelerate_config`.*WORLD_SIZE"):
        starts_processes(2, None)
    monkeypatch.setenv(STARTED, "1")
    assert not starts_processes(2, None)


def test_gpus_through_accelerate(commands):
    assert launch(["c.yaml"], 3, None, False) == 0
    assert launch(["c.yaml"], 4, "fsdp", False) == 0
    assert launch(["c.yaml"], None, str(CONFIGS / "one_gpu.yaml"), False) == 0
    script = [str(module.SCRIPT), "c.yaml"]
    many = ["--config_file", str(CONFIGS / "many_gpus.yaml"), "--num_processes", "3", "--mixed_precision", "no"]
    fsdp = ["--config_file", str(CONFIGS / "fsdp.yaml"), "--num_processes", "4"]
    one = ["--config_file", str(CONFIGS / "one_gpu.yaml"), "--num_processes", "1"]
    assert commands == [(False, many + script), (False, fsdp + script), (True, one + script)]


def test_cpu_processes_through_torch(commands, monkeypatch):
    assert launch(["c.yaml", "--use-cpu"], 2, None, True) == 0
    assert launch(["c.yaml"], 3, "cpu", False) == 0
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    assert launch(["c.yaml"], 2, None, False) == 0
    command = [str(module.SCRIPT), "c.yaml", "--use_cpu", "true"]
    assert commands == [(2, [*command[:2], "--use-cpu"]), (3, command), (2, command)]


def test_the_command_starts_that_many_gpu_processes(monkeypatch):
    from accelerate.commands import launch as accelerate

    seen = SimpleNamespace()
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(accelerate, "multi_gpu_launcher", lambda args: setattr(seen, "args", args))
    launch(["c.yaml", "--bf16", "true"], 3, None, False)
    assert (seen.args.num_processes, seen.args.mixed_precision, seen.args.use_fsdp) == (3, "no", False)
    assert seen.args.training_script_args == ["c.yaml", "--bf16", "true"]
    launch(["c.yaml"], 2, "fsdp", False)
    assert (seen.args.num_processes, seen.args.mixed_precision, seen.args.use_fsdp) == (2, "bf16", True)
    launch(["c.yaml"], 2, "one_gpu", False)
    assert (seen.args.num_processes, seen.args.multi_gpu) == (2, True)


def test_a_single_process_replaces_this_one(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: seen.append(arguments))
    launch(["c.yaml"], None, "cpu", False)
    ((program, command, environment),) = seen
    assert command == [program, str(module.SCRIPT), "c.yaml", "--use_cpu", "true"]
    assert (environment[STARTED], environment["ACCELERATE_USE_CPU"]) == ("1", "True")


@pytest.mark.parametrize(
    ("count", "config", "use_cpu", "facts"),
    [
        (5, None, False, ["`num_processes`", "4", "got 5"]),
        (None, "many", False, ["`accelerate_config`", "did you mean many_gpus"]),
        (2, "many_gpus", True, ["`accelerate_config=many_gpus`", "`use_cpu`", "`accelerate_config=cpu`"]),
        (None, {"num_processes": "two"}, False, ["c.yaml", "'two'", "`num_processes`"]),
        (None, "model: [a", False, ["c.yaml", "invalid YAML"]),
    ],
)
def test_settings_that_do_not_fit(commands, tmp_path, count, config, use_cpu, facts):
    if config is not None and config not in ("many", "many_gpus"):
        (tmp_path / "c.yaml").write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        config = str(tmp_path / "c.yaml")
    with pytest.raises(ValueError, match=r"`|YAML") as error:
        launch(["c.yaml"], count, config, use_cpu)
    assert all(fact in str(error.value) for fact in facts)
    assert not commands


def failure(*codes):
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=0) for rank, code in enumerate(codes) if code}
    return type("Failed", (ChildFailedError,), {"__init__": lambda self: setattr(self, "failures", failures)})()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (failure(2, -signal.SIGTERM), 2),
        (failure(1, 2), 2),
        (failure(0, 1), 1),
        (failure(-signal.SIGTERM, -signal.SIGKILL), 137),
        (SignalException("", signal.SIGTERM), 143),
    ],
)
def test_the_exit_code_is_that_of_the_process_that_failed(commands, monkeypatch, error, code):
    def run(*arguments):
        raise error

    monkeypatch.setattr(module, "_run_on_cpu", run)
    assert launch(["c.yaml"], 2, None, True) == code


def test_an_interrupt_is_passed_on(commands, monkeypatch):
    def run(*arguments):
        raise SignalException("", signal.SIGINT)

    monkeypatch.setattr(module, "_run_on_cpu", run)
    with pytest.raises(KeyboardInterrupt):
        launch(["c.yaml"], 2, None, True)


@pytest.fixture(scope="module")
def settings(tiny_clip, pairs_folder):
    return {
        **{"model": str(tiny_clip), "train_data": str(pairs_folder), "num_train_epochs": 2, "logging_steps": 1},
        **{"optim": "sgd", "learning_rate": 0.05, "train_sampling_strategy": "sequential", "report_to": "none"},
        **{"dataloader_num_workers": 0, "use_cpu": True, "per_device_train_batch_size": 2, "card_images": False},
    }


def write(folder, **settings):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**settings, "output_dir": str(folder / "out")}))
    return str(path)


def start(*arguments, cwd):
    command = [sys.executable, "-m", "fastgoal", "train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_two_cpu_processes_train_what_one_process_does(settings, tmp_path):
    (tmp_path / "two").mkdir()
    path = write(tmp_path / "two", **settings, num_processes=2)
    process = start(path, cwd=tmp_path)
    (tmp_path / "one").mkdir()
    assert main([write(tmp_path / "one", **{**settings, "per_device_train_batch_size": 4})]) == 0
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "find_unused_parameters" not in printed
    one, two = tmp_path / "one/out", tmp_path / "two/out"
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (one, two)]
    losses = [[line["loss"] for line in state["log_history"] if "loss" in line] for state in states]
    assert len(losses[0]) == states[0]["global_step"] == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    weights = load_file(two / "model.safetensors")
    start_weights = load_file(f"{settings['model']}/model.safetensors")
    for name, tensor in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0)
    assert not torch.equal(weights["visual_projection.weight"], start_weights["visual_projection.weight"])


@pytest.mark.slow
def test_a_signal_to_the_launcher_ends_all_processes(settings, tmp_path):
    path = write(tmp_path, **{**settings, "num_train_epochs": 10_000}, num_processes=2)
    process = start(path, cwd=tmp_path)
    assert process.stdout is not None
    assert any("'loss'" in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=100)  # ends when the last process has closed its end of the pipe
    assert process.returncode == 143
    assert "Traceback" not in printed


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others_and_is_one_line(settings, rows, tmp_path):
    # One image is broken: the process that reads it stops, and the other one waits for its embeddings.
    for number, row in enumerate(rows[:8]):
        (tmp_path / f"{number}.png").write_bytes(row["image"]["bytes"])
    lines = [{"file_name": f"{number}.png", "caption": row["caption"]} for number, row in enumerate(rows[:8])]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])
    path = write(tmp_path, **{**settings, "train_data": str(tmp_path), "objective": "global"})
    printed, _ = (process := start(path, "--num_processes", "2", cwd=tmp_path)).communicate(timeout=150)
    assert process.returncode == 2
    assert printed.count("error:") == 1
    assert re.search(r"fastgoal train: error: .*5\.png", printed)
    assert "Traceback" not in printed
