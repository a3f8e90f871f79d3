"""Writing files and folders: complete or not at all, by one process at a time, and checked before the work starts."""

import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

# Names of incomplete files and folders; a process that is killed leaves some of them.
DRAFT = re.compile(r"\..*\.[0-9a-f]{16}\.tmp")
HOLDER = "run.json"
LOCK = "run.lock"
WORK_FOLDER = ".fastgoal"
"""Name of the folder, inside an output folder, for locks, drafts and what a resumed run needs."""


def prepare_output(path: Path, argument: str = "output") -> None:
    """Create the folder of an output file, and check before the work starts that the file can be written.

    Args:
        path: The file.
        argument: Name of the argument that `path` was given for, for messages.

    Raises:
        ValueError: The path is a folder, or its folder is not writable.
    """
    if path.is_dir():
        raise ValueError(f"`{argument}={path}` is a folder. Name a file in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"`{argument}={path}`: the folder {path.parent} is not writable.")


def lies_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Return whether a path is in a folder, with all links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def refuse_outside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Raise `ValueError` if a path in a folder leads out of it by a link, since nothing is written outside."""
    if not lies_inside(path, folder):
        raise ValueError(f"{path}: the link leads out of the folder. Replace the link by the file or folder itself.")


@contextmanager
def whole_file(path: Path, work: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing, which gets the name `path` when the block ends without an error.

    Readers see the old file or the complete new one, and an error leaves nothing behind.

    Args:
        path: The file.
        work: Folder of the incomplete file, on the same disk; by default that of `path`.
    """
    draft = draft_beside(path, work)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = draft.open("xb")
    try:
        yield file
        with write_errors(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(draft, path)
        _sync(path.parent)
    finally:
        with suppress(OSError):
            file.close()
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Create a folder, which gets the name `path` when the block ends without an error; an error leaves nothing behind.

    `path` must not exist, or be an empty folder.
    """
    draft = draft_beside(path)
    with write_errors(path):
        draft.mkdir(parents=True)
    try:
        yield draft
        with write_errors(path):
            put_folder(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def put_folder(draft: Path, path: Path) -> None:
    """Write a folder to the disk and rename it to `path`, which it replaces."""
    for folder, _, names in os.walk(draft, topdown=False):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    replaced = None
    if path.is_dir() and any(path.iterdir()):
        replaced = draft_beside(path)
        path.rename(replaced)
    elif path.is_dir():
        path.rmdir()
    draft.rename(path)
    _sync(path.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def merge_folder(draft: Path, path: Path, last: str, replaced: re.Pattern[str]) -> None:
    """Move all files of a folder into the folder `path`, which may have files of the same names.

    Args:
        draft: The folder with the new files.
        path: The folder that gets them.
        last: Name of the file that is moved last.
        replaced: Pattern of names in `path`: matching files that are not in `draft` are deleted before the last move.
    """
    files = [file.relative_to(draft) for file in sorted(draft.rglob("*")) if file.is_file()]
    path.mkdir(parents=True, exist_ok=True)
    for file in sorted(files, key=lambda file: file.name == last):
        if file.name == last:
            for old in path.iterdir():
                if replaced.fullmatch(old.name) and Path(old.name) not in files:
                    old.unlink()
        _sync(draft / file)
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / file, path / file)
    _sync(path)


def sweep_drafts(folder: Path) -> None:
    """Delete the incomplete files that killed processes left in a folder that this process holds."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if DRAFT.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def draft_beside(path: Path, work: Path | None = None) -> Path:
    """Return a random name, in the folder `work` or that of `path`, for an incomplete file or folder."""
    return (work or path.parent) / f".{path.name[:40]}.{secrets.token_hex(8)}.tmp"


@contextmanager
def hold_folder(work: Path, again: bool = False) -> Iterator[None]:
    """Be the only writer of a folder during the block. The system releases the lock when the process ends.

    Args:
        work: Folder of `run.lock` and of `run.json`, which names the holder; created if needed.
        again: Whether this process may already hold it.

    Raises:
        ValueError: Another process holds the folder; the message names it.
        OSError: The folder cannot be written.
    """
    path, holder = work / LOCK, work / HOLDER
    lock = FileLock(path, is_singleton=again)
    with write_errors(path):
        work.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            # On a file system without locks the file itself is the lock, and a run that is killed may leave it.
            raise ValueError(
                f"{_describe_holder(holder)} writes this folder. Wait for it, stop it, or use another folder. If that "
                f"run has ended, delete {path}."
            ) from None
    try:
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname()}, work)
        yield
    finally:
        if not again or lock.lock_counter == 1:
            holder.unlink(missing_ok=True)
        lock.release()


def write_inside(folder: str | os.PathLike[str], name: str, data: bytes) -> None:
    """Write a file into a folder with `whole_file`; a link of this name is replaced.

    Raises:
        ValueError: The folder of the file is a link that leads out of `folder`.
    """
    path = Path(folder, name)
    refuse_outside(path.parent, folder)
    with whole_file(path) as file, write_errors(path):
        file.write(data)


def write_text(path: Path, text: str, work: Path | None = None) -> None:
    """Write a text file with `whole_file`."""
    with whole_file(path, work) as file, write_errors(path):
        file.write(text.encode())


def parse_json(text: str | bytes, name: str) -> Any:
    """Parse JSON. Raise `ValueError`, which begins with `name`, for anything else."""
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8: {error}.") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}.") from None
    except RecursionError:
        raise ValueError(f"{name} is JSON with too many nested lists or objects.") from None


def write_json(path: Path, value: Any, work: Path | None = None) -> None:
    """Write a value as a JSON file with `whole_file`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", work)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Add the file and the way out to the message of an `OSError` in the block."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"Could not write {path}: {error}. Finished work is kept: make room (or get write access) and run the same "
            "command again, which continues where it stopped."
        ) from error


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, where the system supports it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _describe_holder(holder: Path) -> str:
    try:
        record = json.loads(holder.read_bytes())
        return f"process {record['pid']} on the machine '{record['host']}'"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
