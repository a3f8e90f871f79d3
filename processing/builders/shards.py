"""The output folder of a long run that fills it shard by shard. It can be killed at any moment, and continued.

    DIR/MANIFEST.json                         settings, versions, source; at the end the summary
    DIR/data/train-00000-of-00016.parquet     a finished shard, renamed to this name when it is complete
    DIR/.fastgoal/train-00000-of-00016.json   its record: rows, bytes, skipped rows, counts, seconds
    DIR/.fastgoal/*.tmp                       files being written
    DIR/.fastgoal/run.lock                    locked by the process that writes; freed by the system when it ends
    DIR/.fastgoal/run.json                    the number and machine of that process

The record is written before the shard. A shard is finished when both exist and agree.
"""

import itertools
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet
from transformers.utils import logging

from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.sources import Source, refuse_problems
from fastgoal.processing.files import (
    HOLDER,
    WORK_FOLDER,
    hold_folder,
    sweep_drafts,
    whole_file,
    write_errors,
    write_json,
)

logger = logging.get_logger(__name__)

T = TypeVar("T")

PACKAGES = ("fastgoal", "torch", "transformers", "datasets", "pillow")
WAY_OUT = "Choose another `output`, or delete this folder to start again."
FORMAT = 2
# Images per parquet row group, which a reader such as the Hub's viewer fetches to show one row.
ROW_GROUP = 64


@dataclass(frozen=True)
class RunFolder:
    """The folder of a dataset that is being built, by one run at a time, always with the same settings and data.

    Args:
        folder: New, empty, or begun by an earlier run.
        manifest_name: Name of the file with the settings.
        command: The command that makes such folders, for messages.
        results: Patterns of the files that depend on the settings. As long as there are none, settings may still
            change, for example after an error in the first rows.
    """

    folder: Path
    manifest_name: str
    command: str
    results: Sequence[str]

    @property
    def work(self) -> Path:
        return self.folder / WORK_FOLDER

    @property
    def manifest(self) -> Path:
        return self.folder / self.manifest_name

    @contextmanager
    def open(self, source: Source, settings: Any) -> Iterator[dict[str, Any]]:
        """Lock the folder during the block, and yield its manifest: a new one, or that of the run that is continued.

        `settings` is a dataclass of all that the result depends on besides the rows of `source`.

        Raises:
            ValueError: The folder is a file, holds other files, data or settings, or another run writes to it.
            OSError: It cannot be written.
        """
        self._refuse_foreign()
        with hold_folder(self.work):
            sweep_drafts(self.work)  # of processes that were killed
            described = {
                **asdict(settings),
                "image_column": source.image_column,
                "caption_column": source.caption_column,
                "source_rows": len(source),
                "source_fingerprint": source.fingerprint,
            }
            versions = {name: version(name) for name in PACKAGES}
            yield self._start_or_continue(
                {"format": FORMAT, "settings": described, "source": source.name, "versions": versions}
            )

    def read_run(self) -> dict[str, Any]:
        """Return the number and the machine of the process that holds the folder."""
        return dict(json.loads((self.work / HOLDER).read_bytes()))

    def check_shared(self, run: dict[str, Any]) -> None:
        """Raise `ValueError` on a machine that does not see the folder that `run` holds."""
        with suppress(OSError, ValueError):
            if self.read_run() == run:
                return
        raise ValueError(
            f"The machine '{socket.gethostname()}' does not see the output folder {self.folder} of '{run['host']}'. "
            "Output and data must be in folders that all machines share under the same path."
        )

    def finish(self, manifest: dict[str, Any], summary: dict[str, Any]) -> None:
        """Write the summary into the manifest."""
        sweep_drafts(self.work)
        write_json(self.manifest, {**manifest, "summary": summary}, self.work)

    def _refuse_foreign(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"`output` must be a folder, got the file {self.folder}.")
        if self.folder.is_dir() and not self.manifest.exists():
            others = sorted(path.name for path in self.folder.iterdir() if path.name != WORK_FOLDER)
            if others:
                raise ValueError(
                    f"`output={self.folder}` holds files that `{self.command}` did not write "
                    f"({', '.join(others[:5])}). Choose a new or an empty folder."
                )

    def _start_or_continue(self, new: dict[str, Any]) -> dict[str, Any]:
        path = self.manifest
        if not path.exists() or not any(any(self.folder.glob(pattern)) for pattern in self.results):
            write_json(path, new, self.work)
            return new
        try:
            manifest = dict(json.loads(path.read_bytes()))
            settings = dict(manifest["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: the file cannot be read ({error!r}). {WAY_OUT}") from None
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{path}: its format is {manifest.get('format')!r}, expected {FORMAT}. {WAY_OUT}")
        differences = describe_differences(settings, new["settings"])
        if differences:
            raise ValueError(
                f"`output={self.folder}` was made from other data or with other settings, which cannot be mixed: "
                f"{differences}. {WAY_OUT}"
            )
        before = manifest.get("versions") or {}
        others = [f"{name} {was}" for name, was in before.items() if new["versions"].get(name, was) != was]
        if others:
            logger.warning(f"{self.folder} was begun with {', '.join(others)}, and is continued with other versions.")
        return manifest


def describe_differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the differences between the settings of two runs in words; empty if there are none."""
    differences = []
    for name, value in after.items():
        old = before.get(name)
        if old == value:
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            differences.append(f"of the {name}, {describe_differences(old, value)}")
        elif name == "prompt":
            differences.append("the prompt was different")
        else:
            why = " (rows or image files of the source have changed since)" if name == "source_fingerprint" else ""
            differences.append(f"{name} was {old!r} and is now {value!r}{why}")
    return "; ".join(differences)


def check_run(source: Source, on_error: str, limit: int | None = None, **counts: int | None) -> None:
    """Raise `ValueError` for wrong options, rows that are known to be broken, or a run launched as several processes.

    Args:
        source: The source.
        on_error: `stop` or `skip`.
        limit: Number of rows that are used, from the first one.
        counts: Arguments that must be positive.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"`on_error` must be stop or skip, got {on_error!r}.")
    check_positive(**counts)
    if len(source) == 0:
        raise ValueError(f"{source.name}: the source has no rows.")
    if on_error == "stop":
        refuse_problems(source, limit, " To skip such rows and list them, use `on_error=skip`.")
    processes = os.environ.get("WORLD_SIZE") or "1"
    if processes != "1":
        raise ValueError(
            f"WORLD_SIZE={processes}: several processes were started, as torchrun and accelerate launch do, and only "
            "one may write the folder. Start the command by itself; `workers` uses several processes of this machine, "
            "and `ray` those of a cluster."
        )


