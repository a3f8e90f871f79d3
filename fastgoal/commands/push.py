"""`fastgoal push`: a model or a pairs data set to the Hugging Face Hub."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgoal.hub_cards.pushing import Pushed

HELP = "send a model, with processor, card and code, or a pairs data set to the Hugging Face Hub"

EPILOG = """\
Sends only what belongs to a model or data set (safetensors, configurations, card, code, examples; never pickles,
checkpoints or logs), in one commit. A push that failed may be repeated. The access token is the one of
`hf auth login` or HF_TOKEN. For a data set, `fastgoal push-data` writes a card with more figures and the licences.

example:
  fastgoal push outputs/ OWNER/NAME --private
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("folder", metavar="DIR", help="folder of a saved model, or what `fastgoal pairs` wrote")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME on the Hub; made if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--message", default="Upload with fastgoal", help="message of the commit")


def run(args: argparse.Namespace) -> int:
    from fastgoal.hub_cards.pushing import push

    dry_run = getattr(args, "dry_run", False)
    pushed = push(args.folder, args.repo, private=args.private, message=args.message, dry_run=dry_run)
    print(describe(pushed, Path(args.folder)))
    return 0


def describe(pushed: "Pushed", folder: Path) -> str:
    """What was sent, or would be, and what was not, in lines to read."""
    from fastgoal.tools.words import counted, size_in_words

    files = counted(len(pushed.sent), "file")
    lines = [f"{pushed.url}: {files}"]
    if pushed.url is None:
        kind = "data set" if pushed.kind == "dataset" else pushed.kind
        sizes = [(folder / name).stat().st_size for name in pushed.sent]
        lines = [f"would be sent to {pushed.repo} as a {kind}, {files}, {size_in_words(sum(sizes))}:"]
        lines += [f"  {name}  {size_in_words(size)}" for name, size in zip(pushed.sent, sizes, strict=True)]
    if pushed.left_out:
        top = dict.fromkeys(name.partition("/")[0] + "/" * ("/" in name) for name in pushed.left_out)
        lines.append(f"not sent: {', '.join(top)}")
    return "\n".join(lines)
