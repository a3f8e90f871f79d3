"""The file of settings that is written is one that is read, and says what is in force."""

import re
from dataclasses import fields

import pytest

from fastgoal.trainer.cli.run_parser import WITHOUT_EFFECT
from fastgoal.trainer.run import ARGUMENTS, parse
from fastgoal.trainer.settings_template import commented_settings
from fastgoal.trainer.training_arguments import FastGoalTrainingArguments


@pytest.mark.parametrize("recipe", ["paper", "goal", "experimental"])
def test_the_written_file_is_one_of_settings(tmp_path, recipe):
    text = commented_settings(recipe)
    (tmp_path / "config.yaml").write_text(text)
    run, args = parse([str(tmp_path / "config.yaml")])
    assert (run.train_data, args.recipe) == ("pairs/", recipe)
    # With every comment that is a setting taken for one, nothing changes: the values shown are those in force.
    shown = [re.sub(r"^# (\w+: (?!null).+)$", r"\1", line) for line in text.splitlines()]
    known = {field.name for arguments in ARGUMENTS for field in fields(arguments)}
    shown = [line if line.partition(":")[0] in known else "" for line in shown]
    assert sum(map(bool, shown)) > 30
    (tmp_path / "all.yaml").write_text("\n".join(shown))
    run_of_all, args_of_all = parse([str(tmp_path / "all.yaml")])
    assert run_of_all == run
    for name in known & set(vars(args)):
        assert getattr(args_of_all, name) == getattr(args, name), name


def test_every_setting_of_ours_is_in_it():
    text = commented_settings("paper")
    for name in (*vars(FastGoalTrainingArguments)["__annotations__"], "model", "eval_data", "streaming"):
        assert f"{name}:" in text or name in WITHOUT_EFFECT
