"""`fastgoal quickstart`: run the whole pipeline on drawn scenes, without a network."""

import argparse
from pathlib import Path

from .options import add, prepare

HELP = "run the whole pipeline in a minute or two on scenes drawn by a program, without a network"

EPILOG = """\
Draws scenes with captions of several sentences, finds local pairs with FLISM, and fine-tunes a small CLIP model that
comes with the package and was trained only on short captions of such scenes. It is fine-tuned twice for the same number
of steps, with the global loss alone and with FAST-GOAL. Prints recall on scenes that were in neither training: with
long captions, which the trainings improve, and with short ones, which they make worse.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("quickstart-output"),
        metavar="DIR",
        help="folder for scenes, pairs, figures, report and checkpoints",
    )
    add(parser, "--seed", help="random seed of the scenes and of the batches")


def run(args: argparse.Namespace) -> int:
    import time

    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"`output` must be a folder, got the file {args.output}.")
    start = time.perf_counter()
    args.output.mkdir(parents=True, exist_ok=True)

    prepare(args)

    from tqdm.auto import tqdm

    from fastgoal.quickstart.tour import TourSettings, result_table, take_tour

    report = take_tour(args.output, TourSettings(seed=args.seed), say=tqdm.write)
    scenes = report["settings"]["test_scenes"]
    print(f"\nRecall in %, mean of text to image and image to text, on {scenes} scenes that were not trained on.")
    print("Long captions describe whole scenes. Short captions name one object, which the image shows enlarged.\n")
    print(result_table(report))
    print(f"\n{report['note']}")
    print(f"\nDone in {time.perf_counter() - start:.0f} s. In {args.output}:")
    print("  fast-goal/    the fine-tuned model; load it with transformers:")
    print(f'                AutoModel.from_pretrained("{args.output / "fast-goal"}")')
    print("  pairs.png     sentences and the regions that they were matched to")
    print("  results.png   what each training gained on long captions, and what it left of short ones")
    print("  report.json   all numbers")
    return 0
