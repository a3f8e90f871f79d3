"""Whatever names and captions hold, a console of any encoding shows it, and none of it steers the console."""

import io
import json
import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from fastgoal.trainer.cli.parser import Parser
from fastgoal.trainer.cli.terminal import Terminal, any_text, run_cleanly

PARSER = Parser(prog="p")
PARSER.add_argument("--num-workers")


def shown(text, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    Terminal(stream).write(text)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\x1b[2Jb\x1b[1;1Hc", r"a\x1b[2Jb\x1b[1;1Hc"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("a\rb\bc\x7f\x9bd", r"a\x0db\x08c\x7f\x9bd"),
        ("\rbar 10%|##", "\rbar 10%|##"),
        ("txt.\u202egnp", r"txt.\u202egnp"),
        ("half \ud800", r"half \ud800"),
        ("Ein Fluß, 红色, 🦊", "Ein Fluß, 红色, 🦊"),
    ],
)
def test_what_is_shown(text, expected):
    assert shown(text) == expected


def test_what_an_encoding_has_not():
    assert shown("Fluß 红 🦊", "ascii") == r"Flu\xdf \u7ea2 \U0001f98a"
    assert shown("Fluß 红", "cp1252") == "Fluß \\u7ea2"


def test_progress_bars_still_move(capsys):
    with any_text():
        for _ in tqdm(range(2), desc="\x1b]0;x\x07"):
            pass
    assert capsys.readouterr().err.count("\r") >= 2


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ValueError("row 3 is \x1b[2J wrong"), "p: error: row 3 is \\x1b[2J wrong\n", 2),
        (OSError("no room"), "p: error: no room\n", 2),
        (ValueError("`num_workers` must be 0, `row` too"), "p: error: --num-workers must be 0, `row` too\n", 2),
        (KeyboardInterrupt(), "p: interrupted\n", 130),
        (MemoryError(), "p: error: out of memory: reduce the batch size.\n", 2),
        (
            type("UsageError", (Exception,), {"__module__": "wandb.errors.errors"})("No API key."),
            "p: error: wandb: No API key. Set WANDB_MODE=offline to log without an account, or `report_to=none`.\n",
            2,
        ),
    ],
)
def test_how_a_program_ends(capsys, error, line, code):
    def work():
        raise error

    streams = sys.stdout, sys.stderr
    assert run_cleanly(lambda: PARSER, work) == code
    assert capsys.readouterr().err == line
    assert (sys.stdout, sys.stderr) == streams
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="row"):
            run_cleanly(lambda: PARSER, work, lambda: True)


def test_a_defect_is_not_hidden():
    with pytest.raises(KeyError):
        run_cleanly(lambda: PARSER, lambda: {}["a"])


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)])
def test_a_console_of_another_encoding(tmp_path, pairs_folder, encoding):
    folder = tmp_path / "红色 🦊\x1b]0;x\x07"
    folder.mkdir()
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    wrong = subprocess.run(
        [sys.executable, "-m", "fastgoal", "inspect", str(folder)], env=environment, capture_output=True, check=False
    )
    assert wrong.returncode == 2
    assert rb"\u7ea2\u8272 \U0001f98a\x1b]0;x\x07 is empty" in wrong.stderr
    right = subprocess.run(
        [sys.executable, "-m", "fastgoal", "inspect", str(pairs_folder), "--output", str(folder / "é.html")],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert right.returncode == 0, right.stderr
    assert "charset" in (folder / "é.html").read_text(encoding="utf-8")
    assert json.dumps(right.stdout.decode(encoding))
