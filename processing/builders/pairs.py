"""From rows of images and captions to a data set of local pairs on disk: the work behind `fastgoal pairs`.

Threads decode images, bring them to the detector's size and cut crops, while the main thread asks the detector and CLIP
about many images at once. The rows go out in shards, which several processes may share out among themselves.
Every shard depends on its own rows only, so it is the same file whoever makes it, and whether or not a run was killed
before.
"""

import itertools
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from fastgoal.processing.data.sources import Source
from fastgoal.processing.matching import cut_crops, embed_crop_stream, embed_texts, eval_mode
from fastgoal.processing.regions import Region

from .pair_manifest import (
    COLUMN_PREFIX,
    MANIFEST,
    STAGES,
    PairSettings,
    check_output,
    describe_differences,
    describe_run,
    refuse_skipped,
    start_or_continue,
    summarise,
)
from .pair_rows import LoadedRow, RowError, features, load_row, output_row
from .shards import ShardFolder, ShardWriter, folder_lock, helper_lock, refuse_helpers, write_json
from .team import GONE, Team

__all__ = ["COLUMN_PREFIX", "PairSettings", "build_pairs", "default_workers"]

T = TypeVar("T")
R = TypeVar("R")

# Images in one call of the detector: a fraction of the crops in a forward. A few times as many are held decoded.
IMAGES_PER_CROP_BATCH = 4
# Rows whose sentences are embedded together: many, so that those of like lengths meet, whatever the size of a shard.
ROWS_PER_BLOCK = 256


def default_workers() -> int:
    """Threads for decoding and cropping: the processor cores that this process may use, at most 16, shared with the
    other processes of the same launch on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))


def build_pairs(
    source: Source,
    output: str | os.PathLike[str],
    settings: PairSettings,
    load_matcher: Callable[[], tuple[Any, Any]],
    on_error: str = "stop",
    batch_size: int = 64,
    num_workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the local pairs of every row of `source` as shards of parquet, or continue such a folder.

    Started in several processes (`torchrun`, `accelerate launch`), each takes one shard after the other that no other
    has taken; the first one locks the folder, checks its settings and writes the summary at the end.

    Args:
        source: rows to work on.
        output: folder for `data/*.parquet` and `fastgoal_pairs.json` (settings, versions, summary).
        settings: what the rows depend on.
        load_matcher: returns (model, processor), the processor with its `detector` set; called only if there is work.
        on_error: `stop` at a row that cannot be used, or `skip` and list it in the summary.
        batch_size: crops in one forward of CLIP; a quarter as many images go to the detector at once. Another number
            changes scores by rounding errors.
        num_workers: threads that decode images and cut crops; by default `default_workers()`.
        progress: show a bar with images per second, in the first process.

    Returns:
        The summary: `images`, `skipped` (row and reason), `sentences`, `pairs`, `without_phrases` (images whose caption
        gave the detector nothing to look for), `regions` and `best_regions` by source, `seconds`, `images_per_second`,
        `stage_seconds` (of the main threads; `decode` and `crop` are the time spent waiting for the others) over all
        runs and processes that made the folder, and `shards_made` by this call. In all processes but the first: the
        same of this process's own shards.

    Raises:
        ValueError: a row cannot be used, the folder holds something else, or another process writes it.
        OSError: a shard could not be written, for example on a full disk, or another process of this run died.
    """
    num_workers = default_workers() if num_workers is None else num_workers
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
    wanted = describe_run(source, settings)
    team = Team.from_environment()

    def make(pending: list[int], done: int) -> list[dict[str, Any]]:
        """Make the shards that fall to this process."""
        taken = team.take(pending)
        first = next(taken, None)
        if first is None:
            return []
        model, processor = load_matcher()
        builder = _Builder(source, settings, model, processor, on_error == "skip", batch_size, num_workers)
        with tqdm(total=rows, initial=done, unit="image", desc="pairs", disable=not (progress and team.leads)) as bar:

            def advance(images: int) -> None:
                bar.update(done + team.count(images) - bar.n)

            return builder.build(shards, ranges, itertools.chain([first], taken), advance)

    if not team.leads:
        plan = team.plan()
        differences = describe_differences(plan["settings"], wanted["settings"])
        with team.working(), folder_lock(helper_lock(shards.work, team.rank)):
            if differences:
                raise ValueError(f"process {team.rank} was started with other data or settings: {differences}.")
            own = make(plan["pending"], plan["done"])
        return {**summarise(own), "shards_made": len(own)}

    with team.planning() as announce:
        check_output(output)
        with folder_lock(shards.work / "lock"):
            refuse_helpers(shards.work)
            manifest = start_or_continue(output / MANIFEST, wanted, shards.work)
            shards.remove_leftovers()
            records = {i: record for i in range(shards.count) if (record := shards.read_record(i)) is not None}
            if on_error == "stop":
                refuse_skipped(records.values())
            pending = [i for i in range(shards.count) if i not in records]
            rows_done = sum(len(ranges[i]) for i in records)
            announce({"settings": wanted["settings"], "pending": pending, "done": rows_done})
            with team.working():
                make(pending, rows_done)
            if not pending and "summary" in manifest:
                return {**manifest["summary"], "shards_made": 0}
            records |= {i: record for i in pending if (record := shards.read_record(i)) is not None}
            if team.errors or len(records) < shards.count:
                reasons = "; ".join(f"process {rank}: {reason}" for rank, reason in sorted(team.errors.items()))
                raise OSError(f"{reasons} {shards.count - len(records)} of {shards.count} shards are missing. {GONE}")
            summary = summarise(records[i] for i in sorted(records))
            write_json(output / MANIFEST, {**manifest, "summary": summary}, shards.work)
    return {**summary, "shards_made": len(pending)}


