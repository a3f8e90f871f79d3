"""The three kinds of rows that the trainer takes, made of the same rows."""

from pathlib import Path
from typing import Any

import datasets

from fastgoal.processing.images import load_image
from fastgoal.trainer.batches.rows import TrainingData
from tests.squares import write_pairs

KINDS = ("from Python", "of datasets", "of fastgoal pairs")


def of_kind(kind: str, rows: list[dict[str, Any]], folder: Path) -> Any:
    """The same rows as `pair_rows` gives them, as a `datasets.Dataset`, and as a folder of `fastgoal pairs`."""
    if kind == "from Python":
        return [{**row, "image": load_image(row["image"])} for row in rows]
    write_pairs(rows, folder)
    if kind == "of datasets":
        files = [str(path) for path in folder.glob("*.parquet")]
        return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))
    return TrainingData(str(folder))
