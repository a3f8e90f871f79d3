import argparse

import pytest

from fastgoal.cli import build_parser
from fastgoal.commands.options import SHARED, number


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (number(1), "0", "is 0; it must be at least 1"),
        (number(1), "1.5", "is '1.5'; it must be an integer, at least 1"),
        (number(77, 248), "300", "is 300; it must be from 77 to 248"),
        (number(0, 1, float), "nan", "is nan; it must be from 0 to 1"),
        (number(0, kind=float), "x", "is 'x'; it must be a number, at least 0"),
    ],
)
def test_numbers_out_of_range(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert str(error.value) == message


def test_numbers_in_range():
    assert (number(1)("1"), number(0, 1, float)("1"), number(0, 1, float)("0.5")) == (1, 1.0, 0.5)


def test_an_option_of_several_commands_is_a_shared_one():
    """An option that two commands declare stands in the table, but for names of files, which differ by nature."""
    parser = build_parser()
    (commands,) = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    declared = [
        {flag for action in command._actions for flag in action.option_strings} for command in commands.values()
    ]
    twice = {flag for flags in declared for flag in flags if sum(flag in other for other in declared) > 1}
    assert twice - set(SHARED) == {"-h", "--help", "--traceback", "-k", "--output", "--detector", "--tokenizer"}
