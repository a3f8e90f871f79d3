"""`fastgoal quickstart`: the whole path on drawn scenes, without a network."""

import argparse
from pathlib import Path

from .options import add

HELP = "try the whole path in a few minutes on drawn scenes, without a network"

EPILOG = """\
Draws scenes with captions of several sentences, finds local pairs with FLISM, fine-tunes a small CLIP that comes with
the package (trained on short captions of such scenes, and on nothing else) once with the global loss alone and once
with FAST-GOAL for the same number of steps, and prints recall on scenes that neither training saw.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("quickstart-output"),
        metavar="DIR",
        help="folder for scenes, pairs, pictures, report and checkpoints",
    )
    add(parser, "--seed", help="draws other scenes, other orders of batches")


def run(args: argparse.Namespace) -> int:
    import time

    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output {args.output} is a file; name a folder.")
    start = time.perf_counter()
    args.output.mkdir(parents=True, exist_ok=True)

    import datasets
    from tqdm.auto import tqdm
    from transformers.utils import logging

    from fastgoal.quickstart.tour import TourSettings, result_table, take_tour

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    report = take_tour(args.output, TourSettings(seed=args.seed), say=tqdm.write)
    print(f"\nRecall in %, {report['settings']['test_scenes']} test scenes that were never trained on:\n")
    print(result_table(report))
    print(f"\n{report['note']}")
    print(f"\nDone in {time.perf_counter() - start:.0f} s. In {args.output}:")
    print("  fast-goal/    the fine-tuned model; any transformers program loads it:")
    print(f'                AutoModel.from_pretrained("{args.output / "fast-goal"}")')
    print("  pairs.png     sentences and the regions they were matched to")
    print("  report.json   all numbers")
    return 0
