"""The loop that makes shards one after the other in this process, and the threads that read ahead of it.

A shard depends on its own rows only, so it is the same whoever makes it. `cluster.RayEngine` takes this place to hand
shards out to several processes or machines; what makes a shard stays as it is.
"""

import itertools
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from tqdm.auto import tqdm

from fastgoal.processing.checkpoints.devices import choose_device
from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.sources import Source

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Shard:
    """A part of the work: its number and the numbers of its rows in the source."""

    number: int
    rows: Sequence[int]


class ShardMaker(Protocol):
    """What makes shards, with its models loaded."""

    threads: "Threads"  # where `load` runs
    ahead: int  # loaded rows that may wait to be taken

    def load(self, row: int) -> Any:
        """Read one row of the source. What is wrong with the row is returned as a `BadRow`."""

    def make(self, shard: Shard, rows: Iterator[Any], advance: Callable[[int], Any]) -> dict[str, Any]:
        """Write the shard of the loaded rows, tell `advance` how many are done, and return the shard's record."""
        ...


class Engine(AbstractContextManager["Engine"]):
    """Who makes the shards: this process, one after the other."""

    def choose_device(self, asked: str) -> str:
        """The device of the models, `auto` resolved. Raises `ValueError` for one that cannot be used."""
        return choose_device(asked)

    def run_shards(
        self, pending: Sequence[Shard], load_maker: Callable[[int], ShardMaker], total: int, what: str, progress: bool
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Make shards, and give number and record of each as it is finished.

        Args:
            pending: What there is to do; rows of the next shard are read while the last one ends.
            load_maker: Loads the models, told how many processor cores are its own; not called for nothing.
            total: Rows of all shards; those that are not pending count as done.
            what: Title of the bar.
            progress: Show it.
        """
        if not pending:
            return
        maker = load_maker(count_cores())
        with maker.threads, progress_bar(pending, total, what, progress) as bar:
            rows = itertools.chain.from_iterable(shard.rows for shard in pending)
            loaded = maker.threads.map(maker.load, rows, maker.ahead)
            for shard in pending:
                yield shard.number, maker.make(shard, itertools.islice(loaded, len(shard.rows)), bar.update)

    def __exit__(self, *_: object) -> None:
        pass


def progress_bar(pending: Sequence[Shard], total: int, what: str, progress: bool) -> Any:
    """The bar over all rows, of which those that are not pending are done."""
    done = total - sum(len(shard.rows) for shard in pending)
    return tqdm(total=total, initial=done, unit="image", desc=what, disable=not progress)


def check_run(source: Source, on_error: str, **counts: int | None) -> None:
    """Raise `ValueError` for options out of range, a source without rows, or one of several processes."""
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error='{on_error}'; expected 'stop' or 'skip'.")
    check_positive(**counts)
    if len(source) == 0:
        raise ValueError(f"source='{source.name}' has no rows.")
    processes = os.environ.get("WORLD_SIZE") or "1"
    if processes != "1":
        raise ValueError(
            f"WORLD_SIZE={processes} says that several processes were started, as torchrun and accelerate launch do. "
            "One command makes a folder: start it by itself, and --workers N has it use N processes of this machine, "
            "--ray ADDRESS those of a cluster."
        )


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why; the reason names the row and its file."""

    row: int
    reason: str

    @classmethod
    def of(cls, source: Source, row: int, reason: object) -> "BadRow":
        where, text = source.where(row), str(reason)
        return cls(row, text if text.startswith(where) else f"{where}: {text}")


def good_rows(loaded: Iterable[T | BadRow], skipped: list[BadRow] | None) -> list[T]:
    """Those rows that can be used. The others are added to `skipped`; where that is None, they stop the run.

    Raises:
        ValueError: Says what is wrong with the first bad row, and how to leave such rows out.
    """
    good: list[T] = []
    for row in loaded:
        if not isinstance(row, BadRow):
            good.append(row)
        elif skipped is not None:
            skipped.append(row)
        else:
            hint = "" if "--on-error skip" in row.reason else " (--on-error skip leaves such rows out and lists them.)"
            raise ValueError(row.reason + hint)
    return good


def count_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoding_threads(cores: int) -> int:
    """Threads for decoding and cropping, where so many cores are free for them."""
    return min(16, cores)


class Threads(AbstractContextManager["Threads"]):
    """Threads for work that no GPU is needed for, each operation of torch in them on one core.

    Args:
        count: How many; there are as many as there are cores.
        overlap: Whether they work while the models do. On a CPU they had better not: they would take a core away from
            one thread of a model's operation, and its other threads would wait for that one.
    """

    def __init__(self, count: int, overlap: bool) -> None:
        self.overlap = overlap
        threads = torch.get_num_threads()
        all_there = threading.Barrier(count)

        def limit() -> None:
            torch.get_num_threads()  # a thread's first call sets the common number, over any set before
            torch.set_num_threads(1)

        self._pool = ThreadPoolExecutor(count, thread_name_prefix="rows", initializer=limit)
        list(self._pool.map(lambda _: all_there.wait(), range(count)))
        torch.set_num_threads(threads)  # part of the setting is the whole process's

    def map(self, function: Callable[[T], R], items: Iterable[T], most: int) -> Iterator[R]:
        """The results of a function in order, with at most `most` of them waiting to be taken.

        Threads that may overlap never stop; others do a portion of `most` while the models rest.
        """
        iterator = iter(items)
        if not self.overlap:
            while portion := list(itertools.islice(iterator, most)):
                yield from list(self._pool.map(function, portion))
        waiting: deque[Future[R]] = deque()
        for item in iterator:
            waiting.append(self._pool.submit(function, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


class Clock:
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
        iterator, end = iter(items), object()
        while True:
            with self(stage):
                item: Any = next(iterator, end)
            if item is end:
                return
            yield item

    def read(self) -> Counter[str]:
        """The seconds up to now."""
        self._enter(self._stage)
        return self.seconds.copy()

    def _enter(self, stage: str) -> str:
        now = time.perf_counter()
        self.seconds[self._stage] += now - self._since  # type: ignore[assignment]
        left, self._stage, self._since = self._stage, stage, now
        return left
