import errno
import os
import re
import subprocess
import sys
import types

import pytest

from fastgoal import cli
from fastgoal.cli import COMMANDS, build_parser, main
from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS

LIGHT = """
import sys
from fastgoal.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"torch", "transformers", "datasets", "numpy", "PIL", "ultralytics", "tqdm", "yaml"} & set(sys.modules)
assert not heavy, heavy
"""


def run_in_a_fresh_process(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def command(monkeypatch):
    """Replaces every sub-command by one that does what the test says, and returns a place for it."""
    fake = types.SimpleNamespace(HELP="do something", add_arguments=lambda parser: None, run=lambda args: 0)
    fake.add_arguments = lambda parser: parser.add_argument("--number", type=int)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: fake)
    return fake


def raising(error):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS if name != "train")]
)
def test_help_imports_nothing_heavy(arguments):
    result = run_in_a_fresh_process("-c", LIGHT, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("fastgoal 0." if arguments == ["--version"] else "usage: fastgoal")


def test_help_is_quick():
    """The best of three, on whatever else the machine does, and without Python's own start."""
    script = "import time; t = time.perf_counter(); from fastgoal.cli import build_parser; build_parser().format_help()"
    script += "; print(time.perf_counter() - t)"
    assert min(float(run_in_a_fresh_process("-c", script).stdout) for _ in range(3)) < 0.3


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert all(re.search(rf"^    {name}\b", output, re.MULTILINE) for name in COMMANDS)


def test_python_m_fastgoal_is_the_command():
    result = run_in_a_fresh_process("-m", "fastgoal", "--version")
    assert result.returncode == 0
    assert result.stdout.startswith("fastgoal 0.")


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "usage", "message"),
    [
        (["guess"], "fastgoal COMMAND", "unknown command guess; `fastgoal --help` lists all commands"),
        (["evalute"], "fastgoal COMMAND", "unknown command evalute: did you mean evaluate?"),
        (["--versoin"], "fastgoal COMMAND", "unknown option --versoin: did you mean --version?"),
        (
            ["pairs", "data/", "--detectr", "none"],
            "fastgoal pairs SOURCE --output DIR --model MODEL [options]",
            "unknown option --detectr: did you mean --detector?",
        ),
        (
            ["search", "images/", "--model", "m", "--k", "3"],
            "fastgoal search IMAGES [TEXT] --model MODEL [options]",
            "unknown option --k: did you mean -k?",
        ),
        (
            ["push-data", "pairs/", "OWNER/NAME"],
            "fastgoal push-data DIR REPO --license ID [options]",
            "the following arguments are required: --license",
        ),
        (
            ["explain", "--model", "m", "--image", "i.jpg"],
            "fastgoal explain --model MODEL --image FILE (--caption TEXT | --caption-file FILE) [options]",
            "one of the arguments --caption --caption-file is required",
        ),
        (
            ["evaluate", "--model", "m", "--data", "d", "--protocol", "doci"],
            "fastgoal evaluate ",
            f"--protocol must be one of {', '.join(PROTOCOLS)}, got 'doci': did you mean docci?",
        ),
        (["gallery", "--model", "m", "--top_k", "0"], "fastgoal gallery ", "--top-k must be at least 1, got 0"),
        (
            ["train", "--model", "m", "--learning_rat", "1"],
            "fastgoal train [CONFIG.yaml] [--model MODEL] [--train_data DATA] [options]",
            "unknown option --learning_rat: did you mean --learning_rate?",
        ),
    ],
)
def test_wrong_arguments_are_two_lines(capsys, arguments, usage, message):
    assert main(arguments) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"usage: {usage}")
    assert re.fullmatch(rf"fastgoal(?: [a-z-]+)?: error: {re.escape(message)}", second)


@pytest.mark.parametrize("spelling", ["--batch_size", "--batch-size"])
def test_both_spellings_of_an_option(spelling):
    args = build_parser().parse_args(["pairs", "data/", "--output", "o", "--model", "m", spelling, "3"])
    assert args.batch_size == 3


def test_returns_the_exit_code_of_the_command(command):
    command.run = lambda args: args.number
    assert main(["pairs", "--number", "7"]) == 7


def test_options_are_not_abbreviated(command, capsys):
    assert main(["pairs", "--num", "7"]) == 2
    assert "unknown option --num: did you mean --number?" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("row 3 is bad"), ImportError("row 3 is bad"), OSError("row 3 is bad")])
def test_errors_are_one_line(command, capsys, error):
    command.run = raising(error)
    assert main(["pairs"]) == 2
    assert capsys.readouterr().err == "fastgoal pairs: error: row 3 is bad\n"


def test_missing_file_is_named(command, capsys):
    command.run = raising(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "cat.jpg"))
    assert main(["evaluate"]) == 2
    assert "No such file or directory: 'cat.jpg'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--traceback", "pairs"], ["pairs", "--traceback"], ["train", "--traceback"]])
def test_traceback(command, arguments):
    command.run = raising(ValueError("row 3 is bad"))
    with pytest.raises(ValueError, match="row 3 is bad"):
        main(arguments)


def test_a_fault_of_the_program_is_not_hidden(command):
    command.run = raising(TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        main(["pairs"])


def test_interrupt(command, capsys):
    command.run = raising(KeyboardInterrupt())
    assert main(["quickstart"]) == 130
    assert capsys.readouterr().err == "fastgoal quickstart: interrupted\n"


def test_closed_pipe_is_quiet():
    script = "import sys; from fastgoal import cli; sys.exit(cli.main(['train', '--help']))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (1, b"")


def test_train_hands_over_everything(monkeypatch):
    seen = []
    fake = types.SimpleNamespace(run_parser=lambda prog: prog, main=lambda *arguments: seen.append(arguments) or 3)
    monkeypatch.setitem(sys.modules, "fastgoal.trainer.run", fake)
    arguments = ["config.yaml", "--learning_rate", "5e-6", "--tf32", "--", "pairs", "--version"]
    assert main(["train", *arguments]) == 3
    assert seen == [(arguments, "fastgoal train")]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_train_shows_its_usage_at_once_and_then_all_options(monkeypatch, capsys, arguments):
    shown_before = []
    fake = types.SimpleNamespace(
        run_parser=lambda prog: prog, main=lambda argv, _: shown_before.append((argv, capsys.readouterr().out)) or 0
    )
    monkeypatch.setitem(sys.modules, "fastgoal.trainer.run", fake)
    assert main(["train", *arguments]) == 0
    ((argv, output),) = shown_before
    assert argv == ["--help"]
    assert output.startswith("usage: fastgoal train CONFIG.yaml")
