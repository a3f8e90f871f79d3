"""Small files in the form of published datasets."""

import json

from fastgoal.trainer.evaluation.protocols.registry import open_protocol


def write(path, value):
    """Write a text, or a value as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def rows_of(name, folder):
    """Return the file name and the captions of each row of a protocol."""
    return [(row.name, row.captions) for row in open_protocol(name, str(folder))]
