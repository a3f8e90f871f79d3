"""`fastgoal push`: a model or a pairs data set to the Hugging Face Hub."""

import argparse

from .options import add

HELP = "send a model, with processor, card and code, or a pairs data set to the Hugging Face Hub"

EPILOG = """\
Sends only what belongs to a model or data set (safetensors, configurations, card, code, examples; never pickles,
checkpoints or logs), in one commit. A push that failed may be repeated. The access token is the one of
`hf auth login` or HF_TOKEN. For a data set, `fastgoal push-data` writes a card with more figures and the licences.

example:
  fastgoal push outputs/ OWNER/NAME --private
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of a saved model, or what `fastgoal pairs` wrote")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME on the Hub; made if it does not exist")
    add(parser, "--dry-run", "--private", "--message")


def run(args: argparse.Namespace) -> int:
    from fastgoal.hub_cards.pushing import push

    pushed = push(args.folder, args.repo, private=args.private, message=args.message)
    print(f"{pushed.url}: {len(pushed.sent)} files")
    if pushed.left_out:
        top = dict.fromkeys(name.partition("/")[0] + "/" * ("/" in name) for name in pushed.left_out)
        print(f"not sent: {', '.join(top)}")
    return 0