@dataclass(frozen=True)
class BadRow:
    """The number of a row that cannot be used, and the reason, which names the row and its file."""

    row: int
    reason: str

    @classmethod
    def of(cls, source: Source, row: int, reason: object) -> "BadRow":
        return cls(row, source.describe(row, reason))


def good_rows(loaded: Iterable[T | BadRow], skipped: list[BadRow] | None) -> list[T]:
    """Return the rows that can be used. The others are added to `skipped`.

    Raises:
        ValueError: There is a bad row and `skipped` is None. The message says how to skip such rows.
    """
    good: list[T] = []
    for row in loaded:
        if not isinstance(row, BadRow):
            good.append(row)
        elif skipped is not None:
            skipped.append(row)
        else:
            hint = "" if "on_error" in row.reason else " To skip such rows and list them, use `on_error=skip`."
            raise ValueError(row.reason + hint)
    return good


def refuse_skipped(entries: Sequence[dict[str, Any]]) -> None:
    """Raise `ValueError` if an earlier run skipped rows, for a run that stops at such rows."""
    if entries:
        raise ValueError(
            f"An earlier run with `on_error=skip` skipped {len(entries)} row{'s' if len(entries) > 1 else ''} of this "
            f"folder, the first: {entries[0]['reason']} Continue with `on_error=skip`, or choose another `output`."
        )


@dataclass(frozen=True)
class ParquetShards:
    """The `count` shards of a dataset as parquet files, independent of each other."""

    folder: Path
    count: int

    def shard_path(self, index: int) -> Path:
        return self.folder / "data" / f"train-{index:05d}-of-{self.count:05d}.parquet"

    def record_path(self, index: int) -> Path:
        return self.folder / WORK_FOLDER / f"{self.shard_path(index).stem}.json"

    def read_record(self, index: int) -> dict[str, Any] | None:
        """Return the record of a finished shard, or None for a shard that is missing or damaged and must be made.

        A warning names a damaged shard: it is truncated, unreadable, or does not match its record.
        """
        path = self.shard_path(index)
        if not path.exists():
            return None
        try:
            record = dict(json.loads(self.record_path(index).read_bytes()))
            size = path.stat().st_size
            if size != record["bytes"]:
                raise ValueError(f"it has {size} bytes, and its record says {record['bytes']}")
            rows = pyarrow.parquet.read_metadata(path).num_rows
            if rows != record["rows"]:
                raise ValueError(f"it has {rows} rows, and its record says {record['rows']}")
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
            damage = str(error) or type(error).__name__
            logger.warning(f"The shard {path} is damaged, and is made again: {damage}.")
            return None
        return record

    def write(
        self,
        index: int,
        features: Any,
        rows: Iterator[dict[str, Any]],
        describe: Callable[[], dict[str, Any]],
        row_group: int = ROW_GROUP,
    ) -> dict[str, Any]:
        """Write a shard and its record. They appear when all rows are written; an error leaves nothing behind.

        Args:
            index: The shard's number.
            features: The `datasets.Features` of the rows, which the file carries.
            rows: Dicts with a value for every feature, images as `{"bytes", "path"}`. A few are held at a time.
            describe: Returns what else to record, once all rows are written.
            row_group: Number of rows in a row group of the file.

        Returns:
            The record.
        """
        path, schema, count = self.shard_path(index), features.arrow_schema, 0
        work = self.folder / WORK_FOLDER
        with whole_file(path, work) as file:
            with write_errors(path):
                parquet = pyarrow.parquet.ParquetWriter(file, schema)
            try:
                while group := list(itertools.islice(rows, row_group)):
                    with write_errors(path):
                        parquet.write_table(pyarrow.Table.from_pylist(group, schema=schema))
                    count += len(group)
                with write_errors(path):
                    parquet.close()
            finally:
                # On a full disk closing fails too, and the first error is the one to report.
                with suppress(OSError):
                    parquet.close()
            record = {"rows": count, "bytes": file.tell(), **describe()}
            write_json(self.record_path(index), record, work)
        return record
