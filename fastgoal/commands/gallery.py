"""`fastgoal gallery`: a figure of retrieval examples and error cases of one or two models."""

import argparse
from pathlib import Path

HELP = "draw retrieval examples and error cases of one or two models"

EPILOG = """\
Examples are queries that the model answers right; with --against those first that the other model ranks worst. Errors
are those that the model answers wrong, the worst first. Right answers have a green frame, wrong ones a red one.

examples:
  fastgoal gallery --model outputs/ --against openai/clip-vit-base-patch16 --data test/ --output gallery.png
  fastgoal gallery --model outputs/ --data test/ --show errors --direction image-to-text --output errors.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--model", required=True, metavar="M", help="folder or Hub id of any CLIP checkpoint")
    parser.add_argument("--data", required=True, metavar="DIR", help="images with captions, as for `fastgoal evaluate`")
    parser.add_argument("--output", type=Path, metavar="out.png", help="write the figure here")
    parser.add_argument("--html", type=Path, metavar="out.html", help="write it as a page; it needs no other file")
    parser.add_argument("--against", metavar="OTHER", help="show the answers of this checkpoint, too")
    parser.add_argument(
        "--direction", choices=("text-to-image", "image-to-text"), default="text-to-image", help="(default: the first)"
    )
    parser.add_argument("--show", choices=("examples", "errors", "both"), default="both", help="(default: both)")
    parser.add_argument("--count", type=int, default=6, metavar="N", help="queries to draw (default: 6)")
    parser.add_argument(
        "-k", dest="top_k", type=int, default=5, metavar="N", help="answers to show of each model (default: 5)"
    )
    parser.add_argument("--protocol", default="folder", metavar="NAME", help="as for `fastgoal evaluate`")
    parser.add_argument("--split", help="split of the data set, where it has several")
    parser.add_argument("--image-column", metavar="NAME", help="column with the image (default: found by itself)")
    parser.add_argument("--caption-column", metavar="NAME", help="column with the caption (default: found by itself)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images in a forward (default: 32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps... (default: the accelerator, if there is one)")
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="at a broken row: stop or leave it out"
    )


def run(args: argparse.Namespace) -> int:
    from fastgoal.commands.evaluate import load_model, prepare_output, write_text

    for option, value in (("--count", args.count), ("--top-k", args.top_k), ("--batch-size", args.batch_size)):
        if value < 1:
            raise ValueError(f"{option} is {value}; it must be at least 1.")
    if args.output is None and args.html is None:
        raise ValueError("there is nothing to write; give --output out.png, --html out.html, or both.")
    for path in (args.output, args.html):
        if path is not None:
            prepare_output(path)

    from fastgoal.hub_cards.wording import count
    from fastgoal.pages.gallery import choose_queries, contestant, draw_gallery, gallery_page, gallery_picture
    from fastgoal.pages.render import save_picture
    from fastgoal.trainer.evaluation.embeddings import encode_source
    from fastgoal.trainer.evaluation.protocols import open_protocol

    source = open_protocol(args.protocol, args.data, args.image_column, args.caption_column, args.split).source
    contestants = []
    for option, name in (("--model", args.model), ("--against", args.against)):
        if name is not None:
            model, processor = load_model(name, args.device, option=option)
            encoded = encode_source(model, processor, source, args.batch_size, 0, args.on_error, progress=True)
            contestants.append(contestant(name, encoded, model.device))
    queries = choose_queries(contestants, args.direction, args.show, args.count)
    gallery = draw_gallery(contestants, source, queries, args.direction, args.top_k)
    drawn = count(len(queries), "query", "queries")
    if args.output is not None:
        save_picture(gallery_picture(gallery), args.output)
        print(f"{drawn}: {args.output}")
    if args.html is not None:
        write_text(args.html, gallery_page(gallery))
        print(f"{drawn}, as a page: {args.html}")
    return 0
