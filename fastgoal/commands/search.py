"""`fastgoal search`: find images of a folder by a long description or by an image."""

import argparse
from pathlib import Path

from .options import add

HELP = "find images of a folder by a description or an image"

EPILOG = """\
The folder is encoded once; later calls encode only new and changed files. The index lies in IMAGES/.fastgoal-search
unless --index names another place, and belongs to one model. Without a query the index is only brought up to date.

examples:
  fastgoal search photographs/ --model outputs/ \\
      "A brown dog runs over a meadow. Behind it there is a lake."
  fastgoal search photographs/ --model outputs/ --query-image dog.jpg \\
      --top-k 20 --html found.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder with images, sub-folders included")
    parser.add_argument("query", nargs="?", metavar="TEXT", help="what to look for")
    add(parser, "--model")
    parser.add_argument("--query-image", type=Path, metavar="FILE", help="look for images like this one")
    add(parser, "--top-k", help="how many images to show")
    add(parser, "--html", type=Path, help="show the images on a page, too")
    parser.add_argument("--index", type=Path, metavar="DIR", help="where the index is (default: in IMAGES)")
    parser.add_argument("--rebuild", action="store_true", help="make the index anew, also of another model")
    add(parser, "--allow-outside-files", "--batch-size")
    add(parser, "--num-workers", default=0, help="processes that read images")
    add(parser, "--device")


def run(args: argparse.Namespace) -> int:
    from fastgoal.processing.files import prepare_output, write_text

    if args.query is not None and args.query_image is not None:
        raise ValueError("there are two queries, a text and --query-image; give one of them.")
    query = None if args.query is None else args.query.strip()
    if query == "":
        raise ValueError("the text to look for is empty; describe the image.")
    if args.html is not None:
        if args.query is None and args.query_image is None:
            raise ValueError("--html shows what a query finds; give a text or --query-image.")
        prepare_output(args.html, "html")
    if not args.images.is_dir():
        raise ValueError(f"{args.images} is not a folder; name the folder with the images to search.")

    import time

    from fastgoal.hub_cards.wording import count, number
    from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
    from fastgoal.pages.search import results_page
    from fastgoal.processing.checkpoints.load import load_model
    from fastgoal.processing.embedding import embed_images, embed_texts
    from fastgoal.processing.images import load_image
    from fastgoal.processing.tokens import count_truncated
    from fastgoal.search.index import FOLDER, ImageIndex, file_encoder, model_fingerprint

    started = time.perf_counter()
    picture = None if args.query_image is None else load_image(args.query_image)
    model, processor = load_model(args.model, args.device)
    place = args.index or args.images / FOLDER
    mark = model_fingerprint(model, processor)
    index = ImageIndex(args.images, place, args.model, mark, args.rebuild, args.allow_outside_files)
    update = index.update(file_encoder(model, processor, args.batch_size, args.num_workers))
    images = count(update.images, "image")
    print(f"{images}, {update.encoded:,} encoded now, {update.removed:,} gone since the last time")
    for name, error in update.broken.items():
        print(f"  left out {name}: {error}")
    start = time.perf_counter()
    ready = start - started
    itself: list[str] = []
    if picture is not None:
        vector = embed_images(model, processor, [picture])[0]
        itself = index.names_of(args.query_image)
    elif query is not None:
        vector = embed_texts(model, processor, [query])[0]
        if count_truncated([query], processor.tokenizer, text_positions(model)):
            print(f"The text has more than {text_positions(model)} tokens; the model reads the first ones.")
    else:
        return 0
    encoded = time.perf_counter()
    hits = index.search(vector, args.top_k, itself)
    found = time.perf_counter()
    print(f"\n{'score':>7}  image")
    for hit in hits:
        print(f"{number(hit.score, 3):>7}  {hit.path}")
    if itself:
        print(f"Left out, as it is the query: {', '.join(itself)}")
    if args.top_k > len(hits):
        print(f"There is no more: {count(len(hits), 'image')}, fewer than the {args.top_k:,} asked for.")
    how = (
        ""
        if index.recall is None
        else f", which finds {index.recall:.0%} of the 10 nearest (as measured with 200 images)"
    )
    print(
        f"\nSearched {images} in {1000 * (found - encoded):.1f} ms{how}; the query was encoded in"
        f" {1000 * (encoded - start):.1f} ms; model and index were ready after {ready:.1f} s."
    )
    if args.html is not None:
        page = results_page(index, hits, query or str(args.query_image), args.html.parent, picture, bool(itself))
        write_text(args.html, page)
        print(f"Page: {args.html}")
    return 0
