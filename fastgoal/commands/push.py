"""`fastgoal push`: a model or a pairs dataset to the Hugging Face Hub."""

import argparse

from .options import add

HELP = "send a model, with processor, card and code, or a pairs dataset to the Hugging Face Hub"

EPILOG = """\
Sends only what belongs to a model or dataset (safetensors, configurations, card, code, examples; never pickles,
checkpoints or logs), in one commit. A push that failed may be repeated. The access token is the one of
`hf auth login` or HF_TOKEN. For a dataset, `fastgoal push-data` writes a card with more figures and the licenses.

example:
  fastgoal push outputs/ OWNER/NAME --private
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "folder", help="folder of a saved model, or what `fastgoal pairs` wrote")
    add(parser, "repo", "--dry-run", "--private", "--message")


def run(args: argparse.Namespace) -> int:
    from fastgoal.hub_cards.push import describe_push, push

    pushed = push(args.folder, args.repo, private=args.private, message=args.message, dry_run=args.dry_run)
    print(describe_push(pushed, args.folder))
    return 0
