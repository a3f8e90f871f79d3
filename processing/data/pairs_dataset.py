"""A dataset of local pairs: its columns, one row of it, and the folder that `fastgoal pairs` wrote, read a batch of
columns or single rows at a time, never all of it at once."""

import json
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet

from .locations import METADATA, missing_shards, parquet_files, refuse_two_runs

MANIFEST = "fastgoal_pairs.json"
# The columns with the names of their types; of lists of structs, those of what is in them.
COLUMNS: dict[str, str | dict[str, str]] = {
    "image": "image",
    "file_name": "string",
    "caption": "string",
    "width": "int32",
    "height": "int32",
    "regions": {"box": "box", "score": "float32", "label": "string", "source": "string"},
    "sentences": {"start": "int32", "end": "int32"},
    "pairs": {"sentence": "int32", "region": "int32", "score": "float32", "best": "bool"},
}
SHORT_CAPTIONS = "short_captions"
"""A column that data may have beside their long captions: a text or several, kept for `--short_weight`."""
_REMEDY = "Delete it and run the same `fastgoal pairs` command again, which makes what is missing."


def features(with_short_captions: bool = False) -> Any:
    """The columns of the dataset as `datasets.Features`; boxes are in pixels of the upright image."""
    from datasets import Features, Image, List, Value

    def feature(kind: str | dict[str, str]) -> Any:
        if isinstance(kind, dict):
            return List({name: feature(inner) for name, inner in kind.items()})
        if kind == "image":
            return Image()
        return List(Value("float32"), length=4) if kind == "box" else Value(kind)

    more = {SHORT_CAPTIONS: List(Value("string"))} if with_short_captions else {}
    return Features({**{name: feature(kind) for name, kind in COLUMNS.items()}, **more})


def short_captions(row: Mapping[str, Any], where: str) -> list[str]:
    """A row's short captions that are not empty.

    Raises:
        ValueError: The column holds something else than a text or texts; the message begins with `where`.
    """
    found = row.get(SHORT_CAPTIONS) or []
    texts = [found] if isinstance(found, str) else list(found)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{where}: `{SHORT_CAPTIONS}` must be a text or texts, got {wrong[0]!r}.")
    return [text for text in map(str.strip, texts) if text]


class PairsFolder:
    """The rows of a folder of local pairs; a run that is not finished yet can be read as far as it is.

    Args:
        folder: As `fastgoal pairs --output` names it, or a copy of it from the Hub.

    Attributes:
        files: The parquet files, in order.
        rows: Rows of each file.
        missing: Names of files that the others' names speak of ("00001-of-00004") and that are not there.
        manifest: What `fastgoal_pairs.json` says; empty without that file.
        skipped: The rows that the run left out, as `{"row", "reason"}`.

    Raises:
        ValueError: The folder is none, is empty, or a file in it is cut off or lacks columns; names the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _find_files(folder)
        refuse_two_runs(self.files)
        self._opened: list[Any] = []
        for path in self.files:
            try:
                if not path.is_file():
                    raise OSError("it is no regular file")
                opened = pyarrow.parquet.ParquetFile(path)
            except (OSError, pyarrow.ArrowException) as error:
                raise _unreadable(path, error) from None
            _check_columns(opened.schema_arrow, path)
            self._opened.append(opened)
        self.rows = [opened.metadata.num_rows for opened in self._opened]
        self._groups = [(file, group) for file, one in enumerate(self._opened) for group in range(one.num_row_groups)]
        sizes = (self._opened[file].metadata.row_group(group).num_rows for file, group in self._groups)
        self._starts = [0, *accumulate(sizes)]
        if len(self) == 0:
            raise ValueError(f"{folder} has {len(self.files)} parquet files and not one row in them.")
        self.missing = missing_shards(self.files)
        self.manifest = _read_manifest(folder / MANIFEST)
        self.skipped = _skipped_rows(folder, self.manifest)

    def __len__(self) -> int:
        return self._starts[-1]

    def batches(self, columns: Sequence[str], size: int = 1024) -> Iterator[Any]:
        """All rows in order, as `pyarrow.RecordBatch` of at most `size` rows with some columns.

        Raises:
            ValueError: A file is broken; names it.
        """
        for number in range(len(self.files)):
            yield from self._batches(number, columns, size)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Some rows with all columns, the image as `{"bytes", "path"}`, as (number, row), in order of their numbers.

        Only the row groups they lie in are read.
        """
        for place, numbers in groupby(sorted(indices), lambda index: bisect_right(self._starts, index) - 1):
            wanted, start = deque(numbers), self._starts[place]
            file, group = self._groups[place]
            for batch in self._batches(file, list(COLUMNS), 64, [group]):
                while wanted and wanted[0] < start + batch.num_rows:
                    index = wanted.popleft()
                    yield index, _with_own_image(batch.slice(index - start, 1).to_pylist()[0])
                start += batch.num_rows
                if not wanted:
                    break

    def _batches(
        self, number: int, columns: Sequence[str], size: int, groups: Sequence[int] | None = None
    ) -> Iterator[Any]:
        try:
            yield from self._opened[number].iter_batches(size, row_groups=groups, columns=list(columns))
        except (OSError, pyarrow.ArrowException) as error:
            raise _unreadable(self.files[number], error) from None


def _with_own_image(row: dict[str, Any]) -> dict[str, Any]:
    """The row without an image that is but the name of a file: `fastgoal pairs` writes bytes."""
    image = row["image"]
    own = isinstance(image, dict) and image.get("bytes")
    return {**row, "image": {**image, "path": Path(str(image.get("path") or "")).name} if own else None}


def _find_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one that `fastgoal pairs` wrote.")
    if files := parquet_files(folder):
        return files
    if not any(folder.iterdir()):
        raise ValueError(f"{folder} is empty; name a folder that `fastgoal pairs` wrote.")
    hint = ""
    if (folder / METADATA).is_file():
        hint = f" It has images and captions: make pairs of them first with `fastgoal pairs {folder} --output DIR`."
    elif (folder / MANIFEST).is_file():
        hint = " The run that makes it has not finished a shard yet."
    raise ValueError(f"{folder} has no parquet file, in it or in data/; `fastgoal pairs` writes such a folder.{hint}")


def _check_columns(schema: Any, path: Path) -> None:
    lacks = []
    for column, fields in COLUMNS.items():
        if column not in schema.names:
            lacks.append(column)
            continue
        if isinstance(fields, dict):
            kind = schema.field(column).type
            is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
            inner = kind.value_type if is_list else pyarrow.null()
            found = {inner.field(place).name for place in range(inner.num_fields)}
            lacks += [f"{column}.{field}" for field in fields if field not in found]
    if lacks:
        raise ValueError(
            f"{path} lacks {', '.join(lacks)}; its columns are {', '.join(schema.names)}. Name a folder that "
            "`fastgoal pairs` wrote."
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest; a copy from elsewhere may have none, and a broken one says nothing about the rows."""
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _skipped_rows(folder: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """From the summary of a finished run, else from the records of the shards that are there."""
    summary = manifest.get("summary")
    if isinstance(summary, dict):
        records = [summary]
    else:
        records = [_read_manifest(path) for path in sorted((folder / ".fastgoal").glob("*.json"))]
    return [entry for record in records for entry in record.get("skipped") or []]


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ValueError(f"the shard {path} cannot be read ({reason}): it is cut off or no parquet file. {_REMEDY}")
