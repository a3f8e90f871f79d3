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
