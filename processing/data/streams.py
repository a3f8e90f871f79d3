"""Datasets that are read from their shards row by row, and need not fit on the disk.

A stream is a folder or Hub dataset of Parquet shards, as `fastgoal pairs` writes them, or of tar files in webdataset
format. `datasets` reads it; its streams have a state (`state_dict`) and divide shards among processes and workers.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow.parquet

from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import hash_files

from .locations import hub_cache, load_from_hub, parquet_of_split
from .sources import CAPTION_COLUMNS, DatasetSource

EXPECTED = "a folder of .parquet files (as `fastgoal pairs` writes), a folder of .tar files, or OWNER/NAME on the Hub"
# In webdataset format a column is the suffix of a file: the text of an image, and a table of other values.
TEXT, TABLE, KEY = "txt", "json", "__key__"


class StreamSource(DatasetSource):
    """A `datasets.IterableDataset` with images as undecoded bytes or paths.

    `rows` is the number of rows; None if it is not known. `fingerprint` changes with the data, `name` by default.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        name: str,
        rows: int | None = None,
        base: Path | None = None,
        fingerprint: str | None = None,
    ) -> None:
        features = stream.features
        if features is None:
            raise ValueError(f"`train_data`: the columns of '{name}' are not known. Expected {EXPECTED}.")
        if isinstance(table := features.get(TABLE), Mapping):
            features = datasets.Features(
                {**{name: value for name, value in features.items() if name != TABLE}, **table}
            )
            stream = stream.map(_spread_table, remove_columns=[TABLE], features=features)
        text = TEXT if TEXT in features and not any(column in features for column in CAPTION_COLUMNS) else None
        super().__init__(stream, name, caption_column=text, fingerprint=fingerprint or name, base=base)
        self.rows = rows

    def __len__(self) -> int:
        raise TypeError("a stream has no length; its `rows` is the number of rows if that is known")

    def _label(self, index: int, values: dict[str, Any]) -> str:
        name = self._row_name(index, values.get(self.image_column), values)
        return f"{self.name} ({name})"

    def _row_name(self, index: int, image: Any, values: dict[str, Any]) -> str:
        return str(values.get("file_name") or values.get(KEY) or super()._row_name(index, image, values))


def open_stream(source: str | os.PathLike[str], split: str | None = None) -> StreamSource:
    """Open a folder of shards or a Hub dataset as a stream.

    Args:
        source: A folder of .parquet or .tar files, or the OWNER/NAME of a dataset on the Hub.
        split: Name of the split; required if there are several. Tar files have none.

    Raises:
        ValueError: There are no shards, or some of them are missing.
    """
    text, folder = os.fspath(source), Path(source)
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"`train_data` must be a folder, got the file '{text}'. Expected {EXPECTED}.")
        stream = load_from_hub(text, split, streaming=True)
        known = (stream.info.splits or {}).get(str(stream.split))
        with loading(f"'{text}'"):
            revision = f"{text}@{huggingface_hub.HfApi().dataset_info(text).sha} {stream.split}"
        return StreamSource(stream, text, getattr(known, "num_examples", None), hub_cache(), revision)
    if files := parquet_of_split(folder, split):
        rows = sum(pyarrow.parquet.read_metadata(path).num_rows for path in files)
        return StreamSource(_load("parquet", files), text, rows, folder, hash_files(files))
    if files := sorted([*folder.glob("*.tar"), *(folder / "data").glob("*.tar")]):
        return StreamSource(_load("webdataset", files), text, base=folder, fingerprint=hash_files(files))
    raise ValueError(
        f"`train_data`: '{text}' has no .parquet and no .tar files to stream from. Expected {EXPECTED}. Train on other "
        "data with `streaming=false`."
    )


def _load(builder: str, files: list[Path]) -> datasets.IterableDataset:
    return datasets.load_dataset(builder, data_files=[str(path) for path in files], split="train", streaming=True)


def _spread_table(row: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a row's table as columns."""
    return dict(row[TABLE] or {})
