"""Samples: an image with text files of the same name, in a folder or in a tar file."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastgoal.processing.data.locations import SUFFIXES
from fastgoal.processing.files import parse_json

IMAGES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
TEXTS = ("txt", "caption", "text")
"""Suffixes of files with a caption, which become columns."""
TABLE = "json"
"""Suffix of a file with an object; its keys become columns."""
SNIFFED = 100
"""Number of samples at the beginning of the data that tell which columns there are."""


def warn_of_failures(folder: Path) -> None:
    """Log a warning that counts the images that img2dataset could not download, as its files of statistics say."""
    count = failures = 0
    for path in sorted(folder.glob("*_stats.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            stats = parse_json(path.read_bytes(), str(path))
            count, failures = count + stats["count"], failures + stats["count"] - stats["successes"]
    if failures:
        from transformers.utils import logging  # takes long to import, and the help of the commands lists the forms

        logging.get_logger(__name__).warning(
            f"{folder}: {failures:,} of {count:,} images were not downloaded, and are left out."
        )


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the suffix of a file name: what is before and after the first full stop of its last part."""
    folder, slash, file = name.rpartition("/")
    key, _, suffix = file.partition(".")
    return folder + slash + key, suffix.lower()


def text_columns(files: Mapping[str, bytes], label: str) -> dict[str, Any]:
    """Return the columns in the text files of a sample.

    Args:
        files: Contents of the files by suffix, one of `TABLE` and any number of texts.
        label: Name of the sample for messages.

    Raises:
        ValueError: A file is not text in UTF-8, or not a JSON object.
    """
    columns: dict[str, Any] = {}
    for suffix, data in files.items():
        if suffix == TABLE:
            table = parse_json(data, f"{label}: its .{suffix} file")
            if not isinstance(table, dict):
                raise ValueError(f"{label}: its .{suffix} file must be a JSON object, got a {type(table).__name__}.")
            columns = {**table, **columns}
            continue
        try:
            columns[suffix] = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{label}: its .{suffix} file is not text in UTF-8: {error}.") from None
    return columns


def columns_of(samples: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns of the first samples, of which the first is always `image`."""
    return list(dict.fromkeys(["image", *(column for sample in samples for column in sample)]))
