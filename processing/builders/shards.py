"""An output folder that a long run fills shard by shard, that survives a kill at any moment and is then continued.

    DIR/MANIFEST.json                         settings, versions, source; at the end the summary
    DIR/data/train-00000-of-00016.parquet     a finished shard; it appears by renaming a complete file
    DIR/.fastgoal/train-00000-of-00016.json   its record: rows, bytes, skipped rows, counts, seconds
    DIR/.fastgoal/*.tmp                       files being written
    DIR/.fastgoal/run.lock                    locked by the process that writes; the system frees it when that ends
    DIR/.fastgoal/run.json                    which process that is

The record is written first, so a shard that is there always has one. A shard is finished when both exist and agree.
"""

import itertools
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet
from transformers.utils import logging

from fastgoal.processing.data.sources import Source
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

PACKAGES = ("fastgoal", "torch", "transformers", "datasets", "pillow")
REMEDY = "Choose another --output, or delete this folder to start again."
# Images per parquet row group: what a reader such as the Hub's viewer has to fetch to show one row.
ROW_GROUP = 64


@dataclass(frozen=True)
class RunFolder:
    """The folder of one dataset in the making: one run at a time, always with the same settings and the same data.

    Args:
        folder: New, empty, or begun by an earlier run.
        manifest_name: Its file of settings.
        command: What makes such folders, for messages.
        made: Patterns of the files whose contents depend on the settings. While there is none, nothing could be mixed,
            so an option may still be put right after an error in the first rows.
        read_settings: Gives the settings of an older manifest today's form.
    """

    folder: Path
    manifest_name: str
    command: str
    made: Sequence[str]
    read_settings: Callable[[dict[str, Any]], dict[str, Any]] = dict

    @property
    def work(self) -> Path:
        return self.folder / WORK_FOLDER

    @property
    def manifest(self) -> Path:
        return self.folder / self.manifest_name

    @contextmanager
    def open(self, source: Source, settings: Any) -> Iterator[dict[str, Any]]:
        """Hold the folder for the length of the block, and give its manifest, new or of the run that is continued.

        `settings` is a dataclass of what the result depends on, besides the rows of `source`.

        Raises:
            ValueError: The folder is a file, holds other things, other data or settings, or another run writes it.
            OSError: It cannot be written.
        """
        self._refuse_foreign()
        with hold_folder(self.work):
            self._sweep()
            described = {
                **asdict(settings),
                "image_column": source.image_column,
                "caption_column": source.caption_column,
                "source_rows": len(source),
                "source_fingerprint": source.fingerprint,
            }
            versions = {name: version(name) for name in PACKAGES}
            yield self._start_or_continue(
                {"format": 1, "settings": described, "source": source.name, "versions": versions}
            )

    def read_run(self) -> dict[str, Any]:
        """Which process holds the folder: its number and its machine."""
        return dict(json.loads((self.work / HOLDER).read_bytes()))

    def check_shared(self, run: dict[str, Any]) -> None:
        """Raise `ValueError` where the folder that `run` holds is not to be seen, on another machine for example."""
        with suppress(OSError, ValueError):
            if self.read_run() == run:
                return
        raise ValueError(
            f"the machine '{socket.gethostname()}' does not see the output folder {self.folder} as "
            f"'{run['host']}' does. Output and data must lie in folders that all machines share, under the same path."
        )

    def finish(self, manifest: dict[str, Any], summary: dict[str, Any]) -> None:
        """Write the summary into the manifest."""
        self._sweep()
        write_json(self.manifest, {**manifest, "summary": summary}, self.work)

    def _sweep(self) -> None:
        """Take away what processes that were killed left half written."""
        sweep_drafts(self.work)

    def _refuse_foreign(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"output='{self.folder}' is a file; expected a folder.")
        if self.folder.is_dir() and not self.manifest.exists():
            others = sorted(path.name for path in self.folder.iterdir() if path.name != WORK_FOLDER)
            if others:
                raise ValueError(
                    f"output='{self.folder}' has files in it that `{self.command}` did not make "
                    f"({', '.join(others[:5])}). Choose a new or an empty folder."
                )

    def _start_or_continue(self, wanted: dict[str, Any]) -> dict[str, Any]:
        path = self.manifest
        if not path.exists() or not any(any(self.folder.glob(pattern)) for pattern in self.made):
            write_json(path, wanted, self.work)
            return wanted
        try:
            found = json.loads(path.read_bytes())
            settings = self.read_settings(dict(found["settings"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error!r}). {REMEDY}") from None
        if found.get("format") != wanted["format"]:
            raise ValueError(f"{path} has format {found.get('format')!r}, this program {wanted['format']}. {REMEDY}")
        differences = describe_differences(settings, wanted["settings"])
        if differences:
            raise ValueError(
                f"output='{self.folder}' was made from other data or with other settings: {differences}. They are not "
                f"mixed. {REMEDY}"
            )
        before = found.get("versions") or {}
        others = [f"{name} {was}" for name, was in before.items() if wanted["versions"].get(name, was) != was]
        if others:
            logger.warning(f"{self.folder} was begun with {', '.join(others)}; other versions continue it.")
        return dict(found)


def describe_differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """In words, where two runs' settings differ; empty if they do not."""
    differences = []
    for name, value in wanted.items():
        before = found.get(name)
        if before == value:
            continue
        if isinstance(before, dict) and isinstance(value, dict):
            differences.append(f"of the {name}, {describe_differences(before, value)}")
        elif name == "prompt":
            differences.append("the prompt was another one")
        else:
            why = " (rows or image files of the source have changed since)" if name == "source_fingerprint" else ""
            differences.append(f"{name} was {before!r} and is now {value!r}{why}")
    return "; ".join(differences)


def refuse_skipped(entries: Sequence[dict[str, Any]]) -> None:
    """Raise `ValueError` if an earlier run left rows out, for one that stops at such rows."""
    if entries:
        raise ValueError(
            f"an earlier run with on_error='skip' left out {len(entries)} row{'s' if len(entries) > 1 else ''} of this "
            f"folder, the first: {entries[0]['reason']} Go on with --on-error skip, or write another --output."
        )


@dataclass(frozen=True)
class ParquetShards:
    """The shards of a dataset as parquet files. `count` shards in all; every shard is independent of the others."""

    folder: Path
    count: int

    def shard_path(self, index: int) -> Path:
        return self.folder / "data" / f"train-{index:05d}-of-{self.count:05d}.parquet"

    def record_path(self, index: int) -> Path:
        return self.folder / WORK_FOLDER / f"{self.shard_path(index).stem}.json"

    def read_record(self, index: int) -> dict[str, Any] | None:
        """The record of a finished shard; None when the shard has to be made (again): absent or damaged.

        A damaged one is named in a warning: it was cut off, is unreadable, or does not fit its record.
        """
        path = self.shard_path(index)
        if not path.exists():
            return None
        try:
            record = dict(json.loads(self.record_path(index).read_bytes()))
            size = path.stat().st_size
            if size != record["bytes"]:
                raise ValueError(f"it has {size} bytes where its record says {record['bytes']}")
            rows = pyarrow.parquet.read_metadata(path).num_rows
            if rows != record["rows"]:
                raise ValueError(f"it has {rows} rows where its record says {record['rows']}")
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
            damage = str(error) or type(error).__name__
            logger.warning(f"The shard {path} is damaged and is made again: {damage}.")
            return None
        return record

    def write(
        self, index: int, features: Any, rows: Iterator[dict[str, Any]], describe: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Write a shard; it appears, with its record, when all its rows are there, and leaves nothing otherwise.

        Args:
            index: Its number.
            features: The `datasets.Features` of the rows, which the file carries.
            rows: Dicts with a value for every feature, images as `{"bytes", "path"}`. A few are held at a time.
            describe: Gives what else to record, when all rows are written.

        Returns:
            The record.
        """
        path, schema, count = self.shard_path(index), features.arrow_schema, 0
        work = self.folder / WORK_FOLDER
        with whole_file(path, work) as file:
            with write_errors(path):
                parquet = pyarrow.parquet.ParquetWriter(file, schema)
            try:
                while group := list(itertools.islice(rows, ROW_GROUP)):
                    with write_errors(path):
                        parquet.write_table(pyarrow.Table.from_pylist(group, schema=schema))
                    count += len(group)
                with write_errors(path):
                    parquet.close()
            finally:
                # On a full disk closing fails as well, and the first error is the one to show.
                with suppress(OSError):
                    parquet.close()
            record = {"rows": count, "bytes": file.tell(), **describe()}
            write_json(self.record_path(index), record, work)
        return record
