"""Does it learn? The study: the papers' claims on a drawn world in which everything is known.

    python -m benchmarks.study --question 1            # train what is missing, measure, write the results
    python -m benchmarks.study --question 1 2 3 --jobs 2 --seeds 0 1 2 3
    python -m benchmarks.study --tables                # STUDY.md's tables and plots from the results
    python -m benchmarks.study --question 1 --fresh-seed 7191    # measure on test scenes nobody has seen

Every arm of a seed starts from the same base and sees the same scenes, in the same order, for the same number of steps.
Each finished training is kept in `--work`, so a stopped run resumes where it stopped and questions share their arms.
`--split validation` measures on scenes for choosing settings; test scenes are for the tables alone. `--base` is what
`python -m benchmarks.study.base` made.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from .arms import QUESTIONS, TRIALS, Sizes
from .report import write_report, write_results
from .runs import Seed

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--question", type=int, nargs="+", choices=sorted(QUESTIONS), metavar="N", default=[])
    parser.add_argument("--base", type=Path, default=HERE / "base_clip", help="folder of the base CLIP")
    parser.add_argument("--work", type=Path, default=Path("study-work"), help="folder for finished trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with seeds of its own (default: 1)")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--fresh-seed", help="draw the test scenes from this instead of the training's seed")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="train these arms of the questions only")
    parser.add_argument("--trials", action="store_true", help="train ideas that no table has, on validation scenes")
    parser.add_argument("--tables", action="store_true", help="train nothing; write the tables and plots of STUDY.md")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    if not (args.base / "model.safetensors").exists():
        parser.error(f"--base {args.base} has no model.safetensors; name what `python -m benchmarks.study.base` made.")
    sizes = Sizes(**{field.name: getattr(args, field.name) for field in fields(Sizes)})
    split = "validation" if args.trials else args.split
    seed_of = partial(Seed, sizes=sizes, split=split, fresh=args.fresh_seed, base=args.base, work=args.work)
    arms = [arm for number in args.question for arm in QUESTIONS[number].arms]
    arms = list(dict.fromkeys([*arms, *(TRIALS if args.trials else ())]))
    if args.arms:
        arms = [arm for arm in arms if arm.name in args.arms]

    if args.tables or not arms:
        pass
    elif args.jobs > 1:
        with ProcessPoolExecutor(args.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            list(pool.map(Seed.run, map(seed_of, args.seeds), [arms] * len(args.seeds)))
    else:
        for seed in args.seeds:
            seed_of(seed).run(arms)
    if not args.arms and split == "test":
        for number in args.question:
            write_results(number, {seed: seed_of(seed) for seed in args.seeds}, HERE / "results")
    if args.tables:
        write_report(HERE / "results", HERE / "STUDY.md")


if __name__ == "__main__":
    main()
