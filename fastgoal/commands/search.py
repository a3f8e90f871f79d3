"""`fastgoal search`: find images of a folder by a long description or by an image."""

import argparse
from pathlib import Path

from .options import add, prepare

HELP = "search a folder of images by a description or an image"

EPILOG = """\
The first call embeds all images of the folder and stores the index in IMAGES/.fastgoal-search, or in the folder given
by --index. Later calls embed only new and changed files. An index belongs to one model. Without TEXT or --query-image,
the command only updates the index. Requires `pip install 'fastgoal[search]'`.

examples:
  fastgoal search photographs/ --model fast-goal \\
      "A brown dog runs over a meadow. Behind it there is a lake."
  fastgoal search photographs/ --model fast-goal --query-image dog.jpg \\
      --top-k 20 --html results.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        type=Path,
        metavar="IMAGES",
        help="folder of images, including its subfolders, or a folder that `fastgoal embed` wrote",
    )
    parser.add_argument("query", nargs="?", metavar="TEXT", help="description of the image to search for")
    add(parser, "--model")
    parser.add_argument("--query-image", type=Path, metavar="FILE", help="search for images similar to this one")
    add(parser, "--top-k", help="number of images to show")
    add(parser, "--html", type=Path, help="also write a page with the images")
    parser.add_argument(
        "--index", type=Path, metavar="DIR", help="folder of the index (default: IMAGES/.fastgoal-search)"
    )
    parser.add_argument("--rebuild", action="store_true", help="build the index again, for example for another model")
    add(parser, "--allow-outside-files", "--batch-size")
    add(parser, "--num-workers", default=0, help="number of processes that read images; 0 reads them in this one")
    add(parser, "--device")


def run(args: argparse.Namespace) -> int:
    from fastgoal.hub_cards.wording import count, number
    from fastgoal.processing.files import prepare_output, write_text

    has_query = args.query is not None or args.query_image is not None
    if args.html is not None:
        if not has_query:
            raise ValueError("`html` shows the results of a query. Give a text or `query_image`.")
        prepare_output(args.html, "html")
    prepare(args, paths=["images", "query_image"], models=["model"])

    from fastgoal.pages.search import results_page
    from fastgoal.search.search import search_images

    options = (
        "query",
        "query_image",
        "top_k",
        "index",
        "rebuild",
        "allow_outside_files",
        "batch_size",
        "num_workers",
        "progress",
    )
    result = search_images(
        args.images, args.model, device=args.device, **{name: getattr(args, name) for name in options}
    )
    images = count(result.update.images, "image")
    print(f"{images}, {result.update.encoded:,} embedded now, {result.update.removed:,} removed")
    for name, reason in result.update.skipped.items():
        print(f"  skipped {name}: {reason}")
    if not has_query:
        return 0
    if result.read_tokens is not None:
        print(f"The text is too long for the model, which reads the first {result.read_tokens} tokens.")
    print(f"\n{'score':>7}  image")
    for hit in result.hits:
        print(f"{number(hit.score, 3):>7}  {hit.path}")
    if result.left_out:
        print(f"Left out because it is the query: {', '.join(result.left_out)}")
    if args.top_k > len(result.hits):
        print(f"There are no more: {count(len(result.hits), 'image')} of the {args.top_k:,} requested.")
    print(f"\nSearched {images} in {1000 * result.seconds:.0f} ms.")
    if args.html is not None:
        write_text(args.html, results_page(result, args.query, args.query_image, args.html.parent))
        print(f"Page: {args.html}")
    return 0
