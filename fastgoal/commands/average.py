"""`fastgoal average`: average the weights of a base model and a tuned one."""

import argparse

from .options import add, call, number

HELP = "average the weights of a base model and a tuned one, to keep more of what the base could do"

EPILOG = """\
The weights are (1 - ALPHA) base + ALPHA tuned (WiSE-FT). Use it if the fine-tuning made a model better on your data
and worse elsewhere. If the base reads fewer tokens than the tuned model, its text positions are stretched first.

example:
  fastgoal average fast-goal --base openai/clip-vit-base-patch16 --alpha 0.6 --output fast-goal-0.6
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tuned", metavar="TUNED", help="tuned model or adapter: a folder or a Hub id")
    parser.add_argument(
        "--base", metavar="MODEL", help="model that it was trained from (default for an adapter: the one that it names)"
    )
    parser.add_argument(
        "--alpha",
        type=number(0, 1, float),
        required=True,
        metavar="ALPHA",
        help="share of the tuned weights, from 0 to 1",
    )
    add(parser, "--output", help="output folder, new or empty")


def run(args: argparse.Namespace) -> int:
    from fastgoal.export.average import average

    tokens = call(average, args)
    print(f"{args.output}: a model with a text length of {tokens} tokens; load it with transformers")
    return 0
