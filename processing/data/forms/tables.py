"""Tables of image files and captions: CSV, TSV and parquet files without images."""

import csv
import hashlib
from pathlib import Path
from typing import Any

from fastgoal.processing.checkpoints.errors import first_line
from fastgoal.processing.checkpoints.fingerprints import hash_files
from fastgoal.processing.data.locations import open_parquet
from fastgoal.processing.data.sources import Source
from fastgoal.processing.texts import shortened

from .form import SourceOptions

PATH_COLUMNS = ("file_name", "filepath", "file_path", "image_path", "image", "path", "filename")
"""Default columns with the names of image files."""


class TableSource(Source):
    """The rows of an Arrow table that name image files.

    Args:
        path: The file of the table.
        options: The options of `load_source`.

    Raises:
        ValueError: The file cannot be read, has no rows, or a column does not exist.
    """

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path, self.base = path, options.image_folder or path.parent
        self.table = read_table(path)
        if not len(self.table):
            raise ValueError(f"{path} has no rows.")
        super().__init__(str(path), self.table.column_names, image_candidates=PATH_COLUMNS, **options.columns)

    @property
    def fingerprint(self) -> str:
        """A hash of the file and of the sizes of all image files."""
        digest = hashlib.sha256(hash_files([self.path]).encode())
        for name in self.table[self.image_column].to_pylist():
            digest.update(b"%d\n" % self._size(name))
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.table)

    def _label(self, index: int, values: dict[str, Any]) -> str:
        name = values.get(self.image_column)
        return f"{self.path} row {index}" + (f" ({shortened(str(name), 200)})" if name else "")

    def _values(self, index: int) -> dict[str, Any]:
        return dict(self.table.slice(index, 1).to_pylist()[0])


def read_header(path: Path) -> list[str]:
    """Return the columns of a CSV, TSV or parquet file; an empty list if it cannot be read."""
    try:
        return list(open_parquet(path).schema_arrow.names) if path.suffix == ".parquet" else _first_line(path)
    except (OSError, ValueError):
        return []


def read_table(path: Path) -> Any:
    """Return a CSV, TSV or parquet file as a `pyarrow.Table`. All values of CSV and TSV files are texts.

    Raises:
        ValueError: The file cannot be read.
    """
    import pyarrow.csv

    if path.suffix == ".parquet":
        return open_parquet(path).read()
    try:
        names = _first_line(path)
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
            ),
        )
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)} It must be a table in UTF-8.") from None


def _first_line(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file, delimiter=_delimiter(path)), [])


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix == ".tsv" else ","
