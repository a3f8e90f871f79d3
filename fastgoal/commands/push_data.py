"""`fastgoal push-data`: a pairs dataset to the Hugging Face Hub, with a data card of real figures."""

import argparse

from .options import add

HELP = "send a pairs dataset, with a card of its figures and licenses, to the Hugging Face Hub"

EPILOG = """\
Writes DIR/README.md, the data card: number of images, sentences and pairs, lengths of the captions in words, sentences
and CLIP tokens, detector, matcher, settings, the captions' model and prompt where `fastgoal caption` wrote them,
licenses, and a picture of sample rows. Then sends the card, the picture and data/*.parquet in one commit; the Hub's
viewer shows the rows. A push that failed may be repeated. A card that you have changed by hand is sent as it is;
delete it to have it written again.

You may only share images and captions whose licenses allow it, and only you know them: state them. ID is a name of the
Hub: cc-by-4.0, cc-by-sa-4.0, cc-by-nc-4.0, cc0-1.0, apache-2.0, other ... TEXT is free.

The access token is the one of `hf auth login` or HF_TOKEN.

examples:
  fastgoal push-data pairs/ OWNER/NAME --license cc-by-4.0 --dry-run
  fastgoal push-data pairs/ OWNER/NAME --license cc-by-nc-4.0 \\
      --image-license "CC BY 2.0, by their photographers" \\
      --caption-license "CC BY-NC 4.0"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "folder", "repo")
    parser.add_argument("--license", required=True, metavar="ID", help="license of the dataset, see below")
    parser.add_argument("--image-license", metavar="TEXT", help="license of the images, if it is another")
    parser.add_argument("--caption-license", metavar="TEXT", help="license of the captions, if it is another")
    parser.add_argument(
        "--captions",
        metavar="DIR",
        help="what `fastgoal caption` wrote, if it is no longer where `fastgoal pairs` read it: for the card",
    )
    parser.add_argument(
        "--tokenizer",
        default="openai/clip-vit-base-patch16",
        metavar="CLIP",
        help="CLIP that counts tokens, a folder or a Hub id, or none",
    )
    add(parser, "--dry-run", help="write the card and list what would be sent; send nothing")
    add(parser, "--private", "--message")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from fastgoal.hub_cards.cards import CARD
    from fastgoal.hub_cards.data_card import prepare_data_card
    from fastgoal.hub_cards.push import describe_push, push, require_token

    if not args.dry_run:
        # Before the work, not after it.
        require_token()
    folder = Path(args.folder)
    written = prepare_data_card(
        folder,
        args.repo,
        args.license,
        args.image_license,
        args.caption_license,
        args.captions,
        None if args.tokenizer == "none" else args.tokenizer,
    )
    print(f"{folder / CARD}: {'written' if written else 'changed by hand, kept as it is'}")
    pushed = push(folder, args.repo, private=args.private, message=args.message, dry_run=args.dry_run)
    print(describe_push(pushed, folder))
    return 0
