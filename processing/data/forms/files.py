"""Read the files of published datasets. An error names the file and the line or entry."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastgoal.processing.data.locations import wrong_split
from fastgoal.processing.data.sources import Source
from fastgoal.processing.files import parse_json

from .form import SourceOptions
from .rows import RowsSource

Rows = Iterable[tuple[str, dict[str, Any]]]
"""Rows by column, each with a label for messages."""


def load_rows(path: Path, rows: Rows, options: SourceOptions) -> Source:
    """Return rows as a source. Their images are in `image_base(path, options)`."""
    return RowsSource(path, rows, image_base(path, options), options)


def image_base(path: Path, options: SourceOptions) -> Path:
    """Return the folder of the images: the given one, or that of the data."""
    return options.image_folder or folder_of(path)


def folder_of(path: Path) -> Path:
    """Return the folder itself, or the folder of a file."""
    return path if path.is_dir() else path.parent


def find_file(path: Path, names: Iterable[str]) -> Path:
    """Return the file itself, or the only file of a folder that a pattern matches.

    Raises:
        ValueError: The folder has no such file, or several.
    """
    if not path.is_dir():
        return path
    files = matching_files(path, names)
    if len(files) == 1:
        return files[0]
    if not files:
        raise ValueError(f"{path} has no file {' or '.join(names)}. Download it into this folder, or check `form`.")
    raise ValueError(f"{path} has {len(files)} such files: {', '.join(file.name for file in files)}. Name one of them.")


def matching_files(path: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of a folder that match patterns, in the order of the patterns and of their names."""
    return [file for name in names for file in sorted(path.glob(name)) if file.is_file()]


def image_name(base: Path, name: str, *subfolders: str) -> str:
    """Return the path of an image, relative to `base`, in the first subfolder that has it, or in `base` itself."""
    names = [os.path.join(subfolder, name) for subfolder in (*subfolders, "")]
    # If there is no such file, loading it raises an error that names it.
    return next((each for each in names if os.path.isfile(os.path.join(base, each))), names[0])


def last_part(path: str) -> str:
    """Return the file name of a path on somebody else's disk."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def select_split(rows: Rows, split: str | None, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a split (`a+b` for two), by their column `split`; without a split, all rows of the only one.

    Raises:
        ValueError: There is no such split, or there are several and none was named.
    """
    rows = list(rows)
    if not rows:
        raise ValueError(f"{path} has no rows.")
    splits = dict.fromkeys(values["split"] for _, values in rows)
    chosen = [*splits] if split is None else split.split("+")
    if not splits.keys() >= {*chosen} or (split is None and len(splits) > 1):
        raise wrong_split(split, splits, path)
    yield from ((label, values) for label, values in rows if values["split"] in chosen)


def begins_with(path: Path, *texts: str, suffixes: tuple[str, ...] = (".json",)) -> bool:
    """Return whether a file of these suffixes has one of the texts among its first characters; never raise."""
    if path.suffix.lower() not in suffixes or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(4096).decode(errors="replace")
    except OSError:
        return False
    return any(text in head for text in texts)


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file."""
    return parse_json(path.read_bytes(), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a label of each line, for messages, and its object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                label = f"{path} line {number}"
                yield label, as_object(parse_json(line, label), label)


def objects(value: Any, label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a label of each entry of a list, for messages, and its object."""
    for number, entry in enumerate(as_list(value, label)):
        yield f"{label} entry {number}", as_object(entry, f"{label} entry {number}")


def as_object(value: Any, label: str) -> dict[str, Any]:
    """Return a value that must be a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{label} must be a JSON object, got a {type(value).__name__}.")
    return value


def as_list(value: Any, label: str) -> list[Any]:
    """Return a value that must be a JSON list."""
    if not isinstance(value, list):
        raise ValueError(f"{label} must be a JSON list, got a {type(value).__name__}.")
    return value


def text_of(row: dict[str, Any], key: str, label: str, empty: bool = False) -> str:
    """Return the stripped text of a key. With `empty`, the text may be empty or missing."""
    value = row.get(key)
    if empty and value is None:
        return ""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ValueError(f"{label}: {key!r} must be a text, got {value!r}. The row has {sorted(map(str, row))}.")
    return value.strip()
