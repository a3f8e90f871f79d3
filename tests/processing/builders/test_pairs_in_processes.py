"""Several processes make one folder: they share the shards out, and whoever is killed when, the rows stay the same."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from fastgoal.cli import main
from fastgoal.processing.builders.shards import own_process
from fastgoal.processing.builders.team import Team

from .colour_world import SETTINGS, free_port, make_folder, rows_of, run, run_as_process, without_times

SMALL = replace(SETTINGS, shard_size=2)
IMAGES, SHARDS = 24, 12


@pytest.fixture(scope="module")
def context():
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_as_process.__module__, "datasets", "pyarrow.parquet"])
    return context


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of pictures and what one process alone makes of it."""
    base = tmp_path_factory.mktemp("made")
    folder = make_folder(base / "data", IMAGES)
    summary = run(folder, base / "pairs", settings=SMALL)
    return SimpleNamespace(folder=folder, output=base / "pairs", summary=summary, rows=rows_of(base / "pairs"))


@pytest.fixture
def start(context, tmp_path):
    """Start processes on one folder; `options` are those of `run_as_process`, by rank or for all."""
    started = []

    def start(folder, size, by_rank=None, **options):
        port = free_port()
        arguments = (str(folder), str(tmp_path / "pairs"), str(tmp_path))
        options = {"settings": SMALL, "pause": 0.01, **options}
        processes = [
            context.Process(
                target=run_as_process,
                args=(rank, size, port, *arguments),
                kwargs=options | (by_rank or {}).get(rank, {}),
            )
            for rank in range(size)
        ]
        started.extend(processes)
        for process in processes:
            process.start()
        return processes

    yield start
    for process in started:
        process.kill()


def join(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def reports(tmp_path, *ranks):
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in ranks]


def left_over(output):
    return [path.name for path in (output / ".fastgoal").iterdir() if path.suffix != ".json"]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_shards(made, start, tmp_path, size):
    assert join(start(made.folder, size)) == [0] * size
    first, *others = found = reports(tmp_path, *range(size))
    assert len({report["pid"] for report in found}) == size
    assert all(report["images"] for report in found)
    assert sum(report["images"] for report in found) == IMAGES  # nothing twice
    assert rows_of(tmp_path / "pairs") == made.rows
    assert without_times(first["summary"]) == without_times(made.summary)
    assert first["summary"]["shards_made"] == SHARDS
    assert all(report["summary"]["images"] == report["images"] for report in others)
    assert left_over(tmp_path / "pairs") == []

    # Started again, all of them find that nothing is left to do.
    assert join(start(made.folder, size)) == [0] * size
    assert [report["summary"]["shards_made"] for report in reports(tmp_path, *range(size))] == [0] * size
    assert rows_of(tmp_path / "pairs") == made.rows


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_any_moment_by_any_number_nothing_is_lost_or_mixed(made, start, tmp_path, seed):
    chance = random.Random(seed)
    before = {}
    for _ in range(6):
        processes = start(made.folder, chance.choice([1, 2, 3]))
        time.sleep(chance.uniform(0.05, 0.7))
        for process in processes:
            process.kill()
        join(processes)
        now = rows_of(tmp_path / "pairs") if (tmp_path / "pairs/data").is_dir() else {}
        assert before.items() <= now.items() <= made.rows.items()
        before = now
    assert join(start(made.folder, 2, pause=0.0)) == [0, 0]
    assert rows_of(tmp_path / "pairs") == made.rows
    assert without_times(reports(tmp_path, 0)[0]["summary"]) == without_times(made.summary)
    assert left_over(tmp_path / "pairs") == []


def test_a_helper_that_dies_loses_only_its_own_shard(made, start, tmp_path):
    processes = start(made.folder, 2, {1: {"act_at": 4, "action": signal.SIGKILL}})
    assert join(processes) == [0, -signal.SIGKILL]
    (report,) = reports(tmp_path, 0)
    assert "process 1: it ended before its work was done" in report["error"]
    assert "run the same command again" in report["error"]
    # It was at its second shard and had taken up to two more to read ahead.
    assert SHARDS - 3 <= len(rows_of(tmp_path / "pairs")) < SHARDS
    summary = run(made.folder, tmp_path / "pairs", settings=SMALL)
    assert 1 <= summary["shards_made"] <= 3
    assert without_times(summary) == without_times(made.summary)
    assert rows_of(tmp_path / "pairs") == made.rows


