import pytest

from fastgoal.trainer.cli.parser import Parser, did_you_mean


@pytest.fixture
def parser():
    parser = Parser(prog="tool", epilog="One\nparagraph " + "of words " * 12 + "\n\n  a list\n  as it is\n")
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("-k", "--top-k", type=int, default=5, help="how many")
    parser.add_argument("--text")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--learning_rate", type=float)
    return parser


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--top_k", "3"], {"top_k": 3}),
        (["--top_k=3"], {"top_k": 3}),
        (["-k3"], {"top_k": 3}),
        (["--top-k", "-3"], {"top_k": -3}),
        (["--learning-rate=1e-3"], {"learning_rate": 1e-3}),
        (["--text", "- a dash, and a word"], {"text": "- a dash, and a word"}),
        (["--text=--dry_run"], {"text": "--dry_run"}),
        (["a", "-", "--", "--unknown"], {"files": ["a", "-", "--unknown"]}),
    ],
)
def test_spellings_and_values(parser, arguments, expected):
    found = vars(parser.parse_args(arguments))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tpo-k", "3"], "unknown option --tpo-k: did you mean --top-k?"),
        (["--top", "3"], "unknown option --top: did you mean --top-k?"),
        (["--text", "--dryrun"], "unknown option --dryrun: did you mean --dry-run?"),
        (["--zzz=1"], "unknown option --zzz"),
        (["--text"], "argument --text: expected one argument"),
        (["-k", "x"], "argument -k/--top-k: invalid int value: 'x'"),
    ],
)
def test_errors_are_the_usage_line_and_one_more(parser, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"usage: tool [FILE ...] [options]\ntool: error: {message}\n"


def test_help_fills_paragraphs_and_tells_defaults(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = parser.format_help()
    assert "how many (default: 5)" in text
    assert "(default: None)" not in text
    assert "(default: False)" not in text
    assert "One paragraph of words" in text
    assert text.endswith("\n\n  a list\n  as it is\n")
    assert max(map(len, text.splitlines())) <= 60


def test_nothing_near():
    assert did_you_mean("--zebra", ["--model", "--data"]) == ""


@pytest.fixture
def named_parser():
    parser = Parser(prog="tool")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("-n", "--num-workers", type=int)
    parser.add_argument("--on-error")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--hard_negatives", "--near", nargs="?")
    parser.add_argument("--model_name", "--model", dest="model")
    parser.add_argument("--target", nargs="+")
    return parser


@pytest.mark.parametrize(
    ("parameter", "argument"),
    [
        ("`num_workers`", "--num-workers"),
        ("`num_workers=8`", "--num-workers 8"),
        ("`on_error='skip'`", "--on-error skip"),
        ("`on_error=skip it`", "--on-error 'skip it'"),
        ("`hard_negatives`", "--hard_negatives"),
        ("`hard_negatives=False`", "--hard_negatives false"),
        ("`dry_run=True`", "--dry-run"),
        ("`dry_run=False`", "`dry_run=False`"),
        ("`num_workers=None`", "`num_workers=None`"),
        ("`target=['q', 'v']`", "--target q v"),
        ("`folder`", "DIR"),
        ("`model`", "--model"),
        ("`batch_size`", "`batch_size`"),
        ("`model.config`", "`model.config`"),
        ("`tool --help`", "`tool --help`"),
    ],
)
def test_parameters_become_arguments_of_the_command(named_parser, parameter, argument):
    assert (
        named_parser.with_flags(f"{parameter} is wrong, see ({parameter}).")
        == f"{argument} is wrong, see ({argument})."
    )


def test_errors_of_the_parser_name_flags_too(named_parser, capsys):
    with pytest.raises(SystemExit):
        named_parser.error("`num_workers` must not be negative.")
    assert "error: --num-workers must not be negative." in capsys.readouterr().err
