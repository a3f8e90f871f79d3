"""`fastgoal pairs`: match the sentences of captions to regions of their images and save the pairs as a dataset."""

import argparse
import shlex
from inspect import signature
from typing import Any

from .options import add, number

HELP = "match the sentences of captions to regions of their images and save the pairs"

EPILOG = """\
SOURCE is one of
  a folder with metadata.jsonl: a JSON object a line with "file_name" and
    "caption" (or "captions", joined into one)
  a folder written by datasets' save_to_disk, or a folder of parquet files
  OWNER/NAME of a dataset on the Hugging Face Hub

The output is a folder of parquet shards that datasets.load_dataset(DIR) reads, with the original image files in them.
A run that was interrupted, even killed, continues where it stopped when the same command is given again; a shard that
was damaged since is made again. Nothing is mixed: a folder begun with other data or settings is refused.

A .pt detector file is a pickle: loading it runs the code inside it. Only use one whose origin you trust. A .pt file
that lies inside the data folder is refused. A transformers detector (a folder or Hub id with safetensors) has no such
risk.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="images with captions, see below")
    add(parser, "--output", help="folder for the dataset, new or to be continued")
    add(parser, "--model", help="CLIP (or MetaCLIP 2, SigLIP) that matches: a folder or a Hub id")
    parser.add_argument(
        "--detector",
        default="yolo11n.pt",
        metavar="D",
        help="proposes regions: an ultralytics .pt file, a folder or Hub id of a transformers object detector "
        "(an open-vocabulary one, such as OWLv2 or Grounding DINO, looks for the noun phrases of each image's English "
        "caption), column:NAME for boxes in the data, or none; five default regions always take part",
    )
    parser.add_argument(
        "--regions",
        choices=("objects", "sam"),
        default="objects",
        help="objects: boxes of --detector; sam: boxes of the masks of a SAM checkpoint (GOAL) that --detector names, "
        "the area of each mask between --min-area and --max-area",
    )
    add(parser, "--split", "--image-column", "--caption-column", "--limit", "--on-error", "--allow-outside-files")
    parser.add_argument(
        "--boxes",
        choices=("pixels", "normalized"),
        default="pixels",
        metavar="FORM",
        help="of the boxes of --detector column:NAME: pixels, or normalized, fractions of width and height",
    )
    parser.add_argument(
        "--min-score",
        type=number(0, 1, float),
        metavar="S",
        help="lowest detection score (default: 0.25; 0.1 for OWL, whose scores are low)",
    )
    for name, default, which in (("--min-area", 0.01, "smallest"), ("--max-area", 0.80, "largest")):
        parser.add_argument(
            name, type=number(0, 1, float), default=default, metavar="SHARE", help=f"{which} region, share of the image"
        )
    add(parser, "--language", default="en")
    add(
        parser,
        "--batch-size",
        default=64,
        help="crops in one forward of CLIP, a quarter as many images in one call of the detector; a large GPU takes "
        "256 or more",
    )
    parser.add_argument("--shard-size", type=number(1), default=256, metavar="N", help="images in one output file")
    parser.add_argument(
        "--store-size",
        type=number(1),
        metavar="PIXELS",
        help="keep images whose shorter side is longer shrunk to so many pixels, as JPEG (512 is ample for models that "
        "read 224): smaller files, faster training (default: the original files)",
    )
    add(
        parser,
        "--num-workers",
        type=number(1),
        help="threads that decode images and cut crops while the models work (default: the processor's cores, at most "
        "16)",
    )
    add(parser, "--workers", "--ray", "--device")
    add(parser, "--dtype", default="auto", help="of CLIP: float32, float16, bfloat16, or auto: float16 on CUDA")


def run(args: argparse.Namespace) -> int:
    from fastgoal.processing.builders.pairs import build_pairs

    options = {name: value for name, value in vars(args).items() if name in signature(build_pairs).parameters}
    summary = build_pairs(**options)
    print(describe(summary, args.output))
    output, model = shlex.quote(str(args.output)), shlex.quote(args.model)
    print(f"Next: fastgoal train --model {model} --train_data {output} --output_dir fast-goal")
    return 0


def describe(summary: dict[str, Any], output: str) -> str:
    """The summary as a few lines to read."""

    def listing(counts: dict[str, Any]) -> str:
        return ", ".join(f"{value} {name}" for name, value in counts.items()) or "none"

    made = summary["shards_made"]
    stages = ", ".join(f"{name} {value:.1f}" for name, value in summary["stage_seconds"].items())
    lines = [
        f"{summary['images']} images, {len(summary['skipped'])} skipped, {summary['sentences']} sentences, "
        f"{summary['pairs']} pairs",
        f"candidate regions: {listing(summary['regions'])}",
        f"best pairs' regions: {listing(summary['best_regions'])}",
        f"{summary['seconds']:.1f} s, {summary['images_per_second']:.2f} images/s (seconds: {stages})",
        f"{output}: {summary['shards']} shard{'s' if summary['shards'] != 1 else ''}, "
        + (f"{made} written now" if made else "all there already"),
    ]
    if summary.get("without_phrases"):
        lines.append(
            f"{summary['without_phrases']} images whose captions name nothing to look for: default regions only"
        )
    if summary["skipped"]:
        lines += ["skipped:", *(f"  {entry['reason']}" for entry in summary["skipped"])]
    return "\n".join(lines)
