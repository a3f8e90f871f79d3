"""`fastgoal merge`: merge an adapter into its base model."""

import argparse

from .options import add, call, prepare

HELP = "merge an adapter into its base model"

EPILOG = """\
Every command that takes a model also takes an adapter. A merged model requires neither its base nor peft.

example:
  fastgoal merge fast-goal/adapter --output merged/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapter", metavar="ADAPTER", help="adapter that `fastgoal train --lora_r` or peft saved: a folder or a Hub id"
    )
    add(parser, "--output", help="output folder, new or empty")
    parser.add_argument(
        "--base", metavar="MODEL", help="base model of the adapter (default: the one that the adapter names)"
    )


def run(args: argparse.Namespace) -> int:
    prepare(args, models=["adapter", "base"])

    from fastgoal.export.merge import merge

    tokens = call(merge, args)
    print(f"{args.output}: a model with a text length of {tokens} tokens; load it with transformers")
    return 0
