"""`fastgoal merge`: an adapter and its base as one model."""

import argparse

from .options import add

HELP = "add an adapter's weights to those of its base: a CLIP as any other"

EPILOG = """\
All commands that take a model take an adapter too; a merged one needs neither its base nor peft.

example:
  fastgoal merge fast-goal-lora/ --output fast-goal/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or Hub id that `fastgoal train --lora_r` made")
    add(parser, "--output", help="folder to write, new or empty")
    parser.add_argument(
        "--base", metavar="CLIP", help="the CLIP it was trained on, where it is not where the adapter says"
    )


def run(args: argparse.Namespace) -> int:
    from fastgoal.export.merge import merge

    tokens = merge(args.adapter, args.output, args.base)
    print(f"{args.output}: a CLIP that reads {tokens} tokens, for every transformers program")
    return 0
