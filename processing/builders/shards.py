"""Shards on disk that survive being killed at any moment, and the lock that keeps two runs out of one folder.

    DIR/data/train-00000-of-00016.parquet     a finished shard; it appears by renaming a complete file
    DIR/.fastgoal/train-00000-of-00016.json   its record: rows, bytes, skipped rows, counts, seconds
    DIR/.fastgoal/*.tmp                       files being written
    DIR/.fastgoal/lock                        who is writing: process, its start time, host
    DIR/.fastgoal/lock-00001                  the same of each process that helps it

The record is written first, so a shard that is there always has one. A shard is finished when both exist and agree.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

WORK_FOLDER = ".fastgoal"
# Images per parquet row group: what a reader such as the Hub's viewer has to fetch to show one row.
ROW_GROUP = 64


class ShardFolder:
    """The shards of one output folder. `count` shards in all; every shard is independent of the others."""

    def __init__(self, folder: Path, count: int, split: str = "train") -> None:
        self.folder = folder
        self.count = count
        self.split = split
        self.work = folder / WORK_FOLDER

    def shard_path(self, index: int) -> Path:
        return self.folder / "data" / f"{self.split}-{index:05d}-of-{self.count:05d}.parquet"

    def record_path(self, index: int) -> Path:
        return self.work / f"{self.shard_path(index).stem}.json"

    def read_record(self, index: int) -> dict[str, Any] | None:
        """The record of a finished shard; None when the shard has to be made (again): absent or damaged.

        A damaged one is named in a warning: it was cut off, is unreadable, or does not fit its record.
        """
        import pyarrow
        import pyarrow.parquet

        path, record_path = self.shard_path(index), self.record_path(index)
        if not path.exists():
            return None
        try:
            record = json.loads(record_path.read_bytes())
            size, rows = path.stat().st_size, None
            if size == record["bytes"]:
                rows = pyarrow.parquet.read_metadata(path).num_rows
                if rows == record["rows"]:
                    return dict(record)
            damage = f"it has {size} bytes" + (f" and {rows} rows" if rows is not None else "")
            damage += f" where its record says {record['bytes']} bytes and {record['rows']} rows"
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
            damage = str(error) or type(error).__name__
        logger.warning(f"The shard {path} is damaged and is made again: {damage}.")
        return None

    @contextmanager
    def write(self, index: int, features: Any) -> Iterator["ShardWriter"]:
        """Write a shard; it appears, with its record, when the block ends well, and leaves nothing otherwise."""
        path = self.shard_path(index)
        with _write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        writer = ShardWriter(self.work / f"{path.name}.{os.getpid()}.tmp", features)
        try:
            yield writer
            writer.close()
            record = {"rows": writer.rows, "bytes": writer.path.stat().st_size, **writer.record}
            write_json(self.record_path(index), record, self.work)
            with _write_errors(path):
                os.replace(writer.path, path)
            _sync_folder(path.parent)
        finally:
            writer.discard()

    def remove_leftovers(self) -> None:
        """Delete files that a killed run was writing. Only for the holder of the lock."""
        for path in self.work.glob("*.tmp"):
            path.unlink(missing_ok=True)


class ShardWriter:
    """Appends rows to one parquet file that carries the `datasets` features.

    `record` is saved next to the shard when it is finished.
    """

    def __init__(self, path: Path, features: Any) -> None:
        import pyarrow.parquet

        self.path = path
        self.rows = 0
        self.record: dict[str, Any] = {}
        self._schema = features.arrow_schema
        self._buffer: list[dict[str, Any]] = []
        with _write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._parquet = pyarrow.parquet.ParquetWriter(self._file, self._schema)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add rows; each is a dict with a value for every feature, images as `{"bytes", "path"}`."""
        for row in rows:
            self._buffer.append(row)
            if len(self._buffer) == ROW_GROUP:
                self._flush()

    def close(self) -> None:
        """Write what is left and finish the file; a second call does nothing."""
        if self._file.closed:
            return
        self._flush()
        with _write_errors(self.path):
            self._parquet.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        """Drop the unfinished file; does nothing once it has been renamed."""
        # On a full disk closing fails as well, and the first error is the one to show.
        with suppress(OSError):
            self._parquet.close()
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow

        if self._buffer:
            with _write_errors(self.path):
                self._parquet.write_table(pyarrow.Table.from_pylist(self._buffer, schema=self._schema))
            self.rows += len(self._buffer)
            self._buffer = []


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"could not write {path}: {error}. The shards that are finished are kept; make room (or write access) and "
            "run the same command again: it continues where it stopped."
        ) from error