class _Builder:
    """Turns rows into finished rows, many images at a time, and counts what it saw."""

    def __init__(
        self,
        source: Source,
        settings: PairSettings,
        model: Any,
        processor: Any,
        skip: bool,
        batch_size: int,
        num_workers: int,
    ) -> None:
        self.source = source
        self.settings = settings
        self.model = model
        self.processor = processor
        self.skip = skip
        self.batch_size = batch_size
        self.images_at_once = max(1, batch_size // IMAGES_PER_CROP_BATCH)
        self.clock = _Clock()
        self.pool = _single_threaded(num_workers)

    def build(
        self, shards: ShardFolder, ranges: list[range], taken: Iterable[int], advance: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Make the taken shards; rows of the next one are read while the last one ends. Returns their records."""
        records = []
        start, spent = time.time(), Counter[str]()
        numbers = ((index, row) for index in taken for row in ranges[index])
        loaded = self.clock.timed("decode", self._ahead(self._load, numbers, 2 * self.images_at_once))
        try:
            with eval_mode(self.model):
                for index, rows in itertools.groupby(loaded, key=lambda item: item[0]):
                    with shards.write(index, features()) as writer:
                        counts = self._build_shard(ranges[index], (row for _, row in rows), writer, advance)
                        with self.clock("write"):
                            writer.close()
                        seconds = {stage: self.clock.seconds[stage] - spent[stage] for stage in STAGES}
                        writer.record = {**counts, "span": [start, time.time()], "stage_seconds": seconds}
                    records.append(writer.record)
                    start, spent = time.time(), self.clock.seconds.copy()
        finally:
            self.pool.shutdown(cancel_futures=True)
        return records

    def _build_shard(
        self,
        numbers: range,
        rows: Iterator[LoadedRow | RowError],
        writer: ShardWriter,
        advance: Callable[[int], None],
    ) -> dict[str, Any]:
        """Work off the rows of one shard and count what was in them."""
        counts: Counter[str] = Counter()
        by_source: Counter[str] = Counter()
        best_by_source: Counter[str] = Counter()
        skipped: list[RowError] = []
        for begin in range(0, len(numbers), ROWS_PER_BLOCK):
            block = numbers[begin : begin + ROWS_PER_BLOCK]
            before = counts["images"]
            with self.clock("sentences"):
                texts = self._embed_sentences(block)
            good = self._detected(itertools.islice(rows, len(block)), skipped)
            for row, regions, embeds in self._embedded(good):
                with self.clock("write"):
                    similarity = torch.stack([texts[sentence.text] for sentence in row.sentences]) @ embeds.T
                    pairs = self.processor.pair_sentences(
                        row.caption, row.sentences, regions, row.image.size, similarity
                    )
                    writer.append([output_row(row, regions, pairs)])
                unasked = self.processor.detector is not None and row.regions is None and row.prepared is None
                counts.update(images=1, sentences=len(row.sentences), pairs=len(pairs), without_phrases=int(unasked))
                by_source.update(region.source for region in regions)
                best_by_source.update(pair.region.source for pair in pairs if pair.best)
                advance(1)
            advance(len(block) - (counts["images"] - before))
        return {
            "skipped": [asdict(row) for row in skipped],
            **{name: counts[name] for name in ("images", "sentences", "pairs", "without_phrases")},
            "regions": dict(sorted(by_source.items())),
            "best_regions": dict(sorted(best_by_source.items())),
        }

    def _load(self, number: tuple[int, int]) -> tuple[int, LoadedRow | RowError]:
        """A row with the number of its shard."""
        return number[0], load_row(self.source, number[1], self.processor, self.settings.box_column)

    def _embed_sentences(self, block: range) -> dict[str, torch.Tensor]:
        """The embedding `(dim,)` of every sentence of some rows."""
        texts: set[str] = set()
        for number in block:
            try:
                caption = self.source.caption(number)
            except (ValueError, OSError):
                continue  # reported when the row itself is loaded
            texts.update(sentence.text for sentence in self.processor.split_sentences(caption))
        if not texts:
            return {}
        unique = list(texts)
        return dict(
            zip(unique, embed_texts(unique, self.model, self.processor.tokenizer, self.batch_size), strict=True)
        )

    def _detected(
        self, rows: Iterator[LoadedRow | RowError], skipped: list[RowError]
    ) -> Iterator[tuple[LoadedRow, list[Region]]]:
        """The rows that can be used, with their candidate regions; the others are noted, or stop the run."""
        while chunk := list(itertools.islice(rows, self.images_at_once)):
            good = [row for row in chunk if isinstance(row, LoadedRow)]
            bad = [row for row in chunk if isinstance(row, RowError)]
            if bad and not self.skip:
                raise ValueError(f"{bad[0].reason} (--on-error skip leaves such rows out and lists them.)")
            skipped.extend(bad)
            if good:
                with self.clock("detect"):
                    regions = self._regions(good)
                yield from zip(good, regions, strict=True)

    def _regions(self, rows: list[LoadedRow]) -> list[list[Region]]:
        boxes = None
        if self.settings.box_column is not None:
            boxes = [row.regions or [] for row in rows]
        elif self.processor.detector is not None:
            found = iter(self.processor.detector.detect([row.prepared for row in rows if row.prepared is not None]))
            boxes = [[] if row.prepared is None else next(found) for row in rows]
        regions: list[list[Region]] = self.processor.propose_regions(
            [row.image for row in rows],
            boxes=boxes,
            min_score=self.settings.min_score,
            min_area=self.settings.min_area,
            max_area=self.settings.max_area,
        )
        return regions

    def _embedded(
        self, rows: Iterator[tuple[LoadedRow, list[Region]]]
    ) -> Iterator[tuple[LoadedRow, list[Region], torch.Tensor]]:
        """Rows with the embeddings `(regions, dim)` of their crops, which threads cut while others are embedded."""
        waiting: deque[tuple[LoadedRow, list[Region]]] = deque()

        def remembered() -> Iterator[tuple[LoadedRow, list[Region]]]:
            for row, regions in rows:
                waiting.append((row, regions))
                yield row, regions

        def cut(item: tuple[LoadedRow, list[Region]]) -> torch.Tensor:
            row, regions = item
            return cut_crops(row.image, [region.box for region in regions], self.processor.image_processor)

        crops = self.clock.timed("crop", self._ahead(cut, remembered(), self.images_at_once))
        embeds = embed_crop_stream(crops, self.model, self.processor.image_processor, self.batch_size)
        for embedded in self.clock.timed("image", embeds):
            yield (*waiting.popleft(), embedded)

    def _ahead(self, function: Callable[[T], R], items: Iterable[T], most: int) -> Iterator[R]:
        """`map` in the pool, in order, with at most `most` results waiting to be taken.

        Beside a GPU the threads never stop. On a CPU they do a portion while the models rest: working at the same time
        they would take a core away from one thread of a model's operation, and its other threads would wait for that.
        """
        iterator = iter(items)
        waiting: deque[Future[R]] = deque()
        if not overlaps(self.model.device):
            while portion := list(itertools.islice(iterator, most)):
                yield from list(self.pool.map(function, portion))
        for item in iterator:
            waiting.append(self.pool.submit(function, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def overlaps(device: torch.device) -> bool:
    """Whether threads have processor cores of their own while the models work on `device`."""
    return device.type != "cpu"


def _single_threaded(count: int) -> ThreadPoolExecutor:
    """Threads that run each operation of torch on one core: there are as many of them as there are cores."""
    threads = torch.get_num_threads()
    all_there = threading.Barrier(count)

    def limit() -> None:
        torch.get_num_threads()  # a thread's first call sets the common number, over any set before
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(count, thread_name_prefix="pairs", initializer=limit)
    list(pool.map(lambda _: all_there.wait(), range(count)))
    torch.set_num_threads(threads)  # part of the setting is the whole process's
    return pool


class _Clock:
    """Seconds by stage; the time of a stage inside another one counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stage, self._since = "", time.perf_counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        outer = self._enter(stage)
        try:
            yield
        finally:
            self._enter(outer)

    def timed(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time to get each counts for `stage`."""
        iterator = iter(items)
        while True:
            with self(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _enter(self, stage: str) -> str:
        now = time.perf_counter()
        self.seconds[self._stage] += now - self._since  # type: ignore[assignment]
        left, self._stage, self._since = self._stage, stage, now
        return left
