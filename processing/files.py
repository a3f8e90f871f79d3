"""Files that appear whole or not at all, and are refused before the work where they cannot be written."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def prepare_output(path: Path, option: str = "--output") -> None:
    """Find out before the work, not after it, that the file of an option cannot be written.

    Raises:
        ValueError: The path is a folder, or its folder is not writable.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option} {path}: the folder {path.parent} is not writable.")


@contextmanager
def whole_file(path: Path, work: Path | None = None) -> Iterator[BinaryIO]:
    """A file in the folder `work` that is renamed to `path`, complete and on the disk, when the block ends well.

    Readers see the old file or the new one, never a part, and an error leaves nothing behind. Without `work`, which
    must be on the same disk, it is written beside `path`.
    """
    draft = (work or path.parent) / f"{path.name}.{os.getpid()}.tmp"
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = draft.open("wb")
    try:
        yield file
        with write_errors(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(draft, path)
        _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            file.close()
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str, work: Path | None = None) -> None:
    """Write a file as `whole_file` does."""
    with whole_file(path, work) as file, write_errors(path):
        file.write(text.encode())


def write_json(path: Path, value: Any, work: Path | None = None) -> None:
    """Write a value as a file of JSON, as `whole_file` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", work)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Let an `OSError` of the block say which file could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"could not write {path}: {error}. What is finished is kept; make room (or write access) and run the same "
            "command again: it continues where it stopped."
        ) from error


def _sync_folder(path: Path) -> None:
    """Make a rename in this folder last through a power cut, where the system allows it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
