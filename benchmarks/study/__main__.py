"""Does it learn? The study: the papers' claims on a drawn world in which everything is known.

    python benchmarks/study.py --base DIR --question 1            # one question: train, measure, write the results
    python benchmarks/study.py --base DIR --question 1 2 3 --jobs 2 --seeds 0 1 2 3
    python benchmarks/study.py --report                           # benchmarks/STUDY.md and its plots from the results
    python benchmarks/study.py --base DIR --question 1 --fresh-seed 7191   # measure on test scenes nobody has seen

Every arm of a seed starts from the same base and sees the same scenes, in the same order, for the same number of steps.
Each finished training is kept in `--work`, so a stopped run goes on where it was and questions share their arms.
`--split validation` measures on scenes for choosing settings; test scenes are for the tables alone. `--base` is what
`study_base.py` made.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

# This folder must not stand before the libraries: a file in it is called like one of them.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from study_runs import (  # noqa: E402
    Arm,
    Sizes,
    StudyData,
    Test,
    fingerprint,
    load_base,
    make_data,
    make_test,
    matching_quality,
    train_arm,
)

from fastgoal import FastGoalCLIPModel  # noqa: E402
from fastgoal.processing.processing_fastgoal import FastGoalProcessor  # noqa: E402

RESULTS = HERE / "results"
MEASURES = ("R@1", "text_to_image_R@1", "image_to_text_R@1", "R@5", "twins", "short_R@1")

FAST_GOAL = Arm("FAST-GOAL")
GLOBAL = Arm("global", "global")
LOCAL = Arm("local", "local")
ANY_PAIR = Arm("any pair, anew each epoch", pairs="random")
BEST = dataclasses.replace(ANY_PAIR, name="any pair, near batches", near=True)


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, the arms that answer it, and the arm that the others are compared with."""

    title: str
    arms: tuple[Arm, ...]
    against: str


QUESTIONS = {
    1: Question(
        "Which losses help?",
        (
            Arm("before", "none"),
            GLOBAL,
            LOCAL,
            Arm("global + local", "global_local"),
            FAST_GOAL,
            Arm("SPARC", "sparc"),
            Arm("SPARC + FAST-GOAL", settings=(("sparc_weight", 1.0),)),
        ),
        "global",
    ),
    2: Question(
        "Which regions?",
        (
            FAST_GOAL,
            Arm("five default ones only", regions=("default",)),
            Arm("detector only", regions=("detected",)),
            Arm("true boxes", regions=("true",)),
        ),
        "FAST-GOAL",
    ),
    3: Question(
        "Which pairs?",
        (
            FAST_GOAL,
            Arm("one of the three best", pairs="top3"),
            ANY_PAIR,
            Arm("any true pair, anew each epoch", pairs="true"),
        ),
        "FAST-GOAL",
    ),
    4: Question(
        "What do the defects of the public code cost?",
        (
            FAST_GOAL,
            Arm("sentence masks off by one", sentence_shift=1),
            Arm("boxes mapped without the crop", squashed_boxes=True),
        ),
        "FAST-GOAL",
    ),
    5: Question(
        "What does it cost, and what does the schedule change?",
        (
            GLOBAL,
            dataclasses.replace(GLOBAL, name="global, 2 times the epochs", epochs=2.0),
            LOCAL,
            FAST_GOAL,
            BEST,
            dataclasses.replace(GLOBAL, name="global, no warm-up", warmup=0.0),
            dataclasses.replace(GLOBAL, name="global, no warm-up, rate 1e-3", warmup=0.0, learning_rate=1e-3),
            dataclasses.replace(FAST_GOAL, name="FAST-GOAL, no warm-up", warmup=0.0),
        ),
        "global",
    ),
}


def _with(name: str, base: Arm = ANY_PAIR, **changes: Any) -> Arm:
    extras = tuple({**dict(base.extras), **changes.pop("extras", {})}.items())
    return dataclasses.replace(base, name=name, extras=extras, **changes)


