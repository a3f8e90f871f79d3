"""Put the study's results into `STUDY.md`: tables between their marks, and plots beside the results."""

import json
import re
from pathlib import Path
from typing import Any


def write_report(results: Path, page: Path) -> None:
    """Fill the tables of `page` and draw a plot for every question that has results.

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
        figure.set_size_inches(7, 4)
        for row, mean, half in zip(rows, means, halves, strict=True):
            axes.errorbar(row["train_seconds"], mean, half, fmt="o", capsize=3, color="#0072b2")
            axes.annotate(row["arm"], (row["train_seconds"], mean), (8, 4), textcoords="offset points")
        axes.set_xlabel("processor seconds of the training")
        axes.set_ylabel("R@1, mean of both directions (%)")
        axes.margins(x=0.25, y=0.15)
        axes.set_xlim(left=0)
    else:
        colours = ["#999999" if row["arm"] == result["against"] else "#0072b2" for row in rows]
        places = range(len(rows))[::-1]
        axes.barh(places, means, xerr=halves, color=colours, capsize=3, height=0.62)
        axes.set_yticks(list(places), [row["arm"] for row in rows])
        axes.set_xlabel("R@1, mean of both directions (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{result['title']} ({len(result['seeds'])} seeds, 95 % intervals)", loc="left", fontsize=11)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
