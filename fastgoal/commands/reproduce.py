"""`fastgoal reproduce`: measure a row of a published table again, with all that it needs."""

import argparse
import importlib
import shlex
from pathlib import Path

from fastgoal.trainer.cli.parser import Parser

from .options import number

HELP = "list the published rows that can be reproduced, or reproduce one: pairs, training, evaluation and a page"

EPILOG = """\
Without ROW, lists all rows with their published R@1. docs/reproduce.md lists the folders under ROOT, and where each
dataset comes from.

The command first checks that the base model, the detector and the data are there and complete. It then runs the
commands that --dry-run prints. The same command continues after an interrupt, and skips what is done. Rows that are
written to the same DIR share pairs and models. DIR/ROW/page.md compares the result with the published number.

examples:
  fastgoal reproduce docci-fastgoal-b16-docci --data datasets/ --output reproduced/ --dry-run
  fastgoal reproduce docci-fastgoal-b16-glit --data datasets/ --train-data captioned/ --output reproduced/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("row", metavar="ROW", nargs="?", help="name of the row (default: list all rows)")
    parser.add_argument(
        "--data", type=Path, metavar="ROOT", help="folder with one folder per dataset; required with ROW"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="output folder, which several rows can share; required with ROW"
    )
    parser.add_argument(
        "--train-data",
        metavar="DATA",
        help="your images with long captions, for the rows that were trained on GLIT100k",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="folder of the base model, if it is not in the cache of the Hub"
    )
    parser.add_argument(
        "--detector", metavar="DETECTOR", help="folder of the detector, if it is not in the cache of the Hub"
    )
    parser.add_argument(
        "--num-processes",
        type=number(1),
        metavar="N",
        help="number of training processes, which share the batch (default: one)",
    )
    parser.add_argument(
        "--mini-batch-size",
        type=number(1),
        metavar="N",
        help="number of pairs to process at once in the training, to use less memory; the loss stays that of the whole "
        "batch",
    )
    parser.add_argument(
        "--allow-incomplete",
        action="store_true",
        help="run on a part of the data; the page says so and compares nothing",
    )
    parser.add_argument("--dry-run", action="store_true", help="only check what is there, and print the commands")


def run(args: argparse.Namespace) -> int:
    from fastgoal.trainer.reproduce.rows import find_row, read_rows

    if args.row is None:
        for row in read_rows().values():
            values = "{:.2f} / {:.2f}".format(*row.published) if row.published else "-"
            print(f"{row.name:<30}{values:<16}{row.title}")
        print(
            "\nThe numbers are published R@1, text to image / image to text; - if this package has none of the paper."
        )
        return 0
    row = find_row(args.row)
    for name in ("data", "output"):
        if getattr(args, name) is None:
            raise ValueError(f"`{name}` is required with a row.")

    from fastgoal.trainer.reproduce.page import write_page
    from fastgoal.trainer.reproduce.plan import plan, run_commands
    from fastgoal.trainer.reproduce.requirements import check_requirements

    planned = plan(
        row,
        args.data,
        args.output,
        args.base,
        args.detector,
        args.train_data,
        args.num_processes,
        args.mini_batch_size,
    )
    requirements = check_requirements(planned)
    for requirement in requirements:
        state = "missing" if requirement.is_missing else "incomplete" if requirement.remark else "found"
        text = " ".join(filter(None, (requirement.found, requirement.remark)))
        print(f"{state:<12}{requirement.name}: {args.parser.with_flags(text)}")
    if args.dry_run:
        print("\nCommands:")
        for words in planned.commands:
            print(shlex.join(words))
    missing = [requirement.name for requirement in requirements if requirement.is_missing]
    incomplete = [requirement.name for requirement in requirements if requirement.remark]
    if missing:
        raise ValueError(f"{args.row} needs what is missing above: {'; '.join(missing)}.")
    if incomplete and not args.allow_incomplete:
        raise ValueError(
            f"{args.row} needs the complete data, see above: {'; '.join(incomplete)}. To run on a part of it, set "
            "`allow_incomplete=True`."
        )
    if args.dry_run:
        return 0
    code = run_commands(planned, lambda words: run_command(words, args.progress), print)
    if code == 0:
        print(f"\n{write_page(planned, requirements)}\nPage: {planned.folder / 'page.md'}")
    return code


def run_command(words: list[str], progress: bool = True) -> int:
    """Run the words of a `fastgoal` command in this process, and return its exit code."""
    module = importlib.import_module(f".{words[1].replace('-', '_')}", __package__)
    parser = Parser(prog=f"fastgoal {words[1]}")
    module.add_arguments(parser)
    args = parser.parse_args(words[2:])
    args.parser, args.progress = parser, progress
    code: int = module.run(args)
    return code
