"""`fastgoal config`: a file of settings to begin with."""

import argparse

HELP = "write a commented file of settings for `fastgoal train`"

EPILOG = """\
Prints YAML with the settings of this method and of every training, each with what it means and its default. All others
of transformers' TrainingArguments can be added; `fastgoal train --help` lists them.

example:
  fastgoal config > config.yaml
  fastgoal train config.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", choices=(("paper", "goal", "experimental")), default="paper", help="whose values are shown"
    )


def run(args: argparse.Namespace) -> int:
    from fastgoal.trainer.settings_template import commented_settings

    print(commented_settings(args.recipe), end="")
    return 0
