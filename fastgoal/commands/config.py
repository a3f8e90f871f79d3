"""`fastgoal config`: print a commented settings file."""

import argparse

HELP = "print a commented settings file for `fastgoal train`"

EPILOG = """\
Prints YAML with the settings of the method and the most common settings of a training, each with its meaning and its
default. You can add every other field of transformers' TrainingArguments; `fastgoal train --help` lists them.

examples:
  fastgoal config > config.yaml
  fastgoal train config.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        choices=("paper", "goal", "experimental"),
        default="paper",
        help="recipe whose defaults are shown; docs/training.md describes the recipes",
    )


def run(args: argparse.Namespace) -> int:
    from fastgoal.trainer.settings_template import commented_settings

    print(commented_settings(args.recipe), end="")
    return 0
