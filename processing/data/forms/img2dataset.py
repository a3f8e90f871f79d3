"""The parquet files that img2dataset writes with `--output_format parquet`: the bytes of each image, and its status.

Its other outputs are tar files (`webdataset`) and folders (`sidecar`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import hash_files
from fastgoal.processing.data.locations import open_parquet, parquet_files, parquet_of_split
from fastgoal.processing.data.sources import DatasetSource, Source
from fastgoal.processing.data.streams import StreamSource

from .form import Form, SourceOptions
from .samples import warn_of_failures
from .tables import read_header

IMAGES = ("jpg", "png", "webp")
"""Columns with the bytes of images: that of the format that was asked for."""
SUCCESS = "success"


def image_of(columns: list[str]) -> str | None:
    """Return the column with the bytes of the images, for columns that img2dataset writes; None for others."""
    if not {"key", "status", "url"} <= {*columns}:
        return None
    return next((name for name in IMAGES if name in columns), None)


def fits(path: Path) -> bool:
    """Return whether the first parquet file has such columns."""
    files = parquet_files(path)
    return bool(files) and image_of(read_header(files[0])) is not None


def load(path: Path, options: SourceOptions) -> Source:
    """Load the rows that were downloaded. The others are counted in a warning.

    Raises:
        ValueError: No row was downloaded, or a file cannot be read.
    """
    import datasets

    files = parquet_of_split(path, None)
    column = options.image_column or image_of(read_header(files[0]))
    with loading(f"`source={path}`"):
        dataset = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    statuses = dataset.select_columns(["status"]).with_format("arrow")[:]["status"].to_pylist()
    kept = [row for row, status in enumerate(statuses) if status == SUCCESS]
    if not kept:
        raise ValueError(f"{path}: none of the {len(statuses):,} rows was downloaded. Their status is {statuses[0]!r}.")
    warn_of_failures(path)
    dataset = dataset.select(kept)
    return Img2DatasetSource(
        dataset, str(path), fingerprint=hash_files(files), base=path, **{**options.columns, "image_column": column}
    )


class Img2DatasetSource(DatasetSource):
    """Rows with the bytes of an image; the key is the name of a row."""

    def _values(self, index: int) -> dict[str, Any]:
        return with_image(super()._values(index), self.image_column)


def with_image(values: dict[str, Any], column: str | None) -> dict[str, Any]:
    """Return the values of a row with its bytes as an image, named by its key."""
    column = column or ""
    name = f"{values.get('key')}.{column}"
    return {**values, column: {"bytes": values.get(column), "path": name}}


def read_rows(files: list[Path], column: str) -> Iterator[dict[str, Any]]:
    """Yield the rows that were downloaded."""
    for path in files:
        for batch in open_parquet(path).iter_batches(64):
            for values in batch.to_pylist():
                if values["status"] == SUCCESS:
                    yield with_image(values, column)


def stream(path: Path, options: SourceOptions) -> StreamSource:
    """Stream the rows that were downloaded."""
    import datasets

    files = parquet_of_split(path, None)
    columns = read_header(files[0])
    column = options.image_column or image_of(columns) or ""
    shards = datasets.IterableDataset.from_generator(read_rows, gen_kwargs={"files": files, "column": column})
    return StreamSource(
        shards, str(path), columns, fingerprint=hash_files(files), **{**options.columns, "image_column": column}
    )


FORM = Form("img2dataset", "a folder of .parquet files that img2dataset wrote (jpg, status, key)", fits, load, stream)
