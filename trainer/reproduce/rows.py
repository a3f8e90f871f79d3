"""The published rows that can be reproduced: one YAML file per row in this folder, with its commands.

A row is named TESTSET-METHOD-MODEL[-TRAINSET]. Imports nothing heavy, as the command lists the rows.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from fastgoal.trainer.cli.parser import did_you_mean

GLIT = "{train_data}"
"""Stands in the commands for training data that cannot be downloaded."""


@dataclass(frozen=True)
class ReproductionRow:
    """A row of a published table and the commands that measure it again.

    Attributes:
        name: Name on the command line.
        title: Method, model, training set and test set in words.
        paper: Where the row was published.
        protocol: Name of the evaluation protocol.
        base: Hub id of the base model.
        commands: Commands in order; the last one is `fastgoal evaluate`. Words in braces are replaced, see `plan`.
        choices: What the paper does not print, and this project chose.
        published: R@1 in percent, text to image and image to text; None if this package has no number of the paper.
        detector: Hub id of the detector.
        batch_size: Training batch size over all processes; None without a training.
    """

    name: str
    title: str
    paper: str
    protocol: str
    base: str
    commands: list[str]
    choices: list[str]
    published: tuple[float, float] | None = None
    detector: str | None = None
    batch_size: int | None = None

    @property
    def needs_train_data(self) -> bool:
        """Whether the training data must be given, because the published ones are not public."""
        return any(GLIT in shlex.split(command) for command in self.commands)


def read_rows() -> dict[str, ReproductionRow]:
    """Return all rows by name."""
    rows = {}
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "published" in values:
            values["published"] = tuple(values["published"])
        rows[path.stem] = ReproductionRow(path.stem, **values)
    return rows


def find_row(name: str) -> ReproductionRow:
    """Return a row. Raise `ValueError` if there is none of this name."""
    rows = read_rows()
    if name not in rows:
        raise ValueError(
            f"`row` must be the name of a row, got {name!r}{did_you_mean(name, rows) or '.'} `fastgoal reproduce` "
            f"lists all {len(rows)} rows."
        )
    return rows[name]
