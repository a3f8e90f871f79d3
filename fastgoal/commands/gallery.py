"""`fastgoal gallery`: draw retrieval examples and errors of one or two models."""

import argparse
from pathlib import Path

from .options import add, call, evaluation_options, number, prepare, prepare_outputs

HELP = "draw retrieval examples and errors of one or two models"

EPILOG = """\
Examples are queries that the model answers correctly; with --against, those that the other model ranks worst come
first. Errors are queries that the model answers incorrectly, the worst first. Correct answers have a green frame, wrong
answers a red one.

examples:
  fastgoal gallery --model fast-goal --against openai/clip-vit-base-patch16 \\
      --data test/ --output gallery.png
  fastgoal gallery --model fast-goal --data test/ --show errors \\
      --direction image-to-text --output errors.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model")
    add(
        parser,
        "--data",
        help="dataset of the protocol; for `folder`: images with captions in a form that `fastgoal pairs` reads, or a "
        "folder that it wrote",
    )
    parser.add_argument(
        "--output", type=Path, metavar="out.png", help="write the figure to this file; required without --html"
    )
    add(parser, "--html", type=Path)
    add(parser, "--against", help="second model whose answers are shown as well")
    parser.add_argument(
        "--direction",
        choices=("text-to-image", "image-to-text"),
        default="text-to-image",
        help="find images by caption, or captions by image",
    )
    parser.add_argument("--show", choices=("examples", "errors", "both"), default="both", help="queries to show")
    parser.add_argument("--count", type=number(1), default=6, metavar="N", help="number of queries to show")
    add(parser, "--top-k", help="number of answers to show for each model")
    add(
        parser,
        "--protocol",
        "--split",
        "--image-column",
        "--caption-column",
        "--limit",
        "--on-error",
        "--allow-outside-files",
    )
    add(parser, "--batch-size", "--num-workers", "--device")


def run(args: argparse.Namespace) -> int:
    if args.output is None and args.html is None:
        raise ValueError("there is nothing to write. Give `output`, `html` or both.")
    prepare_outputs(args)
    prepare(args, models=["model", "against"], data=["data"])

    from fastgoal.hub_cards.wording import count
    from fastgoal.pages.gallery import gallery_figure, gallery_page, retrieval_gallery
    from fastgoal.pages.render import save_image
    from fastgoal.processing.files import write_text

    gallery = call(retrieval_gallery, args, options=evaluation_options(args))
    queries = count(gallery.queries, "query", "queries")
    if args.output is not None:
        save_image(gallery_figure(gallery), args.output)
        print(f"{queries}: {args.output}")
    if args.html is not None:
        write_text(args.html, gallery_page(gallery))
        print(f"{queries}, as a page: {args.html}")
    return 0
