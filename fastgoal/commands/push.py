"""`fastgoal push`: send a model or a pairs dataset to the Hugging Face Hub."""

import argparse

from .options import add, call, prepare

HELP = "send a model or a pairs dataset to the Hugging Face Hub"

EPILOG = """\
A model goes with its processor, card and code. Only files that fastgoal writes are sent: safetensors, configurations,
the card, code and the images that the card shows, but never pickles, checkpoints or logs. An incomplete model or
dataset, a link that leads out of the folder, and a file with an access key are errors. Images of a dataset are sent
without their metadata (positions, names, serial numbers, thumbnails); orientation, color profile, artist and copyright
stay. Everything goes in one commit, so a push that fails changes no file on the Hub and can be repeated.

The access token is the one of `hf auth login` or HF_TOKEN. For a dataset, `fastgoal push-data` makes a better card,
with its licenses and figures.

example:
  fastgoal push fast-goal OWNER/NAME --private
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "folder", help="folder of a saved model, or output folder of `fastgoal pairs`")
    add(parser, "repo", "--dry-run", "--recode", "--private", "--message")


def run(args: argparse.Namespace) -> int:
    prepare(args, paths=["folder"])

    from fastgoal.hub_cards.push import describe_push, push

    print(describe_push(call(push, args)))
    return 0