def write_json(path: Path, value: Any, work: Path) -> None:
    """Write a JSON file by way of the folder `work`, so that readers see the old one or the new one, never a part."""
    temporary = work / f"{path.name}.{os.getpid()}.tmp"
    try:
        with _write_errors(path):
            work.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(value, file, indent=1, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Hold a lock file for the length of the block. A lock whose process is gone (killed) is taken over.

    Raises:
        ValueError: another live process holds it, or one on another machine, which cannot be checked from here.
    """
    with _write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while not _make_lock(path):
            _remove_stale_lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def helper_lock(work: Path, rank: int) -> Path:
    """The lock file of the process that helps the holder of `lock` as number `rank`, from 1."""
    return work / f"lock-{rank:05d}"


def refuse_helpers(work: Path) -> None:
    """Remove the locks of helpers that are gone, for the holder of `lock`. `ValueError` if one may still be writing."""
    for path in sorted(work.glob("lock-[0-9][0-9][0-9][0-9][0-9]")):
        _remove_stale_lock(path)


def own_process() -> dict[str, Any]:
    """Which process this is, for `is_gone` in another one: number, time it began, machine."""
    return {"pid": os.getpid(), "started": _start_time(os.getpid()), "host": socket.gethostname()}


def is_gone(process: dict[str, Any]) -> bool:
    """Whether a process has ended; False where that cannot be seen because it is on another machine."""
    pid = int(process["pid"])
    return process["host"] == socket.gethostname() and not (_start_time(pid) == process["started"] and _is_alive(pid))


def _make_lock(path: Path) -> bool:
    """Make the lock file with this process's name in it; False if there is one already."""
    own = json.dumps(own_process())
    complete = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        # A second name for a complete file: a kill in between leaves no lock without an owner.
        complete.write_text(own)
        os.link(complete, path)
    except FileExistsError:
        return False
    except OSError:
        # No hard links on this file system, or the holder of the lock cleared our file away.
        try:
            with path.open("x") as file:
                file.write(own)
        except FileExistsError:
            return False
        except OSError:
            path.unlink(missing_ok=True)
            raise
    finally:
        complete.unlink(missing_ok=True)
    return True


def _remove_stale_lock(path: Path) -> None:
    """Remove the lock of a process that is gone. Raises `ValueError` if its holder may still be running."""
    try:
        text = path.read_text()
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return
    try:
        holder = json.loads(text)
        pid, host, gone = int(holder["pid"]), str(holder["host"]), is_gone(holder)
    except (ValueError, KeyError, TypeError):
        # Killed between making the file and filling it; a young one may be just about to be filled.
        if age < 10:
            raise ValueError(f"{path} was just made by another run. Wait for it or use another folder.") from None
    else:
        if host != socket.gethostname():
            raise ValueError(
                f"{path} says that process {pid} on the machine '{host}' writes this folder. If that run is over, "
                "delete the file; otherwise use another folder."
            )
        if not gone:
            raise ValueError(f"process {pid} writes this folder ({path}). Wait for it, stop it, or use another folder.")
    # Two runs may find the same stale lock: each moves aside what is there and looks whether it is what it had read.
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    try:
        if aside.read_text() != text:
            with suppress(FileExistsError):
                os.link(aside, path)
            raise ValueError(f"another run took over {path} at this moment. Wait for it or use another folder.")
    finally:
        aside.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _start_time(pid: int) -> str | None:
    """When a process began, in the system's own count, so that a reused process number is not taken for the old one.

    None where the system does not tell (no /proc) or the process is gone.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name in brackets may hold spaces; the 22nd field of the line is the 20th after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # A killed process that its parent has not collected is still listed, in state Z.
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _sync_folder(path: Path) -> None:
    """Make a rename in this folder last through a power cut, where the system allows it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
