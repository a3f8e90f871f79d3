"""From rows of images and captions to a data set of local pairs on disk: the work behind `fastgoal pairs`.

Threads decode images ahead while the main thread asks the detector and CLIP about many images at once. The rows go out
in shards; every shard depends on its own rows only, so a run that was killed makes the missing ones and ends up with
the same files as one that was not.
"""

import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from .matching import LocalPair
from .pair_rows import LoadedRow, RowError, features, load_row, output_row
from .regions import Region
from .shards import WORK_FOLDER, ShardFolder, ShardWriter, folder_lock, write_json
from .sources import Source

logger = logging.get_logger(__name__)

MANIFEST = "fastgoal_pairs.json"
COLUMN_PREFIX = "column:"
STAGES = ("decode", "detect", "match", "write")
# Decoded images held at once are a few times this many, whatever the size of a shard.
IMAGES_PER_CROP_BATCH = 4


@dataclass(frozen=True)
class PairSettings:
    """What the rows depend on. A run is only continued with the same settings.

    Args:
        model: name of the matcher, with a mark that changes when its weights change.
        detector: the same for the detector; `column:NAME` takes the boxes of a column; `none` has no detector.
        dtype: number format of the matcher.
        split: split of the source.
        limit: use the first so many rows only.
        shard_size: rows of the source in a shard.
        min_score: lowest score of a detection.
        min_area, max_area: area of a region as a share of the image.
    """

    model: str
    detector: str = "none"
    dtype: str = "float32"
    split: str | None = None
    limit: int | None = None
    shard_size: int = 256
    min_score: float = 0.25
    min_area: float = 0.01
    max_area: float = 0.80

    def __post_init__(self) -> None:
        for name in ("limit", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; expected a number from 1.")
        if not 0 <= self.min_area < self.max_area <= 1:
            raise ValueError(
                f"min_area={self.min_area}, max_area={self.max_area}; expected 0 <= min_area < max_area <= 1."
            )
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score={self.min_score}; expected a number from 0 to 1.")

    @property
    def box_column(self) -> str | None:
        """The column that boxes come from, if they do."""
        return self.detector.removeprefix(COLUMN_PREFIX) if self.detector.startswith(COLUMN_PREFIX) else None


def build_pairs(
    source: Source,
    output: str | os.PathLike[str],
    settings: PairSettings,
    load_matcher: Callable[[], tuple[Any, Any]],
    on_error: str = "stop",
    batch_size: int = 64,
    num_workers: int = 4,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the local pairs of every row of `source` as shards of parquet, or continue such a folder.

    Args:
        source: rows to work on.
        output: folder for `data/*.parquet` and `fastgoal_pairs.json` (settings, versions, summary).
        settings: what the rows depend on.
        load_matcher: returns (model, processor), the processor with its `detector` set; called only if there is work.
        on_error: `stop` at a row that cannot be used, or `skip` and list it in the summary.
        batch_size: crops (and sentences) in one forward of CLIP; a quarter as many images go to the detector at once.
        num_workers: threads that read and decode images.
        progress: show a bar with images per second.

    Returns:
        The summary: `images`, `skipped` (row and reason), `sentences`, `pairs`, `regions` and `best_regions` by
        source, `seconds`, `images_per_second`, `stage_seconds` (over all runs that made the folder; `decode` is the
        time spent waiting for decoded images) and `shards_made` by this call.

    Raises:
        ValueError: a row cannot be used, the folder holds something else, or another process writes it.
        OSError: a shard could not be written, for example on a full disk.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error='{on_error}'; expected 'stop' or 'skip'.")
    if batch_size < 1 or num_workers < 1:
        raise ValueError(f"batch_size={batch_size}, num_workers={num_workers}; expected numbers from 1.")
    if len(source) == 0:
        raise ValueError(f"source='{source.name}' has no rows.")
    if settings.box_column is not None and settings.box_column not in source.columns:
        raise ValueError(
            f"detector='{settings.detector}': {source.name} has no column '{settings.box_column}'; its columns are "
            f"{source.columns}."
        )
    output = Path(output)
    rows = len(source) if settings.limit is None else min(settings.limit, len(source))
    shards = ShardFolder(output, math.ceil(rows / settings.shard_size))
    ranges = [range(i * settings.shard_size, min(rows, (i + 1) * settings.shard_size)) for i in range(shards.count)]
    _check_output(output)
    with folder_lock(shards.work / "lock"):
        manifest = _start_or_continue(output / MANIFEST, _manifest(source, settings), shards.work)
        shards.remove_leftovers()
        records = {index: shards.read_record(index) for index in range(shards.count)}
        done = {index: record for index, record in records.items() if record is not None}
        pending = [index for index in records if index not in done]
        if on_error == "stop":
            _refuse_skipped(done)
        if not pending and "summary" in manifest:
            return {**manifest["summary"], "shards_made": 0}
        if pending:
            model, processor = load_matcher()
            batch = max(1, batch_size // IMAGES_PER_CROP_BATCH)
            builder = _Builder(settings, model, processor, on_error == "skip", batch_size)
            pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
            loaded = _prefetch(
                pool,
                lambda row: load_row(source, row, processor, settings.box_column),
                (row for i in pending for row in ranges[i]),
                ahead=2 * batch,
            )
            bar = tqdm(
                total=rows, initial=sum(len(ranges[i]) for i in done), unit="image", desc="pairs", disable=not progress
            )
            try:
                for index in pending:
                    with shards.write(index, features()) as writer:
                        builder.build(islice(loaded, len(ranges[index])), batch, writer, bar.update)
                    done[index] = writer.record
            finally:
                bar.close()
                pool.shutdown(cancel_futures=True)
        summary = _summarise([done[index] for index in sorted(done)])
        write_json(output / MANIFEST, {**manifest, "summary": summary}, shards.work)
    return {**summary, "shards_made": len(pending)}


class _Builder:
    """Turns rows into finished rows, many images at a time, and counts what it saw."""

    def __init__(self, settings: PairSettings, model: Any, processor: Any, skip: bool, batch_size: int) -> None:
        self.settings = settings
        self.model = model
        self.processor = processor
        self.skip = skip
        self.batch_size = batch_size

    def build(
        self, rows: Iterator[LoadedRow | RowError], batch: int, writer: ShardWriter, advance: Callable[[int], Any]
    ) -> None:
        """Work off the rows of one shard and leave its counts in the writer's record."""
        start = time.perf_counter()
        seconds = dict.fromkeys(STAGES, 0.0)
        counts: Counter[str] = Counter()
        regions_by_source: Counter[str] = Counter()
        best_by_source: Counter[str] = Counter()
        skipped: list[dict[str, Any]] = []
        while True:
            with _timed(seconds, "decode"):
                chunk = list(islice(rows, batch))
            if not chunk:
                break
            good: list[LoadedRow] = []
            for row in chunk:
                if isinstance(row, LoadedRow):
                    good.append(row)
                elif self.skip:
                    skipped.append(asdict(row))
                else:
                    raise ValueError(f"{row.reason} (--on-error skip leaves such rows out and lists them.)")
            with _timed(seconds, "detect"):
                regions = self._regions(good)
            with _timed(seconds, "match"):
                pairs = self._pairs(good, regions)
            with _timed(seconds, "write"):
                writer.append([output_row(*parts) for parts in zip(good, regions, pairs, strict=True)])
            for row, candidates, matches in zip(good, regions, pairs, strict=True):
                counts.update(images=1, sentences=len(row.sentences), pairs=len(matches))
                regions_by_source.update(region.source for region in candidates)
                best_by_source.update(match.region.source for match in matches if match.best)
            advance(len(chunk))
        with _timed(seconds, "write"):
            writer.close()
        writer.record = {
            "skipped": skipped,
            **{name: counts[name] for name in ("images", "sentences", "pairs")},
            "regions": dict(sorted(regions_by_source.items())),
            "best_regions": dict(sorted(best_by_source.items())),
            "seconds": time.perf_counter() - start,
            "stage_seconds": seconds,
        }

    def _regions(self, rows: list[LoadedRow]) -> list[list[Region]]:
        if not rows:
            return []
        return self.processor.propose_regions(
            [row.image for row in rows],
            boxes=None if self.settings.box_column is None else [row.regions or [] for row in rows],
            min_score=self.settings.min_score,
            min_area=self.settings.min_area,
            max_area=self.settings.max_area,
        )

    def _pairs(self, rows: list[LoadedRow], regions: list[list[Region]]) -> list[list[LocalPair]]:
        if not rows:
            return []
        return self.processor.match(
            [row.image for row in rows],
            [row.caption for row in rows],
            self.model,
            regions=regions,
            sentences=[row.sentences for row in rows],
            batch_size=self.batch_size,
        )


def _prefetch(
    pool: ThreadPoolExecutor, function: Callable[[int], Any], items: Iterable[int], ahead: int
) -> Iterator[Any]:
    """`map` in order, with at most `ahead` results waiting to be taken."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the shards' records."""
    total: dict[str, Counter[str]] = {name: Counter() for name in ("regions", "best_regions", "stage_seconds")}
    for record in records:
        for name, counter in total.items():
            counter.update(record[name])
    seconds = sum(record["seconds"] for record in records)
    images = sum(record["images"] for record in records)
    return {
        "images": images,
        "skipped": [entry for record in records for entry in record["skipped"]],
        "sentences": sum(record["sentences"] for record in records),
        "pairs": sum(record["pairs"] for record in records),
        "regions": dict(total["regions"]),
        "best_regions": dict(total["best_regions"]),
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 2) if seconds > 0 else 0.0,
        "stage_seconds": {name: round(total["stage_seconds"][name], 2) for name in STAGES},
        "shards": len(records),
    }


def _manifest(source: Source, settings: PairSettings) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "format": 1,
        "settings": {
            **asdict(settings),
            "image_column": source.image_column,
            "caption_column": source.caption_column,
            "source_rows": len(source),
            "source_fingerprint": source.fingerprint,
        },
        "source": source.name,
        "versions": {name: version(name) for name in ("fastgoal", "torch", "transformers", "datasets", "pillow")},
    }


def _start_or_continue(path: Path, wanted: dict[str, Any], work: Path) -> dict[str, Any]:
    """Write the manifest of a new folder, or check that the folder's own asks for the same rows."""
    # Without a single shard there is nothing to mix with: an option may be put right after an error in the first rows.
    if not path.exists() or not any((path.parent / "data").glob("*.parquet")):
        write_json(path, wanted, work)
        return wanted
    remedy = "Choose another --output, or delete this folder to start again."
    try:
        found = json.loads(path.read_bytes())
        settings = dict(found["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}). {remedy}") from None
    if found.get("format") != wanted["format"]:
        raise ValueError(f"{path} has format {found.get('format')!r}, this program {wanted['format']}. {remedy}")
    differences = [
        f"{name} was {settings.get(name)!r} and is now {value!r}"
        for name, value in wanted["settings"].items()
        if settings.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"output='{path.parent}' holds pairs of other data or settings: {'; '.join(differences)}. They are not "
            f"mixed. {remedy}"
        )
    if found.get("versions") != wanted["versions"]:
        logger.warning(f"{path.parent} was begun with {found.get('versions')}; now {wanted['versions']} continues it.")
    return found


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"output='{output}' is a file; expected a folder.")
    if output.is_dir() and not (output / MANIFEST).exists():
        others = sorted(path.name for path in output.iterdir() if path.name != WORK_FOLDER)
        if others:
            raise ValueError(
                f"output='{output}' has files in it that `fastgoal pairs` did not make ({', '.join(others[:5])}). "
                "Choose a new or an empty folder."
            )


def _refuse_skipped(done: dict[int, dict[str, Any]]) -> None:
    entries = [entry for record in done.values() for entry in record["skipped"]]
    if entries:
        raise ValueError(
            f"an earlier run with on_error='skip' left out {len(entries)} rows of this folder, the first: "
            f"{entries[0]['reason']} Go on with --on-error skip, or write another --output."
        )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - start
