"""Files and folders that appear whole or not at all, are refused before the work where they cannot be written, and
have one writer at a time."""

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

# The names of files and folders in the making, of which a process that was killed leaves some.
DRAFT = re.compile(r"\..*\.[0-9a-f]{16}\.tmp")
HOLDER = "run.json"
# The folder in a folder that we write for locks, drafts and what a run that goes on needs.
WORK_FOLDER = ".fastgoal"


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
    """Whether a path is in a folder when all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


@contextmanager
def whole_file(path: Path, work: Path | None = None) -> Iterator[BinaryIO]:
    """A file in the folder `work` that is renamed to `path`, complete and on the disk, when the block ends well.

    Readers see the old file or the new one, never a part, and an error leaves nothing behind. Without `work`, which
    must be on the same disk, it is written beside `path`.
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
    """A new folder that is renamed to `path`, complete and on the disk, when the block ends well.

    An error leaves nothing behind. `path` must not exist, or be an empty folder.
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
    """Rename a folder, all of it on the disk, to `path`; what stood there is taken away."""
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
    """Move all files of a folder into `path`, each in place of the one there, and the file `last` at the end.

    Files of `path` whose names `replaced` matches and that the draft does not have are taken away before that.
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
    """Take away what processes that were killed left half written in a folder that this one holds."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if DRAFT.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def draft_beside(path: Path, work: Path | None = None) -> Path:
    """A name that nobody can tell beforehand, in the folder `work` or beside `path`, for what shall become `path`."""
    return (work or path.parent) / f".{path.name[:40]}.{secrets.token_hex(8)}.tmp"


@contextmanager
def hold_folder(work: Path, again: bool = False) -> Iterator[None]:
    """Be the only writer of a folder for the length of the block; the system lets go of it when the process ends.

    Args:
        work: Where `run.lock` and `run.json`, which says who holds it, lie; made if need be.
        again: Whether this process may hold it already.

    Raises:
        ValueError: Another process holds it; names that one.
        OSError: The folder cannot be written.
    """
    path, holder = work / "run.lock", work / HOLDER
    lock = FileLock(path, is_singleton=again)
    with write_errors(path):
        work.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            # Where the file system has no locks, the file is the lock, and a run that was killed may leave it.
            raise ValueError(
                f"{_holder_in_words(holder)} writes this folder. Wait for it, stop it, or use another folder. If "
                f"that run is over all the same, delete {path}."
            ) from None
    try:
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname()}, work)
        yield
    finally:
        if not again or lock.lock_counter == 1:
            holder.unlink(missing_ok=True)
        lock.release()


def write_text(path: Path, text: str, work: Path | None = None) -> None:
    """Write a file as `whole_file` does."""
    with whole_file(path, work) as file, write_errors(path):
        file.write(text.encode())


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text; a `ValueError` that says where it stands and what is wrong with it."""
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not text in UTF-8: {error}.") from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}.") from None
    except RecursionError:
        raise ValueError(f"{where} is JSON with too many lists or objects inside of each other.") from None


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


def _sync(path: Path) -> None:
    """Make what was written to a file, or renamed in a folder, last through a power cut, where the system allows it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _holder_in_words(holder: Path) -> str:
    try:
        found = json.loads(holder.read_bytes())
        return f"process {found['pid']} on the machine '{found['host']}'"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