def test_when_the_first_process_dies_the_others_keep_what_they_have(made, start, tmp_path):
    processes = start(made.folder, 2, {0: {"act_at": 4, "action": signal.SIGKILL}})
    assert join(processes) == [-signal.SIGKILL, 0]
    (report,) = reports(tmp_path, 1)
    assert "is gone" in report["error"] or "ended before" in report["error"]
    finished = rows_of(tmp_path / "pairs")
    assert finished.items() <= made.rows.items()
    assert run(made.folder, tmp_path / "pairs", settings=SMALL)["shards_made"] == SHARDS - len(finished)
    assert rows_of(tmp_path / "pairs") == made.rows


def test_a_row_that_cannot_be_used_stops_all_and_loses_no_finished_shard(start, tmp_path):
    folder = make_folder(tmp_path / "data", IMAGES)
    whole = tmp_path / "whole"
    run(folder, whole, settings=SMALL)
    content = (folder / "9.png").read_bytes()
    (folder / "9.png").write_bytes(content[:60] + bytes(len(content) - 60))  # as long as before: the same data to it
    assert join(start(folder, 2)) == [0, 0]
    errors = [report["error"] for report in reports(tmp_path, 0, 1) if "error" in report]
    assert any("9.png" in error and "--on-error skip" in error for error in errors)
    assert "error" in reports(tmp_path, 0)[0]  # the first process tells of all
    assert rows_of(tmp_path / "pairs").items() < rows_of(whole).items()
    (folder / "9.png").write_bytes(content)
    assert join(start(folder, 3)) == [0, 0, 0]
    assert rows_of(tmp_path / "pairs") == rows_of(whole)


def test_processes_with_other_settings_are_told(made, start, tmp_path):
    assert join(start(made.folder, 2, {1: {"settings": replace(SMALL, min_area=0.02)}})) == [0, 0]
    first, second = reports(tmp_path, 0, 1)
    assert "process 1 was started with other data or settings: min_area was 0.01 and is now 0.02" in second["error"]
    assert "process 1 was started with other" in first["error"]


def test_two_commands_on_one_folder(made, start, tmp_path):
    slow = start(made.folder, 2, pause=0.1)
    lock = tmp_path / "pairs/.fastgoal/lock"
    while not lock.exists():
        time.sleep(0.01)
    with pytest.raises(ValueError, match=r"process \d+ writes this folder .*Wait for it, stop it, or use another"):
        run(made.folder, tmp_path / "pairs", settings=SMALL)
    os.kill(slow[0].pid, signal.SIGKILL)
    join(slow)


def test_a_helper_that_outlives_its_run_is_waited_for(made, tmp_path):
    lock = tmp_path / "pairs/.fastgoal/lock-00002"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps(own_process()))
    with pytest.raises(ValueError, match=f"process {os.getpid()} writes this folder"):
        run(made.folder, tmp_path / "pairs", settings=SMALL)
    lock.write_text(json.dumps({**own_process(), "started": "before the last boot"}))
    run(made.folder, tmp_path / "pairs", settings=SMALL)
    assert rows_of(tmp_path / "pairs") == made.rows


def test_a_process_alone_is_a_team():
    team = Team()
    with team.planning() as announce:
        announce({"pending": [5, 7]})
        with team.working():
            assert list(team.take([5, 7])) == [5, 7]
            assert (team.count(2), team.count(3)) == (2, 5)
    assert team.plan() == {"pending": [5, 7]}
    assert team.errors == {}
    with pytest.raises(ValueError, match="no row"), team.working():
        raise ValueError("no row")
    assert list(team.take([1])) == []  # nothing is begun after an error


def test_no_launcher_is_found(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(OSError, match=r"cannot find each other.*torchrun or accelerate launch"):
        Team.from_environment()


def test_the_command_under_torchrun(tiny_clip, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(8):
        Image.effect_noise((48 + number, 36), 80).save(folder / f"{number}.jpg")
    lines = [{"file_name": f"{i}.jpg", "caption": f"Picture {i} is grey. It has noise."} for i in range(8)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["pairs", folder, "--model", tiny_clip, "--detector", "none", "--shard-size", 2, "--num-workers", 2]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun sets it: more would only change the last bits of scores
    assert main([*map(str, options), "--output", str(tmp_path / "alone")]) == 0
    torch.set_num_threads(threads)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "fastgoal"]
    done = subprocess.run(
        [*launch, *map(str, options), "--output", str(tmp_path / "pairs"), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8 images, 0 skipped, 16 sentences") == 1
    assert "4 shards, 4 written now" in done.stdout
    assert rows_of(tmp_path / "pairs") == rows_of(tmp_path / "alone")
    assert left_over(tmp_path / "pairs") == []
    assert capsys.readouterr().out.splitlines()[0] in done.stdout
