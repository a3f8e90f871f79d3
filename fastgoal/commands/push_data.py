"""`fastgoal push-data`: send a pairs dataset to the Hugging Face Hub with a complete card."""

import argparse

from .options import add, call, prepare

HELP = "send a pairs dataset to the Hugging Face Hub, with a card of its figures and licenses"

EPILOG = """\
Sends data/*.parquet in one commit with a dataset card and an image of sample rows, and writes these two into DIR.
The card has the numbers of images, sentences and pairs, the lengths of the captions, the detector, the matching model,
the settings, the licenses, and, for captions of `fastgoal caption`, the model and the prompt. A card that you have
edited is sent unchanged; delete it to have it written again. See `fastgoal push --help` for what is sent.

Share only images and captions that you may share, and state their licenses: ID is a license of the Hub, such as
cc-by-4.0, cc-by-sa-4.0, cc-by-nc-4.0, cc0-1.0, apache-2.0 or other; TEXT is free text.

examples:
  fastgoal push-data pairs/ OWNER/NAME --license cc-by-4.0 --dry-run
  fastgoal push-data pairs/ OWNER/NAME --license cc-by-nc-4.0 \\
      --image-license "CC BY 2.0, by their photographers" \\
      --caption-license "CC BY-NC 4.0"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "folder", "repo")
    parser.add_argument("--license", required=True, metavar="ID", help="license of the dataset")
    parser.add_argument("--image-license", metavar="TEXT", help="license of the images, if different")
    parser.add_argument("--caption-license", metavar="TEXT", help="license of the captions, if different")
    parser.add_argument(
        "--captions",
        metavar="DIR",
        help="output folder of `fastgoal caption`, for the card (default: the folder that the pairs were made from)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="MODEL",
        help="count tokens for the card with the tokenizer of this model, a folder or a Hub id; none: without tokens "
        "(default: the numbers that `fastgoal pairs` stored)",
    )
    add(parser, "--dry-run", "--recode", "--private", "--message")


def run(args: argparse.Namespace) -> int:
    prepare(args, paths=["folder", "captions"])

    from pathlib import Path

    from fastgoal.hub_cards.cards import CARD
    from fastgoal.hub_cards.data_card import prepare_data_card, save_data_card
    from fastgoal.hub_cards.push import describe_push, push

    files = call(prepare_data_card, args)
    pushed = call(push, args, files=files)
    if files and not args.dry_run:
        save_data_card(args.folder, files)
    state = "edited by hand, sent unchanged" if not files else "would be written" if args.dry_run else "written"
    print(f"{Path(args.folder, CARD)}: {state}")
    print(describe_push(pushed))
    return 0