QUESTIONS[6] = Question(
    "What else helps?",
    (
        FAST_GOAL,
        ANY_PAIR,
        _with("near batches", FAST_GOAL, near=True),
        BEST,
        _with("the same, 0.85 of the way from the base", BEST, average=0.85),
        _with("the same, 0.7 of the way from the base", BEST, average=0.7),
        _with("global, near batches", GLOBAL, near=True),
    ),
    "FAST-GOAL",
)
TRIALS = (
    _with("any pair, local weight 1", settings=(("local_weight", 1.0),)),
    _with("any pair, sub-captions 0.5", extras={"sub": 0.5}),
    _with("any pair, near batches, local weight 1", BEST, settings=(("local_weight", 1.0),)),
    _with("any pair, near batches, logits times 20", BEST, extras={"scale": 20.0}),
    _with("any pair, logits times 20", extras={"scale": 20.0}),
    _with("any pair, TSL weight 2", settings=(("tsl_weight", 2.0),)),
    _with("any pair, local weight 1, sub-captions 0.5", extras={"sub": 0.5}, settings=(("local_weight", 1.0),)),
    _with("any pair, one in five sentences dropped", keep=0.8),
    _with("any pair, token contrast 0.5", extras={"cross": 0.5}),
    _with("any pair, detached targets", extras={"detach": 1.0}),
    _with("any pair, like sentences masked", extras={"masked": 0.9}),
    _with("any pair, second round", matcher="FAST-GOAL"),
)
"""Ideas that no table has, for `--trials`; STUDY.md says which were tried and what came out."""

# Student's t at 97.5 % by degrees of freedom.
T_VALUES = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", type=int, nargs="+", choices=sorted(QUESTIONS), metavar="N", default=[])
    parser.add_argument("--base", type=Path, help="folder of the base CLIP, from study_base.py")
    parser.add_argument("--work", type=Path, default=Path("study-work"), help="folder for finished trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with seeds of its own (default: 1)")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--fresh-seed", help="draw the test scenes from this instead of the training's seed")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="train these arms of the questions only")
    parser.add_argument("--tables", action="store_true", help="write the results of what is trained; train nothing")
    parser.add_argument("--trials", action="store_true", help="train ideas that no table has, on validation scenes")
    parser.add_argument("--report", action="store_true", help="write STUDY.md and its plots from the results")
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    if args.trials:
        args.split = "validation"
    if (args.question or args.trials) and args.base is None:
        parser.error(
            "--base is needed: benchmarks/base_clip, or what `python benchmarks/study_base.py --output DIR` made"
        )
    sizes = Sizes(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Sizes)})
    arms = list(dict.fromkeys(arm for number in args.question for arm in QUESTIONS[number].arms))
    arms += TRIALS if args.trials else ()
    if args.arms:
        arms = [arm for arm in arms if arm.name in args.arms]
    if args.tables:
        arms = []  # nothing to train
    if arms and args.jobs > 1 and len(args.seeds) > 1:
        _share_out(args)
    elif arms:
        for seed in args.seeds:
            Seed(seed, sizes, args.split, args.fresh_seed, args.base, args.work).run(arms)
    if not args.arms and args.split == "test" and os.environ.get("FASTGOAL_STUDY_CHILD") is None:
        for number in args.question:
            write_results(number, args, sizes)
    if args.report:
        from study_report import write_report

        write_report(RESULTS, HERE / "STUDY.md")


def _share_out(args: argparse.Namespace) -> None:
    """Run this script once for every job, each with its share of the seeds, on one thread."""
    children = []
    for job in range(args.jobs):
        seeds = args.seeds[job :: args.jobs]
        if seeds:
            rest = _without(sys.argv[1:], "--seeds", "--jobs", "--report")
            command = [sys.executable, __file__, *rest, "--seeds", *map(str, seeds)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "FASTGOAL_STUDY_CHILD": "1"}
            children.append(subprocess.Popen(command, env=environment))
    failed = [child.args for child in children if child.wait() != 0]
    if failed:
        sys.exit(f"{len(failed)} of {len(children)} processes failed; what the others finished is kept.")


