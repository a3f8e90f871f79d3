"""Datasets that are read from their shards one row after the other, and need not fit on the disk.

Parquet shards, as `fastgoal pairs` writes, or tar files of the webdataset kind, in a folder or on the Hub. `datasets`
reads them; its streams know where they are (`state_dict`) and share their shards among processes and workers.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from .locations import hub_cache, load_from_hub, parquet_of_split
from .sources import CAPTION_COLUMNS, DatasetSource

EXPECTED = "a folder of .parquet files (as `fastgoal pairs` writes), a folder of .tar files, or OWNER/NAME on the Hub"
# In tar files of the webdataset kind a column is a suffix: the text beside a picture, and what else is known of it.
TEXT, TABLE, KEY = "txt", "json", "__key__"


class StreamSource(DatasetSource):
    """A `datasets.IterableDataset` with pictures as undecoded bytes or paths.

    `rows` is how many there are, None where that is not known.
    """

    def __init__(
        self, stream: datasets.IterableDataset, name: str, rows: int | None = None, base: Path | None = None
    ) -> None:
        features = stream.features
        if features is None:
            raise ValueError(f"train_data='{name}' does not say which columns it has; expected {EXPECTED}.")
        if isinstance(table := features.get(TABLE), Mapping):
            spread = {**{column: kind for column, kind in features.items() if column != TABLE}, **table}
            stream = stream.map(_spread, remove_columns=[TABLE], features=datasets.Features(spread))
            features = spread
        text = TEXT if TEXT in features and not any(column in features for column in CAPTION_COLUMNS) else None
        super().__init__(stream, name, caption_column=text, fingerprint="stream", base=base)
        self.rows = rows

    def __len__(self) -> int:
        raise TypeError("a stream has no length; `rows` says how many there are, where that is known")

    def _label(self, index: int, values: dict[str, Any]) -> str:
        name = self._row_name(index, values.get(self.image_column), values)
        return f"{self.name} ({name})"

    def _row_name(self, index: int, image: Any, values: dict[str, Any]) -> str:
        return str(values.get("file_name") or values.get(KEY) or super()._row_name(index, image, values))


def open_stream(source: str | os.PathLike[str], split: str | None = None) -> StreamSource:
    """Open a folder of shards or a Hub dataset as a stream.

    Raises:
        ValueError: It is none, or lacks some of its shards.
    """
    text, folder = os.fspath(source), Path(source)
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"train_data='{text}' is a file; pass its folder. Expected {EXPECTED}.")
        stream = load_from_hub(text, split, streaming=True)
        known = stream.info.splits or {}
        return StreamSource(stream, text, getattr(known.get(str(stream.split)), "num_examples", None), hub_cache())
    if files := parquet_of_split(folder, split):
        rows = sum(pyarrow.parquet.read_metadata(path).num_rows for path in files)
        return StreamSource(_load("parquet", files), text, rows, folder)
    if files := sorted([*folder.glob("*.tar"), *(folder / "data").glob("*.tar")]):
        return StreamSource(_load("webdataset", files), text, base=folder)
    raise ValueError(
        f"train_data='{text}' has no .parquet and no .tar file: a stream is read from such. Expected {EXPECTED}. Other "
        "data are trained on without --streaming."
    )


def _load(kind: str, files: list[Path]) -> datasets.IterableDataset:
    return datasets.load_dataset(kind, data_files=[str(path) for path in files], split="train", streaming=True)


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the entries of its table as columns."""
    return dict(row[TABLE] or {})
