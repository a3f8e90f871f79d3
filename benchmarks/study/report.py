"""From finished trainings to the page: results of each question, their tables and plots in `STUDY.md`."""

import json
import math
import os
import platform
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from .arms import QUESTIONS
from .data import MEASURES
from .runs import Seed

# Eight colors that color-blind readers can tell apart (Okabe and Ito), and a shape for each.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")
# Student's t at 97.5 % by degrees of freedom.
T_VALUES = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, by Student's t over the seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, T_VALUES[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def summarize(number: int, runs: Mapping[int, Seed]) -> dict[str, Any]:
    """The results of a question: for each arm mean and interval of every measure, and of the paired differences.

    An arm counts the seeds with which it and the arm that it is compared with were trained.
    """
    question, any_run = QUESTIONS[number], next(iter(runs.values()))
    finished = {arm.name: {seed: run.finished(arm) for seed, run in runs.items()} for arm in question.arms}
    rows = []
    for arm in question.arms:
        both = [finished[name] for name in (arm.name, question.against)]
        common = [seed for seed in runs if all(found[seed] for found in both)]
        if not common:
            print(f"question {number}: nothing is trained of {arm.name!r}; it is left out", file=sys.stderr)
            continue
        own, against = ([found[seed] for seed in common] for found in both)
        row: dict[str, Any] = {"arm": arm.name, "settings": asdict(arm), "seeds": common}
        for name in MEASURES:
            values = [100 * run[name] for run in own]
            mean, half = interval(values)
            gain, gain_half = interval([value - 100 * run[name] for value, run in zip(values, against, strict=True)])
            row[name] = {"mean": mean, "half": half, "gain": gain, "gain_half": gain_half, "values": values}
        for name in ("steps", "samples", "train_seconds"):
            row[name] = statistics.fmean(run[name] for run in own)
        rows.append(row)
    if not rows:
        sys.exit(f"Question {number}: nothing is trained of {question.against!r} yet. Leave --tables out to train it.")
    return {
        "question": number,
        "title": question.title,
        "against": question.against,
        "seeds": list(runs),
        "fresh_seed": any_run.fresh,
        "sizes": asdict(any_run.sizes),
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "torch": torch.__version__,
        "rows": rows,
    }


def write_results(number: int, runs: Mapping[int, Seed], folder: Path) -> None:
    """Write `qN.json` into `folder`, with a fresh seed `qN-fresh-SEED.json`, and print the table."""
    result = summarize(number, runs)
    folder.mkdir(exist_ok=True)
    suffix = "" if result["fresh_seed"] is None else f"-fresh-{result['fresh_seed']}"
    (folder / f"q{number}{suffix}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The results of a question as a Markdown table."""
    lines = [
        "| arm | R@1 | against " + result["against"] + " | R@5 | twins told apart | short captions R@1 | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        fewer = f" (seeds: {len(row['seeds'])})" if len(row["seeds"]) < len(result["seeds"]) else ""
        shown = ("R@1", "R@5", "twins", "short_R@1")
        first, *others = (f"{row[name]['mean']:.1f}{_half(row[name]['half'])}" for name in shown)
        gain = f"{row['R@1']['gain']:+.1f}{_half(row['R@1']['gain_half'])}"
        cells = [row["arm"], first + fewer, "" if row["arm"] == result["against"] else gain, *others]
        lines.append(f"| {' | '.join(cells)} | {row['train_seconds']:.0f} |")
    return "\n".join(lines)


def _half(value: float) -> str:
    """Half an interval's width, in words; nothing of one seed, which has no interval."""
    return "" if math.isnan(value) else f" ± {value:.1f}"


def write_report(results: Path, page: Path) -> None:
    """Fill the tables of `page` and draw the plots that `page` shows.

    A table stands between `<!-- table NAME -->` and `<!-- end -->`, `NAME` being a result's file name without ending.

    Raises:
        ValueError: The page asks for results that are not there.
    """
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("q*.json"))}

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in found:
            raise ValueError(f"{page.name} asks for the table {name}, which is not in {results}: {sorted(found)}.")
        return f"<!-- table {name} -->\n{table(found[name])}\n<!-- end -->"

    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"<!-- table (\S+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL), encoding="utf-8")
    for name, result in found.items():
        if f"{name}.png" in text:
            plot(result, results / f"{name}.png")


def plot(result: dict[str, Any], path: Path) -> None:
    """R@1 of every arm with its interval; for question 5 against the processor time of the training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = result["rows"]
    means = [row["R@1"]["mean"] for row in rows]
    halves = [row["R@1"]["half"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(7, 0.45 * len(rows) + 1.2), layout="constrained")
    if result["question"] == 5:
        figure.set_size_inches(7, 5)
        for place, row in enumerate(rows):
            looks = {"color": COLORS[place % len(COLORS)], "fmt": MARKERS[place % len(MARKERS)], "label": row["arm"]}
            axes.errorbar(row["train_seconds"], means[place], halves[place], capsize=3, ms=7, **looks)
        axes.set(xlabel="processor seconds of the training", xlim=(0, None))
        axes.set(ylabel="R@1, mean of both directions (%)", ylim=(0, None))
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    else:
        colors = ["#999999" if row["arm"] == result["against"] else "#0072b2" for row in rows]
        places = range(len(rows))[::-1]
        axes.barh(places, means, xerr=halves, color=colors, capsize=3, height=0.62)
        axes.set_yticks(list(places), [row["arm"] for row in rows])
        axes.set_xlabel("R@1, mean of both directions (%)")
    axes.spines[["top", "right"]].set_visible(False)
    seeds = sorted({len(row["seeds"]) for row in rows})
    number = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    figure.suptitle(f"{result['title']} ({number} seeds, 95 % intervals)", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
