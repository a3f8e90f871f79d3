import dataclasses
import errno
import os
import re
import subprocess
import sys
import types

import pytest

from fastgoal import cli
from fastgoal.cli import COMMANDS, build_parser, main
from fastgoal.commands import train
from fastgoal.trainer.evaluation.protocols.registry import ACCURACY_PROTOCOLS, PROTOCOLS
from fastgoal.trainer.run import RunArguments

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
    assert result.stdout.startswith("fastgoal 1." if arguments == ["--version"] else "usage: fastgoal")


MISTAKES = [
    "caption nothing --output o --model m/m",
    "caption . --output o --model ./nothing",
    "pairs nothing --output o --model m/m",
    "pairs . --output o --model ./nothing",
    "pairs . --output o --model empty",
    "pairs . --output o --model m/m --detector empty",
    "inspect nothing",
    "inspect . --model empty",
    "train nothing.yaml",
    "train --model ./nothing --train_data .",
    "train --model m/m --train-data=nothing",
    "train settings.yaml",
    "train --model m/m",
    "evaluate --model empty --data .",
    "evaluate --model m/m --data nothing",
    "evaluate --model m/m --data . --against ./nothing",
    "explain --model ./nothing --image a.png --caption C",
    "explain --model m/m --image nothing.png --caption C",
    "explain --model m/m --image a.png --caption-file nothing.txt",
    "gallery --model empty --data . --output o.png",
    "embed nothing --model m/m --output o",
    "embed . --model empty --output o",
    "search nothing --model m/m",
    "search . --model empty",
    "demo --model empty",
    "demo --model m/m --images nothing",
    "reproduce nothing",
    "convert nothing.pt --base m/m --output o",
    "convert empty --to open_clip --output o",
    "merge empty --output o",
    "average empty --alpha 0.5 --output o",
    "export empty --to onnx --output o",
    "push nothing m/m",
    "push-data nothing m/m --license mit",
    "push-space m/m --model ./nothing",
]
MANY_MISTAKES = """
import sys
from fastgoal.cli import main
for line in sys.stdin.read().splitlines():
    assert main(line.split()) == 2, line
    heavy = {"torch", "transformers", "datasets", "pyarrow", "huggingface_hub"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""


def test_common_mistakes_import_nothing_heavy(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").touch()
    (tmp_path / "settings.yaml").write_text("model: empty\ntrain_data: .\n")
    without_arguments = [name for name in COMMANDS if name not in ("config", "quickstart", "reproduce")]
    lines = [*without_arguments, *MISTAKES]
    result = subprocess.run(
        [sys.executable, "-c", MANY_MISTAKES],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    errors = [line.partition(": error: ")[2] for line in result.stderr.splitlines() if ": error: " in line]
    assert len(errors) == len(lines)
    for line, error in zip(lines, errors, strict=True):
        words = {"nothing": "nothing", "empty": "config.json", "settings": "empty"}
        assert next((text for name, text in words.items() if name in line), "required") in error, line


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
    assert result.stdout.startswith("fastgoal 1.")


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
            f"--protocol must be one of {', '.join((*PROTOCOLS, *ACCURACY_PROTOCOLS))}, got 'doci': "
            "did you mean docci?",
        ),
        (["gallery", "--model", "m", "--top_k", "0"], "fastgoal gallery ", "--top-k must be at least 1, got 0"),
        (
            ["train", "--model", "a/b", "--train_data", "a/b", "--learning_rat", "1"],
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


def test_train_hands_over_everything(monkeypatch, tmp_path):
    seen = []
    fake = types.SimpleNamespace(run_parser=lambda prog: prog, main=lambda *arguments: seen.append(arguments) or 3)
    monkeypatch.setitem(sys.modules, "fastgoal.trainer.run", fake)
    (tmp_path / "config.yaml").write_text("model_name_or_path: a/b\ntrain_data: a/b\n")
    arguments = [str(tmp_path / "config.yaml"), "--learning_rate", "5e-6", "--tf32", "--", "pairs", "--version"]
    assert main(["train", *arguments]) == 3
    assert main(["train", "--quiet", *arguments[:3]]) == 3
    quiet = [*arguments[:3], "--disable_tqdm", "true"]
    assert seen == [(arguments, "fastgoal train"), (quiet, "fastgoal train")]


def test_train_checks_settings_under_all_their_names():
    aliases = {field.name: field.metadata.get("aliases") for field in dataclasses.fields(RunArguments)}
    for name, spellings in train.CHECKED.items():
        assert spellings == tuple(filter(None, (f"--{name}", aliases[name])))


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["c.yaml", "--help-all"], ["--help_all"]])
def test_train_shows_its_usage_at_once_and_then_the_options(monkeypatch, capsys, arguments):
    shown = []

    def format_options(is_complete):
        shown.append(capsys.readouterr().out)
        return f"all: {is_complete}"

    fake = types.SimpleNamespace(run_parser=lambda prog: types.SimpleNamespace(format_options=format_options))
    monkeypatch.setitem(sys.modules, "fastgoal.trainer.run", fake)
    assert main(["train", *arguments]) == 0
    assert shown[0].startswith("usage: fastgoal train CONFIG.yaml")
    assert capsys.readouterr().out == f"all: {'all' in arguments[-1]}"


def test_quiet_is_an_option_of_every_command(command):
    command.run = lambda args: int(args.progress)
    for arguments, progress in (([], 1), (["--quiet"], 0)):
        assert main(["pairs", *arguments]) == progress
        assert main([*arguments, "pairs"]) == progress
