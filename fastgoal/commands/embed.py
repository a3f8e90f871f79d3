"""`fastgoal embed`: write the embeddings of images or captions as parquet files."""

import argparse

from .options import add, call, number, prepare

HELP = "write the embeddings of images or captions as parquet files, for a vector store"

EPILOG = """\
SOURCE is a folder of images with its subfolders, or any other data that `fastgoal pairs` reads.

The output is a folder of parquet files with file_name, caption and vector (normalized). datasets, LanceDB and DuckDB
read them as they are; docs/vectors.md shows how to load them into FAISS, Qdrant, Milvus and pgvector. `fastgoal search`
searches the folder. The same command continues an interrupted run where it stopped.

examples:
  fastgoal embed photographs/ --model fast-goal --output vectors/
  fastgoal embed captions/ --texts --model fast-goal --output text-vectors/
  fastgoal search vectors/ --model fast-goal "A brown dog runs over a meadow."
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="images, or images with captions, see below")
    add(parser, "--output", "--model")
    parser.add_argument(
        "--texts", action="store_true", help="embed the captions instead of the images, one row per caption"
    )
    parser.add_argument(
        "--vector-type", choices=("float16", "float32"), default="float16", help="number format of the vectors"
    )
    add(parser, "--form", "--split", "--image-column")
    add(
        parser,
        "--caption-column",
        help="column with the captions (default: as in `fastgoal pairs`); without --texts, also write its "
        "captions next to the vectors of the images",
    )
    add(parser, "--image-folder", "--limit", "--on-error", "--allow-outside-files")
    add(parser, "--batch-size", default=64, help="images or captions per forward pass")
    add(parser, "--shard-size", default=4096, help="number of rows per output file")
    add(
        parser,
        "--num-workers",
        type=number(1),
        help="number of threads that decode images (default: number of CPU cores, at most 16)",
    )
    add(parser, "--workers", "--ray", "--device", "--dtype")


def run(args: argparse.Namespace) -> int:
    prepare(args, data=["source"], models=["model"])

    from fastgoal.hub_cards.wording import count
    from fastgoal.processing.builders.embeddings import build_embeddings

    summary = call(build_embeddings, args)
    made = summary["shards_made"]
    print(f"{count(summary['rows'], 'vector')} of width {summary['width']}, {len(summary['skipped'])} skipped")
    print(
        f"{args.output}: {count(summary['shards'], 'shard')}, "
        + (f"{made} written now" if made else "all complete already")
    )
    for entry in summary["skipped"]:
        print(f"  skipped {entry['reason']}")
    return 0
