import argparse

import pytest

from fastgoal.cli import build_parser, main
from fastgoal.commands.options import SHARED, number


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (number(1), "0", "must be at least 1, got 0"),
        (number(1), "1.5", "must be an integer at least 1, got '1.5'"),
        (number(77, 248), "300", "must be from 77 to 248, got 300"),
        (number(0, 1, float), "nan", "must be from 0 to 1, got nan"),
        (number(0, kind=float), "x", "must be a number at least 0, got 'x'"),
    ],
)
def test_numbers_out_of_range(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert str(error.value) == message


def test_numbers_in_range():
    assert (number(1)("1"), number(0, 1, float)("1"), number(0, 1, float)("0.5")) == (1, 1.0, 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "UTF-8"),
        (b" \n", "is empty"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("option", ["--caption-file", "--prompt-file"])
def test_a_text_file_that_is_none(tmp_path, capsys, option, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    before = ["explain", "--model", "m", "--image", "i"]
    if option == "--prompt-file":
        before = ["caption", "images", "--model", "m", "--output", str(tmp_path)]
    assert main([*before, option, str(path)]) == 2
    error = capsys.readouterr().err
    assert f"error: {option} must be a text file" in error
    assert str(path) in error
    assert message in error


def test_what_a_text_file_holds(tmp_path):
    (tmp_path / "text.txt").write_text("A dog. Ü!\n", encoding="utf-8")
    before = ["explain", "--model", "m", "--image", "i", "--caption-file", str(tmp_path / "text.txt")]
    assert build_parser().parse_args(before).caption == "A dog. Ü!"


def test_an_option_of_several_commands_is_a_shared_one():
    """An option that two commands declare stands in the table, but for names of files, which differ by nature."""
    parser = build_parser()
    (commands,) = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    declared = [
        {flag for action in command._actions for flag in action.option_strings} for command in commands.values()
    ]
    twice = {flag for flags in declared for flag in flags if sum(flag in other for other in declared) > 1}
    assert twice - set(SHARED) == {
        "-h",
        "--help",
        "--traceback",
        "--quiet",
        "-k",
        "--detector",
        "--tokenizer",
        "--base",
        "--images",
    }
