"""Rows of published tables from fabricated data, with tiny models: checks, commands, and whole runs with kills."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from fastgoal.cli import build_parser, main
from fastgoal.commands import reproduce
from fastgoal.trainer.evaluation.protocols.published import TEST_LISTS
from fastgoal.trainer.reproduce.rows import read_rows
from fastgoal.trainer.run import parse
from tests.trainer.reproduce.fabricated import make_models, make_root, write_long_clip

ROWS = read_rows()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data root and models."""
    place = tmp_path_factory.mktemp("reproduce")
    make_root(place / "data root")  # with a space
    base, _ = make_models(place)
    write_long_clip(base, place / "data root" / "longclip" / "longclip-B.pt")
    return place


def arguments(place, row, output, *more):
    words = [
        "reproduce",
        row,
        "--data",
        str(place / "data root"),
        "--output",
        str(output),
        "--base",
        str(place / "clip"),
    ]
    words += ["--detector", str(place / "yolos")] if ROWS[row].detector else []
    own = str(place / "data root" / "own" / "docci" / "images")
    words += ["--train-data", own] if ROWS[row].needs_train_data else []
    return [*words, *more]


def test_without_a_row_all_are_listed(capsys):
    assert main(["reproduce"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in ROWS)
    assert "79.06 / 78.94" in printed


@pytest.mark.parametrize("row", ROWS)
def test_dry_run_prints_commands_that_parse(place, tmp_path, row, capsys):
    assert main(arguments(place, row, tmp_path / "out", "--dry-run", "--allow-incomplete")) == 0
    printed = capsys.readouterr().out
    assert "missing" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("fastgoal ")]
    assert len(lines) == len(ROWS[row].commands)
    for line in lines:
        args = build_parser().parse_args(shlex.split(line)[1:])
        if args.command == "train":
            _, training = parse(args.arguments)
            assert training.per_device_train_batch_size == ROWS[row].batch_size
            assert training.recipe == ("goal" if "-goal-" in row else "paper")
    assert not (tmp_path / "out").exists()


def test_incomplete_and_missing_data_stop_before_the_work(place, tmp_path, capsys):
    words = arguments(place, "docci-clip-b16", tmp_path / "out")
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "incomplete  data docci, DOCCI test: 12 images" in captured.out
    assert "--allow-incomplete" in captured.err
    words[words.index("--data") + 1] = str(tmp_path)
    assert main([*words, "--dry-run", "--allow-incomplete"]) == 2
    captured = capsys.readouterr()
    assert "https://google.github.io/docci" in captured.out
    assert "fastgoal evaluate" in captured.out
    assert "data docci" in captured.err
    assert main(["reproduce", "docci-clip-b16"]) == 2
    assert "--data is required" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("row", ["coco-clip-b16", "docci-longclip-b16"])
def test_published_weights_are_converted_and_measured(place, tmp_path, row, capsys):
    words = arguments(place, row, tmp_path / "out", "--allow-incomplete")
    assert main(words) == 0
    page = (tmp_path / "out" / row / "page.md").read_text()
    assert page in capsys.readouterr().out
    assert f"{ROWS[row].published[0]:.2f} | - | - |" in page
    assert "Do not compare" in page
    assert TEST_LISTS[ROWS[row].protocol] in page
    # The printed commands are those that ran.
    assert main([*words, "--dry-run"]) == 0
    assert all(line in page for line in capsys.readouterr().out.splitlines() if line.startswith("fastgoal "))
    # Nothing runs again, and the page stays the same.
    assert main(words) == 0
    assert capsys.readouterr().out.count("Done already") == 2
    assert (tmp_path / "out" / row / "page.md").read_text() == page


def run_until(words, is_time, folder):
    """Run in a process of its own and kill it at a moment; return whether it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgoal", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None:
        if is_time(folder):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.01)
    assert process.returncode == 0
    return False


@pytest.mark.slow
def test_a_killed_run_gives_the_page_of_an_uninterrupted_one(place, tmp_path):
    row = "docci-fastgoal-b16-docci"
    words = {name: arguments(place, row, tmp_path / name, "--allow-incomplete") for name in ("whole", "killed")}
    assert not run_until(words["whole"], lambda folder: False, tmp_path / "whole")
    moments = [
        lambda folder: any(folder.glob("pairs-*/.fastgoal*")),
        lambda folder: any(folder.glob("*-b16-*/checkpoint-*/trainer_state.json")),
        lambda folder: any(folder.glob("*-b16-*/train_results.json")),
    ]
    for is_time in moments:
        assert run_until(words["killed"], is_time, tmp_path / "killed")
    assert not run_until(words["killed"], lambda folder: False, tmp_path / "killed")
    whole, killed = ((tmp_path / name / row / "page.md").read_text() for name in ("whole", "killed"))
    assert killed == whole.replace(str(tmp_path / "whole"), str(tmp_path / "killed"))
    assert "| text to image |" in whole
    # Tiny models with random weights hardly differ in their recall.
    (weights,) = (tmp_path / "whole").glob("*-b16-*/model.safetensors")
    assert weights.read_bytes() == (tmp_path / "killed" / weights.parent.name / weights.name).read_bytes()


@pytest.mark.slow
def test_a_row_with_own_training_data(place, tmp_path, capsys):
    row = "flickr30k-fastgoal-b16-glit"
    assert main(arguments(place, row, tmp_path / "out", "--allow-incomplete", "--mini-batch-size", "8")) == 0
    page = (tmp_path / "out" / row / "page.md").read_text()
    assert re.search("train_data, to train on: .*images, 20 images", page)
    assert "GLIT100k (100,647 images of SA-1B) is not public" in page


def test_an_error_of_a_command_ends_the_run(place, tmp_path, monkeypatch, capsys):
    """A command's error is shown as by the command itself, and nothing after it runs."""
    output = tmp_path / "out"
    (output / "clip-b16").mkdir(parents=True)
    (output / "clip-b16" / "mine.txt").write_text("")
    ran = []
    run_command = reproduce.run_command
    monkeypatch.setattr(
        reproduce, "run_command", lambda words, *more: ran.append(words[1]) or run_command(words, *more)
    )
    assert main(arguments(place, "docci-clip-b16", output, "--allow-incomplete")) == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    assert ran == ["convert"]
