"""`fastgoal config`: print a commented settings file."""

import argparse

HELP = "print a commented settings file for `fastgoal train`"

EPILOG = """\
Prints YAML with the settings of the method and the most common settings of a training, each with its meaning and its
default. Every other field of transformers' TrainingArguments can be added; `fastgoal train --help` lists all of them.

example:
  fastgoal config > config.yaml
  fastgoal train config.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", choices=("paper", "goal", "experimental"), default="paper", help="recipe that sets the values"
    )


def run(args: argparse.Namespace) -> int:
    from fastgoal.trainer.settings_template import commented_settings

    print(commented_settings(args.recipe), end="")
    return 0
