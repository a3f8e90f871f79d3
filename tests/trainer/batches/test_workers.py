"""Workers of data loaders end with their training, and only then."""

import multiprocessing
import subprocess
import sys

import pytest

from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.batches.streams import StreamData
from tests.tiny_trainers import make_trainer


@pytest.mark.parametrize("read", [TrainingData, StreamData])
def test_no_worker_outlives_a_training_or_an_evaluation(read, tiny_clip, pairs_folder, rows, tmp_path):
    settings = {"dataloader_num_workers": 2, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    trainer = make_trainer(tiny_clip, tmp_path, read(str(pairs_folder)), rows[:2], **settings)
    seen = []
    step = trainer.training_step
    trainer.training_step = lambda *args: seen.append(len(multiprocessing.active_children())) or step(*args)
    trainer.train()
    assert seen[0] >= 1
    assert seen[1] > seen[0]  # those of the evaluation wait for the next one
    assert not multiprocessing.active_children()
    trainer.evaluate()
    assert not multiprocessing.active_children()


def test_no_worker_outlives_an_error(tiny_clip, pairs_folder, rows, tmp_path):
    settings = {"dataloader_num_workers": 1, "max_steps": 2}
    trainer = make_trainer(tiny_clip, tmp_path, TrainingData(str(pairs_folder)), rows[:2], **settings)

    def fail(*args, **kwargs):
        assert multiprocessing.active_children()
        raise ArithmeticError

    trainer.training_step = trainer.prediction_step = fail
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(ArithmeticError):
            run()
        assert not multiprocessing.active_children()


# In a fresh process: libraries that other tests load start threads in forked workers, which take signals too.
WORKER = """
import os, signal, subprocess, time
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from fastgoal.trainer.batches.workers import start_workers


class Pids(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return os.getpid()


loader = start_workers(Accelerator(cpu=True).prepare(DataLoader(Pids(), num_workers=1, persistent_workers=True)))
(worker,) = {int(pid) for pid in loader}
assert worker != os.getpid()
for name in ("INT", "TERM"):
    subprocess.run(["kill", f"-{name}", str(worker)], check=True)  # from another process
time.sleep(0.2)
assert [int(pid) for pid in loader] == [worker] * 8
os.kill(worker, signal.SIGTERM)
state, deadline = "", time.monotonic() + 10
while state != "Z":
    assert time.monotonic() < deadline
    with suppress(RuntimeError):  # of torch, whose handler of SIGCHLD may notice the death first
        time.sleep(0.01)
        state = Path(f"/proc/{worker}/stat").read_text().split()[2]
print("ended", flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_a_worker_ends_only_when_its_own_training_ends_it():
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "ended\n", done.stderr
