"""Run the shards of a dataset: one after the other in this process, or on several workers with Ray (docs.ray.io).

A shard depends on its own rows only, so it does not matter which process makes it. Ray starts the workers on machines
with free cores and GPUs, and reports when one dies. This process assigns shards, counts, and holds the output folder.
"""

import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from fastgoal.processing.checkpoints.devices import choose_device
from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.sources import Source

from . import worker
from .shards import PACKAGES, ParquetShards, RunFolder, check_run, refuse_skipped

logger = transformers_logging.get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# How often a shard is retried after its worker died.
RETRIES = 3
# Only records and lists of rows travel between processes.
OBJECT_STORE_BYTES = 256 * 2**20
SECONDS_TO_ANSWER = 30
SECONDS_TO_START = 60
AUTO = "auto"


@dataclass(frozen=True)
class Shard:
    """A part of the work: its number, and the numbers of its rows in the source."""

    number: int
    rows: Sequence[int]


class ShardMaker(Protocol):
    """The interface of objects that make shards with loaded models.

    Attributes:
        threads: The threads that `load` runs in.
        ahead: How many loaded rows may wait.
    """

    threads: "Threads"
    ahead: int

    def load(self, row: int) -> Any:
        """Read one row of the source; return a `BadRow` for a row that cannot be used."""

    def make(self, shard: Shard, rows: Iterator[Any], advance: Callable[[int], Any]) -> dict[str, Any]:
        """Write the shard of the loaded rows, report the number of finished rows, and return the shard's record."""
        ...