def _without(words: Sequence[str], *options: str) -> list[str]:
    """Command line words without some options and their values."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word.split("=")[0] in options
        if not dropping:
            kept.append(word)
    return kept


class Seed:
    """All trainings of one seed; scenes are drawn only if there is something to train or measure."""

    def __init__(self, seed: int, sizes: Sizes, split: str, fresh: str | None, base: Path, work: Path) -> None:
        self.seed, self.sizes, self.split, self.base = seed, sizes, split, base
        self.test_name = split if fresh is None else f"{split}-{fresh}"
        self.test_seed: int | str = seed if fresh is None else f"fresh-{fresh}"
        self.work = work / "runs"
        self.work.mkdir(parents=True, exist_ok=True)
        self.fingerprint = fingerprint(base)
        self._data: StudyData | None = None
        self._test: Test | None = None
        self._processor: FastGoalProcessor | None = None

    @property
    def processor(self) -> FastGoalProcessor:
        if self._processor is None:
            self._processor = load_base(self.base)[1]
        return self._processor

    @property
    def data(self) -> StudyData:
        if self._data is None:
            self._data = make_data(self.sizes, self.seed, self.base)
        return self._data

    @property
    def test(self) -> Test:
        if self._test is None:
            self._test = make_test(self.sizes, self.test_seed, self.base, self.split)  # type: ignore[arg-type]
        return self._test

    def run(self, arms: Sequence[Arm]) -> None:
        """Train and measure what is missing."""
        for arm in arms:
            result = self.result(arm)
            line = "  ".join(f"{name} {100 * result[name]:.1f}" for name in MEASURES)
            print(f"seed {self.seed}  {arm.name:<32} {line}  {result['train_seconds']:.0f} s", flush=True)

    def _result_path(self, arm: Arm) -> Path:
        return self.work / f"{arm.key(self.sizes, self.seed, self.test_name, self.fingerprint)}.json"

    def finished(self, arm: Arm) -> dict[str, Any] | None:
        """The numbers of an arm if they are in the folder."""
        path = self._result_path(arm)
        return dict(json.loads(path.read_text())) if path.exists() else None

    def result(self, arm: Arm) -> dict[str, Any]:
        """The numbers of an arm, from the folder or from a training."""
        finished = self.finished(arm)
        if finished is not None:
            return finished
        model, cost = self.model(arm)
        result = {**cost, **self.test.measure(model, self.processor)}
        if arm.objective not in ("none", "global", "sparc"):
            result["matching"] = self.matching(arm)
        text = json.dumps({"arm": dataclasses.asdict(arm), "seed": self.seed, **result})
        path = self._result_path(arm)
        path.with_suffix(".part").write_text(text)
        path.with_suffix(".part").rename(path)
        return dict(json.loads(text))

    def model(self, arm: Arm) -> tuple[Any, dict[str, Any]]:
        """The tuned model, from the folder or from a training, and what it cost."""
        trained = dataclasses.replace(arm, average=1.0)
        path = self.work / f"{trained.key(self.sizes, self.seed, 'weights', self.fingerprint)}.safetensors"
        model = FastGoalCLIPModel.from_clip(str(self.base))
        start = {name: value.clone() for name, value in model.state_dict().items()}
        if path.exists():
            model.load_state_dict(load_file(path))
            cost = json.loads(path.with_suffix(".cost").read_text())
        else:
            similarity = None
            if arm.matcher != "base":
                matcher = next(a for question in QUESTIONS.values() for a in question.arms if a.name == arm.matcher)
                similarity = self.data.match(self.processor, self.model(matcher)[0])
            wall = time.perf_counter()
            model, cost = train_arm(trained, self.sizes, self.seed, self.data, self.base, self.processor, similarity)
            cost["wall_seconds"] = time.perf_counter() - wall
            path.with_suffix(".cost").write_text(json.dumps(cost))
            state = {name: value.contiguous() for name, value in model.state_dict().items()}
            save_file(state, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        if arm.average != 1.0:
            tuned = model.state_dict()
            model.load_state_dict({name: torch.lerp(start[name], tuned[name], arm.average) for name in tuned})
        return model.eval(), cost

    def matching(self, arm: Arm) -> dict[str, float]:
        """How well FLISM's pairs of the arm's regions fit, by the base."""
        return matching_quality(self.data, lambda index: self.data.pairs(index, arm.regions))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, by Student's t over the seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, T_VALUES[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def write_results(number: int, args: argparse.Namespace, sizes: Sizes) -> None:
    """`results/qN.json`: for each arm mean and interval of every measure, and of the paired differences.

    An arm counts the seeds with which it and the arm that it is compared with were trained.
    """
    question = QUESTIONS[number]
    seeds = {seed: Seed(seed, sizes, args.split, args.fresh_seed, args.base, args.work) for seed in args.seeds}
    runs = {arm.name: {seed: seeds[seed].finished(arm) for seed in seeds} for arm in question.arms}
    rows = []
    for arm in question.arms:
        common = [seed for seed in seeds if runs[arm.name][seed] and runs[question.against][seed]]
        if not common:
            print(f"question {number}: nothing is trained of {arm.name!r}; it is left out", file=sys.stderr)
            continue
        own, against = ([runs[name][seed] for seed in common] for name in (arm.name, question.against))
        row: dict[str, Any] = {"arm": arm.name, "settings": dataclasses.asdict(arm), "seeds": common}
        for name in MEASURES:
            values = [100 * run[name] for run in own]
            others = [100 * run[name] for run in against]
            mean, half = interval(values)
            gain, gain_half = interval([a - b for a, b in zip(values, others, strict=True)])
            row[name] = {"mean": mean, "half": half, "gain": gain, "gain_half": gain_half, "values": values}
        for name in ("steps", "samples", "train_seconds"):
            row[name] = statistics.fmean(run[name] for run in own)
        matching = [run["matching"] for run in own if "matching" in run]
        if matching:
            row["matching"] = {key: statistics.fmean(run[key] for run in matching) for key in matching[0]}
        rows.append(row)
    if not rows:
        sys.exit(f"Question {number}: nothing is trained of {question.against!r} yet. Leave --tables out to train it.")
    suffix = "" if args.fresh_seed is None else f"-fresh-{args.fresh_seed}"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"q{number}{suffix}.json"
    result = {
        "question": number,
        "title": question.title,
        "against": question.against,
        "seeds": args.seeds,
        "fresh_seed": args.fresh_seed,
        "sizes": dataclasses.asdict(sizes),
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "torch": torch.__version__,
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The results of a question as a Markdown table."""
    lines = [
        "| arm | R@1 | against " + result["against"] + " | R@5 | twins told apart | short captions R@1 | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        fewer = f" (seeds: {len(row['seeds'])})" if len(row["seeds"]) < len(result["seeds"]) else ""
        cells = [f"{row['R@1']['mean']:.1f} ± {row['R@1']['half']:.1f}{fewer}"]
        gain = row["R@1"]
        cells.append("" if row["arm"] == result["against"] else f"{gain['gain']:+.1f} ± {gain['gain_half']:.1f}")
        cells += [f"{row[name]['mean']:.1f} ± {row[name]['half']:.1f}" for name in ("R@5", "twins", "short_R@1")]
        lines.append(f"| {row['arm']} | " + " | ".join(cells) + f" | {row['train_seconds']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
