"""The dataset of local pairs that `fastgoal pairs` writes: its columns, and reading it in batches or by rows."""

import json
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from .locations import METADATA, missing_shards, open_parquet, parquet_files, refuse_two_runs, unreadable_parquet

MANIFEST = "fastgoal_pairs.json"
_EXPECTED = "Name a folder that `fastgoal pairs` wrote."
# Types of the columns; for lists of structs, the types of the fields.
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
"""Optional column of data with long captions: a text or a list of texts, for the argument `short_weight`."""


TOKENS = ("caption_tokens", "sentence_tokens")
"""Optional columns: number of tokens of the caption, and of each sentence, with the tokenizer of the model that matched
them. BOS and EOS are included."""
IMAGE_GROUP = "image_group"
"""Optional column: rows with the same number show the same image, and are no negatives of each other in training."""


def features(with_short_captions: bool = False, with_groups: bool = False, with_tokens: bool = False) -> Any:
    """Return the columns of the dataset as `datasets.Features`. Boxes are in pixels of the upright image."""
    from datasets import Features, Image, List, Value

    def feature(type_name: str | dict[str, str]) -> Any:
        if isinstance(type_name, dict):
            return List({name: feature(inner) for name, inner in type_name.items()})
        if type_name == "image":
            return Image()
        return List(Value("float32"), length=4) if type_name == "box" else Value(type_name)

    columns = {name: feature(type_name) for name, type_name in COLUMNS.items()}
    if with_tokens:
        columns |= dict(zip(TOKENS, (Value("int32"), List(Value("int32"))), strict=True))
    if with_short_captions:
        columns[SHORT_CAPTIONS] = List(Value("string"))
    if with_groups:
        columns[IMAGE_GROUP] = Value("int64")
    return Features(columns)


def short_captions(row: Mapping[str, Any], label: str) -> list[str]:
    """Return the short captions of a row that are not empty.

    Raises:
        ValueError: The column has other values than texts; the message begins with `label`.
    """
    value = row.get(SHORT_CAPTIONS) or []
    texts = [value] if isinstance(value, str) else list(value)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{label}: `{SHORT_CAPTIONS}` must be a text or a list of texts, got {wrong[0]!r}.")
    return [text for text in map(str.strip, texts) if text]


def is_pairs_folder(path: Path) -> bool:
    """Return whether a folder has rows of local pairs, or `fastgoal pairs` has begun to write them. Never raise."""
    if (path / MANIFEST).is_file():
        return True
    try:
        return any("pairs" in open_parquet(file).schema_arrow.names for file in parquet_files(path)[:1])
    except (ValueError, OSError):
        return False


class PairsFolder:
    """The rows of a folder of local pairs, complete or not.

    Args:
        folder: The output folder of `fastgoal pairs`, or a copy of it from the Hub.

    Attributes:
        files: The parquet files in order.
        rows: Number of rows of each file.
        missing: Names of missing files: "00001-of-00004" in the name of a file tells how many there must be.
        manifest: Content of `fastgoal_pairs.json`; empty without that file.
        skipped: The rows that were skipped, as `{"row", "reason"}`.
        matched: Whether the rows have pairs.
        has_tokens: Whether the rows have the columns `TOKENS`.
        problems: Descriptions of problems that were found when the rows were opened.

    Raises:
        ValueError: There are no rows of local pairs, or a file is truncated or lacks columns.
    """

    matched = True
    problems: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _find_files(folder)
        refuse_two_runs(self.files)
        self._opened = [open_parquet(path) for path in self.files]
        for path, opened in zip(self.files, self._opened, strict=True):
            _check_columns(opened.schema_arrow, path)
        self.rows = [opened.metadata.num_rows for opened in self._opened]
        self._groups = [(file, group) for file, one in enumerate(self._opened) for group in range(one.num_row_groups)]
        sizes = (self._opened[file].metadata.row_group(group).num_rows for file, group in self._groups)
        self._starts = [0, *accumulate(sizes)]
        if len(self) == 0:
            raise ValueError(f"{folder} has no rows in its {len(self.files)} parquet files.")
        self.has_tokens = all({*TOKENS} <= {*opened.schema_arrow.names} for opened in self._opened)
        self.missing = missing_shards(self.files)
        self.manifest = _read_manifest(folder / MANIFEST)
        self.skipped = _skipped_rows(folder, self.manifest)

    def __len__(self) -> int:
        return self._starts[-1]

    def batches(self, columns: Sequence[str], size: int = 1024) -> Iterator[Any]:
        """Yield all rows in order, as `pyarrow.RecordBatch`es of at most `size` rows with these columns.

        Raises:
            ValueError: A file is broken.
        """
        for number in range(len(self.files)):
            yield from self._batches(number, columns, size)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield rows with all columns as (index, row), sorted by index, with the image as `{"bytes", "path"}`.

        Only their row groups are read.
        """
        for number, of_group in groupby(sorted(indices), lambda index: bisect_right(self._starts, index) - 1):
            wanted, start = deque(of_group), self._starts[number]
            file, group = self._groups[number]
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
        from pyarrow import ArrowException

        try:
            yield from self._opened[number].iter_batches(size, row_groups=groups, columns=list(columns))
        except (OSError, ArrowException) as error:
            raise unreadable_parquet(self.files[number], error) from None


def _with_own_image(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row without its image if that is only the name of a file: `fastgoal pairs` writes bytes."""
    image = row["image"]
    has_bytes = isinstance(image, dict) and image.get("bytes")
    return {**row, "image": {**image, "path": Path(str(image.get("path") or "")).name} if has_bytes else None}


def _find_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. {_EXPECTED}")
    if files := parquet_files(folder):
        return files
    if not any(folder.iterdir()):
        raise ValueError(f"{folder} is empty. {_EXPECTED}")
    hint = _EXPECTED
    if (folder / METADATA).is_file():
        hint = f"It has images and captions: make pairs first with `fastgoal pairs {folder} --output DIR`."
    elif (folder / MANIFEST).is_file():
        hint = "`fastgoal pairs` has not finished a shard yet."
    raise ValueError(f"{folder} and its subfolder data have no parquet files. {hint}")


def _check_columns(schema: Any, path: Path) -> None:
    import pyarrow

    missing = []
    for column, fields in COLUMNS.items():
        if column not in schema.names:
            missing.append(column)
        elif isinstance(fields, dict):
            list_type = schema.field(column).type
            is_list = pyarrow.types.is_list(list_type) or pyarrow.types.is_large_list(list_type)
            struct = list_type.value_type if is_list else pyarrow.null()
            names = {struct.field(number).name for number in range(struct.num_fields)}
            missing += [f"{column}.{field}" for field in fields if field not in names]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(schema.names)}. {_EXPECTED}"
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a JSON file; return an empty dict if there is none or it is broken, which does not affect the rows."""
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _skipped_rows(folder: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the skipped rows from the summary of a complete dataset, or from the records of its shards."""
    summary = manifest.get("summary")
    if isinstance(summary, dict):
        records = [summary]
    else:
        records = [_read_manifest(path) for path in sorted((folder / ".fastgoal").glob("*.json"))]
    return [entry for record in records for entry in record.get("skipped") or []]