class Engine(AbstractContextManager["Engine"]):
    """Run shards one after the other in this process."""

    def choose_device(self, device: str | None) -> str:
        """Return the device of the models; raise `ValueError` for one that cannot be used."""
        return choose_device(device)

    def run_shards(
        self, pending: Sequence[Shard], load_maker: Callable[[int], ShardMaker], total: int, title: str, progress: bool
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Make shards, and yield number and record of each when it is finished.

        Args:
            pending: The shards to make. Rows of the next shard are read while the last one ends.
            load_maker: Loads the models, given the number of cores to use; called only if there is work.
            total: Rows of all shards, including those that are finished already.
            title: Title of the progress bar.
            progress: Show the progress bar.
        """
        if not pending:
            return
        maker = load_maker(count_cores())
        with maker.threads, progress_bar(pending, total, title, progress) as bar:
            rows = chain.from_iterable(shard.rows for shard in pending)
            loaded = maker.threads.map(maker.load, rows, maker.ahead)
            for shard in pending:
                yield shard.number, maker.make(shard, islice(loaded, len(shard.rows)), bar.update)

    def __exit__(self, *_: object) -> None:
        pass


def open_engine(workers: int | None = None, ray: str | None = None) -> Engine:
    """Return the engine for these options, for a `with` block, at the end of which all its processes end.

    Its `choose_device`, called before any shard is made, decides whether each worker gets a GPU.

    Args:
        workers: Number of worker processes. By default this process does the work, or in a cluster as many workers as
            it has GPUs, or machines if it has none.
        ray: Address of a running Ray cluster, `HOST:PORT`, or `auto` for the one that this machine belongs to.

    Raises:
        ValueError: `workers` is not positive.
        ImportError: Ray is needed and not installed.
    """
    check_positive(workers=workers)
    return Engine() if workers is None and ray is None else RayEngine(workers, ray)


@dataclass
class _Slot:
    """A worker, its shard, a pending request for its progress, and the last answer."""

    actor: Any
    shard: Shard
    request: Any = None
    rows_done: int = 0


class RayEngine(Engine):
    """Hand shards out to workers; see `open_engine`. Ray is started, or its cluster joined, on first use."""

    def __init__(self, workers: int | None, address: str | None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if address is None:  # Ray asks for no password: only this machine may reach what is started here
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                "`workers` and `ray` need the package ray. Install it with: pip install 'fastgoal[ray]'"
            ) from error
        self._ray: Any = ray
        self._workers, self._address = workers, address
        self._is_ours = False  # whether this engine started Ray, or joined the cluster
        self._on_gpus = False

    def choose_device(self, device: str | None) -> str:
        """Return `cuda` where each worker gets a GPU, else `cpu`."""
        if device not in (None, AUTO, "cpu", "cuda"):
            raise ValueError(f"`device` must be auto, cuda (a GPU per worker) or cpu with workers, got {device!r}.")
        if self._address is None:
            chosen = choose_device(device)
            if chosen not in ("cpu", "cuda"):
                raise ValueError(f"`device={chosen}` does not support workers. Use `device=cpu`, or no `workers`.")
        else:
            self._join()
            gpus = self._ray.cluster_resources().get("GPU", 0)
            if device == "cuda" and not gpus:
                raise ValueError("`device=cuda`: the Ray cluster has no GPU. Use cpu or auto.")
            chosen = "cuda" if gpus and device != "cpu" else "cpu"
        self._on_gpus = chosen == "cuda"
        return chosen

    def run_shards(
        self, pending: Sequence[Shard], load_maker: Callable[[int], ShardMaker], total: int, title: str, progress: bool
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Make shards as `Engine.run_shards` does, in the order in which they are finished.

        An error of a shard ends the run. A worker that dies is replaced, and its shard made again.

        Raises:
            ChildProcessError: The workers of one shard died `RETRIES + 1` times, or Ray itself died on this machine.
            ValueError: A worker has other versions of packages, or does not see the folders.
        """
        if not pending:
            return
        self._join()
        ray, cloudpickle = self._ray, self._ray.cloudpickle
        from ray.exceptions import RayError, RayTaskError

        job = ray.put(
            {
                "folder": os.getcwd(),
                "paths": sys.path,
                "versions": {name: version(name) for name in PACKAGES},
                "load_maker": cloudpickle.dumps(load_maker),
            }
        )
        queue, deaths, finished = deque(pending), Counter[int](), 0
        start_worker = self._worker_starter()
        running: dict[Any, _Slot] = {}

        def hand_out(actor: Any, shard: Shard) -> None:
            running[actor.make.remote(cloudpickle.dumps(shard), job)] = _Slot(actor, shard)

        with progress_bar(pending, total, title, progress) as bar:
            before, since, has_begun = bar.n, time.monotonic(), False
            for _ in range(min(self._count(), len(queue))):
                hand_out(start_worker(), queue.popleft())
            while running:
                for call in ray.wait(list(running), timeout=0.5)[0]:
                    slot = running.pop(call)
                    try:
                        record = ray.get(call)
                    except RayTaskError as error:
                        raise error.cause from error
                    except RayError as error:
                        self._check_machine(error)
                        deaths[slot.shard.number] += 1
                        self._report_death(slot.shard, deaths[slot.shard.number], error)
                        ray.kill(slot.actor)
                        hand_out(start_worker(), slot.shard)
                        continue
                    finished += len(slot.shard.rows)
                    yield slot.shard.number, record
                    if queue:
                        hand_out(slot.actor, queue.popleft())
                    else:
                        ray.kill(slot.actor)  # frees its cores for others in the cluster
                slots = list(running.values())
                answers = [self._ask(slot) for slot in slots]
                has_begun = has_begun or any(answers) or finished > 0
                if not has_begun and time.monotonic() - since > SECONDS_TO_START:
                    has_begun = True
                    logger.warning(f"No worker has started yet. Free in the cluster: {ray.available_resources()}.")
                bar.update(before + finished + sum(slot.rows_done for slot in slots) - bar.n)

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self._ray.shutdown()

    def _join(self) -> None:
        """Start Ray on this machine, or join the cluster, once."""
        if self._ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            cores = max(count_cores(), self._workers or 1)
            options |= {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
            self._ray.init("local", num_cpus=cores, **options)
        else:
            check_cluster(self._address)
            try:
                self._ray.init(self._address, **options)
            except (RuntimeError, ConnectionError) as error:
                raise ValueError(f"`ray={self._address}`: {' '.join(str(error).split())}") from error
        self._is_ours = True

    def _nodes(self) -> list[tuple[int, int]]:
        """Return the cores and GPUs of each machine."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in alive]

    def _count(self) -> int:
        """Return the number of workers."""
        gpus = sum(gpu for _, gpu in self._nodes()) if self._on_gpus else 0
        count = self._workers or gpus or len(self._nodes())
        if self._address is None and self._on_gpus and count > gpus:
            raise ValueError(
                f"`workers` must be at most the number of GPUs, {gpus}, got {count}: each worker needs its own. Use "
                "fewer, or `device=cpu`."
            )
        return count

    def _worker_starter(self) -> Callable[[], Any]:
        """Return a function that starts one worker, with its share of the cores and a GPU where workers have one."""
        cores = share_of_cores(self._nodes(), self._count(), self._on_gpus)
        self._ray.cloudpickle.register_pickle_by_value(worker)
        actor_class = self._ray.remote(
            num_cpus=cores, num_gpus=int(self._on_gpus), concurrency_groups={"ask": 1}, max_restarts=0
        )(worker.Worker)
        return lambda: actor_class.remote(cores)

    def _ask(self, slot: _Slot) -> bool:
        """Read a worker's answer about its progress, and ask again; return whether it has started any shard."""
        from ray.exceptions import RayError

        if slot.request is None:
            slot.request = slot.actor.at.options(concurrency_group="ask").remote()
        if not self._ray.wait([slot.request], timeout=0)[0]:
            return False
        try:
            at = self._ray.get(slot.request)
        except RayError:  # the worker died; the call for its shard reports it
            return False
        slot.request = None
        if at is not None and at[0] == slot.shard.number:
            slot.rows_done = at[1]
        return at is not None

    def _check_machine(self, error: Exception) -> None:
        """Raise `ChildProcessError` if Ray itself died on this machine: its next call would end this process."""
        own = self._ray.get_runtime_context().get_node_id()
        if not any(node["NodeID"] == own and node["Alive"] for node in self._ray.nodes()):
            raise ChildProcessError(
                f"Ray ended on this machine: {_last_line(error)} The cause is often too little memory. Finished shards "
                "are kept: the same call continues."
            ) from error

    def _report_death(self, shard: Shard, times: int, error: Exception) -> None:
        label = f"shard {shard.number} (rows {shard.rows[0]} to {shard.rows[-1]} of the source)"
        reason = _last_line(error)
        if times > RETRIES:
            raise ChildProcessError(
                f"{label}: {times} workers died while they made it. The last error: {reason} The cause is often too "
                "little memory: try fewer `workers` or a smaller `batch_size`. To find an image that crashes a "
                "library, use `workers=1`. Finished shards are kept: the same call continues."
            )
        logger.warning(f"A worker died in {label}, which is made again ({times} of {RETRIES} times): {reason}")


def _last_line(error: Exception) -> str:
    return textwrap.shorten(str(error).strip().splitlines()[-1], 300)


def build_shards(
    source: Source,
    output: str | os.PathLike[str],
    manifest_name: str,
    command: str,
    settings: Any,
    load_maker: Callable[[ParquetShards, int], ShardMaker],
    summarize: Callable[[list[dict[str, Any]]], dict[str, Any]],
    on_error: str = "stop",
    batch_size: int = 64,
    num_workers: int | None = None,
    progress: bool = True,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Write the missing shards of a dataset of parquet files, and return its summary and `shards_made`.

    Args:
        source: The rows.
        output: Folder of the dataset, new or to be continued.
        manifest_name: Name of the file with the settings and the summary.
        command: The command that writes such folders, for messages, such as `fastgoal pairs`.
        settings: A dataclass of all that the rows depend on, with `limit` and `shard_size`.
        load_maker: Loads the models and returns the maker, given the shards and a number of threads; called only if
            there is work.
        summarize: Returns the summary of the records of all shards.
        on_error: At a row that cannot be used: `stop`, or `skip` it and list it.
        batch_size: Checked to be positive, like `num_workers`.
        num_workers: Number of threads; by default one per core, at most 16.
        progress: Show the progress bar.
        engine: Runs the shards, by default in this process.

    Raises:
        ValueError: An argument is wrong, no row can be used, or the folder holds other files, data or settings.
    """
    check_run(source, on_error, settings.limit, batch_size=batch_size, num_workers=num_workers)
    rows = range(len(source))[: settings.limit]
    starts = range(0, len(rows), settings.shard_size)
    shards = ParquetShards(Path(output), len(starts))
    folder = RunFolder(Path(output), manifest_name, command, ["data/*.parquet"])
    with folder.open(source, settings) as manifest:
        records = {i: record for i in range(shards.count) if (record := shards.read_record(i)) is not None}
        if on_error == "stop":
            refuse_skipped([entry for record in records.values() for entry in record["skipped"]])
        parts = [Shard(i, rows[start : start + settings.shard_size]) for i, start in enumerate(starts)]
        pending = [part for part in parts if part.number not in records]
        if not pending and "summary" in manifest:
            return {**manifest["summary"], "shards_made": 0}
        run = folder.read_run()

        def load(cores: int) -> ShardMaker:
            folder.check_shared(run)
            return load_maker(shards, num_workers or decoding_threads(cores))

        title = command.rpartition(" ")[2]
        records |= (engine or Engine()).run_shards(pending, load, len(rows), title, progress)
        ordered = [records[i] for i in range(shards.count)]
        if not any(record["rows"] for record in ordered):
            first = ordered[0]["skipped"][0]["reason"]
            raise ValueError(f"{source.name}: none of the {len(rows)} rows can be used. The first: {first}")
        summary = summarize(ordered)
        folder.finish(manifest, summary)
    return {**summary, "shards_made": len(pending)}


def progress_bar(pending: Sequence[Shard], total: int, title: str, progress: bool) -> Any:
    """Return the progress bar over all rows; those of finished shards count as done."""
    done = total - sum(len(shard.rows) for shard in pending)
    return tqdm(total=total, initial=done, unit="image", desc=title, disable=not progress)


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoding_threads(cores: int) -> int:
    """Return the default number of threads for decoding and cropping on this number of cores."""
    return min(16, cores)


def share_of_cores(nodes: Sequence[tuple[int, int]], count: int, on_gpus: bool) -> int:
    """Return the most cores that each of `count` workers can have on machines with (cores, GPUs); at least 1."""

    def fit(cores: int) -> int:
        return sum(min(gpus, all_cores // cores) if on_gpus else all_cores // cores for all_cores, gpus in nodes)

    most = max((cores for cores, _ in nodes), default=1)
    return next((cores for cores in range(most, 0, -1) if fit(cores) >= count), 1)


def check_cluster(address: str) -> None:
    """Raise `ValueError` where no Ray cluster answers. Ray itself would try for minutes, and then end the process."""
    way_out = "Start one with `ray start --head`, or use `workers` for processes on this machine."
    resolved = os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address
    if "://" in resolved:
        return
    if resolved != AUTO:
        host, _, port = resolved.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"`ray` must be HOST:PORT, such as 10.0.0.1:6379, or auto, got {resolved!r}.")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
        except (OSError, OverflowError) as error:
            raise ValueError(f"`ray={resolved}`: no Ray cluster answers there ({error}). {way_out}") from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    command += ["--address", resolved] if resolved != AUTO else []
    try:
        check = subprocess.run(command, capture_output=True, timeout=SECONDS_TO_ANSWER)
    except subprocess.TimeoutExpired:
        check = None
    if check is not None and b"AuthenticationError" in check.stderr:
        raise ValueError(
            f"`ray={address}`: the Ray cluster asks for a token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the "
            "token of the cluster (`ray get-auth-token` there) unless ~/.ray/auth_token has it."
        )
    if check is None or check.returncode != 0:
        raise ValueError(f"`ray={address}`: no Ray cluster answers. {way_out}")


class Threads(AbstractContextManager["Threads"]):
    """Threads for work that needs no GPU. Each torch operation in them uses one core.

    Args:
        count: Number of threads; all are started at once.
        overlap: Whether they work while the models run. On a CPU they should not: they would take a core from one
            thread of a model's operation, and its other threads would wait for that one.
    """

    def __init__(self, count: int, overlap: bool) -> None:
        self.overlap = overlap
        threads = torch.get_num_threads()
        all_there = threading.Barrier(count)

        def limit() -> None:
            torch.get_num_threads()  # the first call in a thread overwrites an earlier setting
            torch.set_num_threads(1)

        self._pool = ThreadPoolExecutor(count, thread_name_prefix="rows", initializer=limit)
        list(self._pool.map(lambda _: all_there.wait(), range(count)))
        torch.set_num_threads(threads)  # a part of the setting belongs to the whole process

    def map(self, function: Callable[[T], R], items: Iterable[T], most: int) -> Iterator[R]:
        """Yield the results of a function in order, with at most `most` of them waiting.

        Threads that overlap with the models never stop; others work on `most` items at a time while the models rest.
        """
        iterator = iter(items)
        if not self.overlap:
            while portion := list(islice(iterator, most)):
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
