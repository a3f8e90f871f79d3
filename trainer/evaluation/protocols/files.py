"""Reading the files of published datasets: what is not as it should be is an error that names file and line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastgoal.processing.files import lies_inside, parse_json


def find_file(folder: Path, name: str, *places: str) -> Path:
    """A file in the folder itself or in the first of some sub-folders that has it."""
    for place in ("", *places):
        if (folder / place / name).is_file():
            return folder / place / name
    raise ValueError(f"{folder} has no file {name}. Download it into this folder, or check --data and --protocol.")


def image_file(folder: Path, name: str, *places: str) -> Path:
    """The image's file in the first of some sub-folders that has it. Only names inside of the folder are followed."""
    found = [folder / place / name for place in (*places, "")]
    # Where there is no such file, loading it gives an error that names it.
    path = next((path for path in found if path.is_file()), found[0])
    if not lies_inside(path, folder):
        raise ValueError(f"the image {name!r} leads out of {folder}; expected a path inside it.")
    return path


def read_json(path: Path) -> Any:
    return parse_json(path.read_bytes(), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's place in words, and its object."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path} line {number}"
                yield where, as_object(parse_json(line, where), where)


def objects(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place in words and the value of each object of a list."""
    for number, entry in enumerate(as_list(value, where)):
        yield f"{where} entry {number}", as_object(entry, f"{where} entry {number}")


def as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a {type(value).__name__}; expected a JSON object.")
    return value


def as_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is a {type(value).__name__}; expected a JSON list.")
    return value


def text_of(row: dict[str, Any], key: str, where: str, empty: bool = False) -> str:
    """The text under a key, stripped; with `empty` there may be none."""
    value = row.get(key)
    if empty and value is None:
        return ""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ValueError(f"{where}: {key!r} is {value!r}; expected text. The row has {sorted(map(str, row))}.")
    return value.strip()
