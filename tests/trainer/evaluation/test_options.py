"""The options that `fastgoal.evaluate` and `fastgoal evaluate` share."""

import argparse
import dataclasses

import pytest

import fastgoal
from fastgoal import EvaluationOptions
from fastgoal.commands.evaluate import add_arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("protocol", "dci"),
        ("on_error", "ignore"),
        ("dtype", "int8"),
        ("batch_size", 0),
        ("limit", 0),
        ("num_workers", -1),
        ("ks", (0,)),
        ("truncate_dim", (64, 0)),
        ("truncate_dim", (0.5,)),
        ("vectors", ("int8", "int4")),
        ("vectors", "int8"),
        ("ks", ()),
        ("resamples", 1),
        ("resamples", -3),
        ("resamples", True),
        ("seed", 0.5),
    ],
)
def test_an_error_names_the_option_and_the_value(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*, got ") as error:
        EvaluationOptions(**{name: value})
    assert repr(value) in str(error.value)


def test_other_options_are_refused():
    with pytest.raises(TypeError, match="`options` must be an EvaluationOptions, got 'docci'"):
        fastgoal.evaluate("model", "data", "docci")


def test_every_option_is_a_flag_with_the_same_default_and_a_help():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = vars(parser.parse_args(["--model", "m", "--data", "d"]))
    assert {field.name: args[field.name] for field in dataclasses.fields(EvaluationOptions)} == vars(
        EvaluationOptions()
    )
    given = parser.parse_args(["--model", "m", "--data", "d", "--ks", "1", "3", "--joint", "--num-workers", "2"])
    assert (given.ks, given.joint, given.num_workers) == ([1, 3], True, 2)
    assert all(action.help for action in parser._actions)
