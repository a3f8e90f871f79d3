"""A console of any encoding shows any text, and no text controls the console."""

import io
import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from fastgoal.trainer.cli.parser import Parser
from fastgoal.trainer.cli.terminal import PEER_ENDED, Terminal, any_text, run_cleanly

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
def test_text_on_the_console(text, expected):
    assert shown(text) == expected


def test_characters_that_an_encoding_does_not_have():
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
def test_expected_errors_are_one_line(capsys, error, line, code):
    def work():
        raise error

    streams = sys.stdout, sys.stderr
    assert run_cleanly(lambda: PARSER, work) == code
    assert capsys.readouterr().err == line
    assert (sys.stdout, sys.stderr) == streams
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="row"):
            run_cleanly(lambda: PARSER, work, lambda: True)


def test_a_bug_is_not_hidden():
    with pytest.raises(KeyError):
        run_cleanly(lambda: PARSER, lambda: {}["a"])


PROGRAM = """
import sys
from fastgoal.trainer.cli.parser import Parser
from fastgoal.trainer.cli.terminal import run_cleanly

def work():
    print(sys.argv[1])
    raise ValueError(f"{sys.argv[1]} is empty")

sys.exit(run_cleanly(lambda: Parser(prog="p"), work))
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_of_another_encoding(encoding):
    text, shown = "红色 🦊 \x1b]0;x\x07", rb"\u7ea2\u8272 \U0001f98a \x1b]0;x\x07"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PROGRAM, text], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, shown)
    assert done.stderr.strip() == b"p: error: " + shown + b" is empty"


@pytest.mark.slow
def test_a_command_in_a_console_of_another_encoding(tmp_path, pairs_folder):
    folder = tmp_path / "红色 🦊\x1b]0;x\x07"
    folder.mkdir()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "fastgoal", "inspect", str(pairs_folder), "--output", str(folder / "é.html")]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "charset" in (folder / "é.html").read_text(encoding="utf-8")
    assert rb"\u7ea2\u8272 \U0001f98a\x1b]0;x\x07" in done.stdout


def test_processes_of_a_training_report_an_error_once(capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: sys.stderr.write(f"[{seconds}]"))
    monkeypatch.setenv("WORLD_SIZE", "2")

    def fail(error):
        def work():
            raise error

        return work

    lost = RuntimeError("[../gloo/transport/tcp/pair.cc:561] Connection closed by peer")
    assert run_cleanly(lambda: PARSER, fail(lost)) == PEER_ENDED
    assert capsys.readouterr().err == "[1]p: error: another process of this training ended first.\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_cleanly(lambda: PARSER, fail(ValueError("bad row"))) == 2
    assert capsys.readouterr().err == "[1]p: error: bad row\n"
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError):
        run_cleanly(lambda: PARSER, fail(lost))
