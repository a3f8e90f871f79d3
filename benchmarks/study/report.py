"""Put the study's results into `STUDY.md`: tables between their marks, and plots beside the results."""

import json
import re
from itertools import cycle
from pathlib import Path
from typing import Any

# Eight colours that colour-blind readers can tell apart (Okabe and Ito), and a shape for each.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")


def write_report(results: Path, page: Path) -> None:
    """Fill the tables of `page` and draw the plots that `page` shows.

    A table stands between `<!-- table NAME -->` and `<!-- end -->`, `NAME` being a result's file name without ending.

    Raises:
        ValueError: The page asks for results that are not there.
    """
    from study import table

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
        figure.set_size_inches(9, 4)
        for row, mean, half, (colour, marker) in zip(
            rows, means, halves, cycle(zip(COLOURS, MARKERS, strict=True)), strict=False
        ):
            axes.errorbar(row["train_seconds"], mean, half, fmt=marker, capsize=3, color=colour, ms=7, label=row["arm"])
        axes.set_xlabel("processor seconds of the training")
        axes.set_ylabel("R@1, mean of both directions (%)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    else:
        colours = ["#999999" if row["arm"] == result["against"] else "#0072b2" for row in rows]
        places = range(len(rows))[::-1]
        axes.barh(places, means, xerr=halves, color=colours, capsize=3, height=0.62)
        axes.set_yticks(list(places), [row["arm"] for row in rows])
        axes.set_xlabel("R@1, mean of both directions (%)")
    axes.spines[["top", "right"]].set_visible(False)
    seeds = sorted({len(row["seeds"]) for row in rows})
    number = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    figure.suptitle(f"{result['title']} ({number} seeds, 95 % intervals)", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
