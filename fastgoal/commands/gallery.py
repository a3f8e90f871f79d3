"""`fastgoal gallery`: a figure of retrieval examples and error cases of one or two models."""

import argparse
from pathlib import Path

from .options import add, load_contestants, number, prepare_pictures

HELP = "draw retrieval examples and error cases of one or two models"

EPILOG = """\
Examples are queries that the model answers right; with --against those first that the other model ranks worst. Errors
are those that the model answers wrong, the worst first. Right answers have a green frame, wrong ones a red one.

examples:
  fastgoal gallery --model outputs/ --against openai/clip-vit-base-patch16 \\
      --data test/ --output gallery.png
  fastgoal gallery --model outputs/ --data test/ --show errors \\
      --direction image-to-text --output errors.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model", "--data")
    parser.add_argument("--output", type=Path, metavar="out.png", help="write the figure here")
    add(parser, "--html", type=Path)
    add(parser, "--against", help="show the answers of this checkpoint, too")
    parser.add_argument(
        "--direction",
        choices=("text-to-image", "image-to-text"),
        default="text-to-image",
        metavar="WAY",
        help="text-to-image or image-to-text",
    )
    parser.add_argument("--show", choices=("examples", "errors", "both"), default="both", help="which queries")
    parser.add_argument("--count", type=number(1), default=6, metavar="N", help="queries to draw")
    add(parser, "--top-k", help="answers to show of each model")
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
    prepare_pictures(args)

    from fastgoal.hub_cards.wording import count
    from fastgoal.pages.gallery import RankedModel, choose_queries, gallery_figure, gallery_page, make_gallery
    from fastgoal.pages.render import save_image
    from fastgoal.processing.checkpoints.devices import choose_workers
    from fastgoal.processing.files import write_text
    from fastgoal.trainer.evaluation.measures.embeddings import encode_source
    from fastgoal.trainer.evaluation.protocols.registry import open_protocol

    columns = (args.image_column, args.caption_column, args.split)
    source = open_protocol(args.protocol, args.data, *columns, args.limit, args.allow_outside_files)
    models = []
    for name, model, processor in load_contestants(args):
        workers = choose_workers(args.num_workers, model)
        encoded = encode_source(model, processor, source, args.batch_size, workers, args.on_error, progress=True)
        models.append(RankedModel(name, encoded, encoded.ranks(model.device)))
    queries = choose_queries(models, args.direction, args.show, args.count)
    gallery = make_gallery(models, source, queries, args.direction, args.top_k)
    drawn = count(len(queries), "query", "queries")
    if args.output is not None:
        save_image(gallery_figure(gallery), args.output)
        print(f"{drawn}: {args.output}")
    if args.html is not None:
        write_text(args.html, gallery_page(gallery))
        print(f"{drawn}, as a page: {args.html}")
    return 0
