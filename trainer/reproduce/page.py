"""The page of a reproduced row: what was measured here, next to what was published."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from fastgoal.processing.files import write_json, write_text
from fastgoal.trainer.evaluation.measures.retrieval import DIRECTIONS
from fastgoal.trainer.evaluation.protocols.published import TEST_LISTS

from .plan import Plan
from .requirements import Requirement

TITLES = {direction: direction.replace("_", " ") for direction in DIRECTIONS}


def write_page(plan: Plan, requirements: Sequence[Requirement]) -> str:
    """Write `page.md` and `page.json` from the row's `report.json`, and return the page as Markdown.

    The page depends on the measured values only, not on the time that they took.
    """
    report = json.loads((plan.folder / "report.json").read_bytes())
    values = compare(plan, report, requirements)
    page = to_markdown(plan, report, values, requirements)
    write_json(plan.folder / "page.json", values)
    write_text(plan.folder / "page.md", page)
    return page


def compare(plan: Plan, report: dict[str, Any], requirements: Sequence[Requirement]) -> dict[str, Any]:
    """Compare R@1, in percent, with the published row.

    Returns:
        `row`, `protocol`, `images`, `not_comparable` (why the published number is not comparable; empty if it is) and
        by direction: `measured`, `interval` (95 %), `published`, `difference` (in points) and `within_one_point`; None
        for what is not known.
    """
    reasons = [requirement.remark for requirement in requirements if requirement.remark]
    values: dict[str, Any] = {"row": plan.row.name, "protocol": plan.row.protocol, "images": report["images"]}
    values["not_comparable"] = reasons
    for index, direction in enumerate(DIRECTIONS):
        key = f"{direction}_R@1"
        measured = round(100 * report["metrics"][key], 2)
        published = plan.row.published[index] if plan.row.published else None
        difference = None if published is None or reasons else round(measured - published, 2)
        values[direction] = {
            "measured": measured,
            "interval": [round(100 * bound, 2) for bound in report["intervals"][key]],
            "published": published,
            "difference": difference,
            "within_one_point": None if difference is None else abs(difference) <= 1,
        }
    return values


def to_markdown(plan: Plan, report: dict[str, Any], values: dict[str, Any], requirements: Sequence[Requirement]) -> str:
    """Return the page."""
    row = plan.row
    lines = [f"# {row.name}", "", f"{row.title}. R@1 in percent.", ""]
    lines += ["| | measured here | 95 % interval | published | difference | within one point |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for direction, title in TITLES.items():
        cell = values[direction]
        low, high = cell["interval"]
        known = cell["difference"] is not None
        lines.append(
            f"| {title} | {cell['measured']:.2f} | {low:.2f} to {high:.2f} "
            f"| {'not in this package' if cell['published'] is None else format(cell['published'], '.2f')} "
            f"| {format(cell['difference'], '+.2f') if known else '-'} "
            f"| {('yes' if cell['within_one_point'] else 'no') if known else '-'} |"
        )
    lines += [
        "",
        "The interval is the middle 95 % of bootstrap resamples of the images; it does not contain the variation "
        "between trainings. The last column only describes the difference: it is not a test.",
        "",
    ]
    if values["not_comparable"]:
        lines += ["**Do not compare these numbers with the published ones:**", ""]
        lines += [*(f"- {reason}" for reason in values["not_comparable"]), ""]
    lines += [f"- Published in: {row.paper}", f"- Test list: {TEST_LISTS[row.protocol]}"]
    lines += [f"- Protocol: {report['protocol_title']} ({row.protocol}), {report['images']:,} images"]
    lines += [f"- {requirement.name}: {requirement.found}" for requirement in requirements]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines += [f"- Device of the evaluation: {report['device']}; {versions}"]
    if row.choices:
        lines += ["", "## Not from the paper", "", *(f"- {choice}" for choice in row.choices)]
    lines += ["", "## Commands", "", "```sh", *map(shlex.join, plan.commands), "```"]
    return "\n".join(lines) + "\n"
