"""`fastgoal pairs`: match the sentences of captions to image regions and save the pairs as a dataset."""

import argparse
import shlex
from typing import Any

from fastgoal.processing.checks import MAX_AREA, MIN_AREA, MIN_SCORE

from .options import FORM_LIST, add, call, number, prepare

HELP = "match the sentences of captions to image regions and save the pairs as a dataset"

EPILOG = f"""\
SOURCE is in one of these forms, which --form names:
{FORM_LIST}

The output is a folder of parquet shards with the original image files; datasets.load_dataset(DIR) reads it. The same
command continues an interrupted run where it stopped, and repairs damaged shards. It refuses an output folder with
other data or settings.

Boxes in a column of the data replace a detector, with --detector column:NAME. The column has a list of boxes, a list
of {{"bbox": box, "label": name}}, or {{"bbox": [boxes], "category": [names]}}, in one of these forms:
  x1, y1, x2, y2 in pixels             --detector column:boxes
  x1, y1, width, height in pixels      --detector column:boxes --box-format xywh
  x1, y1, x2, y2 from 0 to 1           --detector column:boxes --box-units fractions
  x1, y1, width, height from 0 to 1    --detector column:boxes --box-format xywh --box-units fractions
The form coco has them as --detector column:boxes, and their form is known.

A .pt detector file is a pickle: loading it runs the code inside it. Use only files that you trust; a .pt file inside
the data folder is refused. Detectors of transformers, with safetensors, do not have this risk.

examples:
  fastgoal pairs photographs/ --output pairs/ --model openai/clip-vit-base-patch16
  fastgoal pairs coco/ --split val2017 --detector column:boxes --output pairs/ \\
      --model openai/clip-vit-base-patch16
  fastgoal pairs photographs/ --output pairs/ --model openai/clip-vit-base-patch16 \\
      --detector google/owlv2-base-patch16-ensemble
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="images with captions, see below")
    add(parser, "--output")
    add(parser, "--model", help="model that matches sentences and regions: a folder or a Hub id")
    parser.add_argument(
        "--detector",
        default="yolo11n.pt",
        metavar="DETECTOR",
        help="detector of the regions: an ultralytics .pt file; a folder or Hub id of a transformers object detector "
        "(open-vocabulary detectors, such as OWLv2 and Grounding DINO, search for the noun phrases of each English "
        "caption); column:NAME for boxes in the data, see below; or none. Five default regions are always "
        "added (default: yolo11n.pt, which requires fastgoal[yolo])",
    )
    parser.add_argument(
        "--regions",
        choices=("objects", "sam"),
        default="objects",
        help="objects: the boxes of --detector; sam: the boxes around the masks of a SAM model given as --detector, as "
        "in GOAL, if the area of the mask is between --min-area and --max-area",
    )
    add(
        parser,
        "--form",
        "--split",
        "--image-column",
        "--caption-column",
        "--image-folder",
        "--captions",
        "--limit",
        "--on-error",
        "--allow-outside-files",
        "--box-format",
        "--box-units",
    )
    parser.add_argument(
        "--min-score",
        type=number(0, 1, float),
        metavar="S",
        help=f"lowest score of a detection, from 0 to 1 (default: {MIN_SCORE}, or 0.1 for OWL, whose scores are low)",
    )
    for name, default, which in (("--min-area", MIN_AREA, "smallest"), ("--max-area", MAX_AREA, "largest")):
        parser.add_argument(
            name,
            type=number(0, 1, float),
            default=default,
            metavar="SHARE",
            help=f"area of the {which} region, as a share of the image",
        )
    add(parser, "--language", default="en")
    add(parser, "--max-text-length")
    add(
        parser,
        "--batch-size",
        default=64,
        help="crops per forward pass of the model; the detector gets a quarter as many images per call; use 256 or "
        "more on a large GPU",
    )
    add(parser, "--shard-size", default=256)
    parser.add_argument(
        "--store-size",
        type=number(1),
        metavar="PIXELS",
        help="shrink images with a longer short side to this size and store them as JPEG, for smaller files and faster "
        "training; 512 is plenty for models that read 224 pixels (default: keep the original files)",
    )
    add(
        parser,
        "--num-workers",
        type=number(1),
        help="number of threads that decode images and cut crops (default: number of CPU cores, at most 16)",
    )
    add(parser, "--workers", "--ray", "--device")
    add(
        parser,
        "--dtype",
        default="auto",
        help="data type of the model: float32, float16, bfloat16, or auto: float16 on CUDA",
    )


def run(args: argparse.Namespace) -> int:
    prepare(args, data=["source"], models=["model"], detectors=["detector"])

    from fastgoal.processing.builders.pairs import build_pairs

    summary = call(build_pairs, args)
    print(describe(summary, args.output))
    output, model = shlex.quote(str(args.output)), shlex.quote(args.model)
    length = f" --max_text_length {args.max_text_length}" if args.max_text_length else ""
    print(f"Next: fastgoal train --model {model} --train_data {output} --output_dir fast-goal{length}")
    return 0


def describe(summary: dict[str, Any], output: str) -> str:
    """Return a summary of `build_pairs` as lines of text."""
    from fastgoal.hub_cards.wording import count

    def listing(counts: dict[str, Any]) -> str:
        return ", ".join(f"{value} {name}" for name, value in counts.items()) or "none"

    made = summary["shards_made"]
    stages = ", ".join(f"{name} {value:.1f}" for name, value in summary["stage_seconds"].items())
    lines = [
        f"{count(summary['images'], 'image')}, {len(summary['skipped'])} skipped, "
        f"{count(summary['sentences'], 'sentence')}, {count(summary['pairs'], 'pair')}",
        f"candidate regions: {listing(summary['regions'])}",
        f"regions of the best pairs: {listing(summary['best_regions'])}",
        f"{summary['seconds']:.1f} s, {summary['images_per_second']:.2f} images/s (seconds: {stages})",
        f"{output}: {count(summary['shards'], 'shard')}, "
        + (f"{made} written now" if made else "all complete already"),
    ]
    if summary.get("without_phrases"):
        lines.append(
            f"{count(summary['without_phrases'], 'image')} with default regions only: no noun phrases in their captions"
        )
    if summary["skipped"]:
        lines += ["skipped:", *(f"  {entry['reason']}" for entry in summary["skipped"])]
    return "\n".join(lines)
