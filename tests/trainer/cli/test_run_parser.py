"""The help of a training: our settings first and short, those of transformers only in the long one."""

import re
import subprocess
import sys
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from fastgoal.trainer.cli import launch
from fastgoal.trainer.cli.run_parser import GROUPS, WITHOUT_EFFECT
from fastgoal.trainer.run import RunArguments, main, run_parser
from fastgoal.trainer.training_arguments import FastGoalTrainingArguments


def listed(text):
    """The options of a help, in order."""
    return re.findall(r"^  (?:-\w, )?--(\w+)", text, re.MULTILINE)


@pytest.fixture(scope="module")
def brief():
    return run_parser("fastgoal train").format_options()


def test_our_settings_are_all_there_once_and_those_of_transformers_are_not(brief):
    names = listed(brief)
    theirs = TrainingArguments.__dataclass_fields__
    training = [field.name for field in fields(FastGoalTrainingArguments) if theirs.get(field.name) is not field]
    ours = {*(field.name for field in fields(RunArguments)), *training} - {*WITHOUT_EFFECT}
    assert ours <= {*names} <= {*ours, *(name for group in GROUPS.values() for name in group)}
    assert len(names) == len({*names}) < len(theirs)
    assert names[:2] == ["model", "train_data"]
    assert "\nothers:\n" not in brief  # each of our settings is in a group by its subject
    assert not {"fsdp_config", "hub_strategy", "adam_beta1"} & {*names}


def test_a_setting_says_what_it_does_here_in_a_sentence(brief):
    text = " ".join(brief.split())
    assert "--resume_from_checkpoint VALUE Checkpoint to resume from: a folder, or `true` for the newest" in text
    assert "--num_train_epochs X Number of training epochs. (default: 10.0)" in text
    assert "--freeze {vision,text} Tower to freeze" in text
    assert "--bf16 Enable" in text
    assert "Set of defaults for the arguments that are not given. (default: paper)" in text
    assert max(map(len, brief.splitlines())) <= 100


@pytest.mark.parametrize(("flag", "is_complete"), [("--help", False), ("--help-all", True), ("--help_all", True)])
def test_the_two_helps(capsys, flag, is_complete):
    with pytest.raises(SystemExit) as stop:
        main([flag])
    assert not stop.value.code
    output = capsys.readouterr().out
    assert output.startswith("usage: run.py CONFIG.yaml [options]\n")
    every = {field.name for arguments in (RunArguments, FastGoalTrainingArguments) for field in fields(arguments)}
    assert (every <= {*listed(output)}) == is_complete
    assert ("weight decay on all parameters" in " ".join(output.split())) == is_complete  # not in a first sentence
    assert ("--fsdp_config" in output) == is_complete


@pytest.mark.slow
def test_accelerate_launch_shows_the_same_help(brief):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(launch.SCRIPT), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert listed(result.stdout) == listed(brief)
    assert "usage: run.py CONFIG.yaml" in result.stdout
