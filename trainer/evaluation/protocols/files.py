"""Read the files of published datasets. An error names the file and the line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastgoal.processing.files import lies_inside, parse_json


def find_file(folder: Path, name: str, *subfolders: str) -> Path:
    """Return a file in the folder itself or in the first subfolder that has it."""
    for subfolder in ("", *subfolders):
        if (folder / subfolder / name).is_file():
            return folder / subfolder / name
    raise ValueError(f"{folder} has no file {name}. Download it into this folder, or check `data` and `protocol`.")


def image_file(folder: Path, name: str, *subfolders: str) -> Path:
    """Return the image in the first subfolder that has it, or in the folder itself; never one outside the folder."""
    paths = [folder / subfolder / name for subfolder in (*subfolders, "")]
    # If there is no such file, loading it raises an error that names it.
    path = next((path for path in paths if path.is_file()), paths[0])
    if not lies_inside(path, folder):
        raise ValueError(f"The image {name!r} lies outside {folder}. Expected a path inside it.")
    return path


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file."""
    return parse_json(path.read_bytes(), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a label of each line, for messages, and its object."""
    with path.open(encoding="utf-8") as file:
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
