"""Several processes or machines that make shards, by Ray (https://docs.ray.io).

Ray starts the workers, places them where there are processor cores and GPUs, and notices when one dies. This process
plans, hands out one shard after the other, counts, and writes the manifest; it alone holds the output folder.
"""

import logging
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from transformers.utils import logging as transformers_logging

from fastgoal.processing.checkpoints.devices import choose_device
from fastgoal.processing.checks import check_positive

from . import worker
from .engine import Engine, Shard, ShardMaker, count_cores, progress_bar
from .shards import PACKAGES

logger = transformers_logging.get_logger(__name__)

# How often a shard is made again whose worker died.
REPLACEMENTS = 3
# What travels between processes is small: records and the list of rows.
OBJECT_STORE_BYTES = 256 * 2**20
SECONDS_TO_ANSWER = 30
SECONDS_TO_START = 60
AUTO = "auto"


def open_engine(workers: int | None = None, address: str | None = None) -> Engine:
    """Who makes shards; to be used in a `with` block, at whose end all that was started ends.

    Its `choose_device`, asked before any shard is made, decides whether each worker gets a GPU.

    Args:
        workers: So many processes; on this machine, or in the cluster. None: this process, or as many as the cluster
            has GPUs, or machines if it has none.
        address: Of a running Ray cluster, `HOST:PORT`, or `auto` for the one that this machine belongs to.

    Raises:
        ValueError: `workers` is below 1.
        ImportError: Ray is asked for and is not there.
    """
    check_positive(workers=workers)
    return Engine() if workers is None and address is None else RayEngine(workers, address)


@dataclass
class _Slot:
    """A worker, what it does, and how far it said it was."""

    actor: Any
    shard: Shard
    asked: Any = None
    done: int = 0


class RayEngine(Engine):
    """Hands shards out to workers, as `open_engine` describes. Ray is started, or joined, when it is needed first."""

    def __init__(self, workers: int | None, address: str | None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if address is None:  # Ray asks nobody for a password: only this machine may reach what is started here
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                "--workers and --ray need the package ray; install it with: pip install 'fastgoal[ray]'"
            ) from error
        self._ray: Any = ray
        self._workers, self._address = workers, address
        self._ours = False  # whether Ray was started, or joined, by this engine
        self._on_gpus = False

    def choose_device(self, asked: str) -> str:
        """`cuda` where workers get a GPU each, else `cpu`."""
        if asked not in (AUTO, "cpu", "cuda"):
            raise ValueError(f"device='{asked}' with several workers; expected auto, cuda (a GPU each) or cpu.")
        if self._address is None:
            device = choose_device(asked)
            if device not in ("cpu", "cuda"):
                raise ValueError(f"workers on '{device}' are not supported; expected --device cpu, or no --workers.")
        else:
            self._join()
            gpus = self._ray.cluster_resources().get("GPU", 0)
            if asked == "cuda" and not gpus:
                raise ValueError("device='cuda': the Ray cluster has no GPU. Use --device cpu or auto.")
            device = "cuda" if gpus and asked != "cpu" else "cpu"
        self._on_gpus = device == "cuda"
        return device

    def run_shards(
        self, pending: Sequence[Shard], load_maker: Callable[[int], ShardMaker], total: int, what: str, progress: bool
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """As `Engine.run_shards`; shards come in the order in which they are finished.

        An error of a shard ends the run. A worker that dies is replaced and its shard made again.

        Raises:
            ChildProcessError: The workers of one shard died `REPLACEMENTS + 1` times.
            ValueError: A worker has other packages, or does not see the folders.
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

        with progress_bar(pending, total, what, progress) as bar:
            before, since, waited = bar.n, time.monotonic(), False
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
                        ray.kill(slot.actor)  # whoever waits in the cluster for its cores gets them
                slots = list(running.values())
                begun = [self._ask(slot) for slot in slots]
                waited = waited or any(begun) or finished > 0
                if not waited and time.monotonic() - since > SECONDS_TO_START:
                    waited = True
                    logger.warning(
                        f"No worker has begun yet; the cluster has {self._ray.available_resources()} to give."
                    )
                bar.update(before + finished + sum(slot.done for slot in slots) - bar.n)

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._ray.shutdown()

    def _join(self) -> None:
        """Start Ray on this machine, or join the cluster; once."""
        if self._ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            cores = max(count_cores(), self._workers or 1)
            self._ray.init(
                "local",
                num_cpus=cores,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **options,
            )
        else:
            check_cluster(self._address)
            try:
                self._ray.init(self._address, **options)
            except (RuntimeError, ConnectionError) as error:
                raise ValueError(f"ray='{self._address}': {' '.join(str(error).split())}") from error
        self._ours = True

    def _nodes(self) -> list[tuple[int, int]]:
        """Processor cores and GPUs of each machine."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [(int(found.get("CPU", 0)), int(found.get("GPU", 0))) for found in alive]

    def _count(self) -> int:
        """How many workers there shall be."""
        gpus = sum(gpu for _, gpu in self._nodes()) if self._on_gpus else 0
        count = self._workers or gpus or len(self._nodes())
        if self._address is None and self._on_gpus and count > gpus:
            raise ValueError(
                f"--workers {count}, but there {'is one GPU' if gpus == 1 else f'are {gpus} GPUs'} here: each worker "
                "needs its own. Ask for fewer, or for --device cpu."
            )
        return count

    def _worker_starter(self) -> Callable[[], Any]:
        """Starts one worker when called, with its share of cores and, where asked for, a GPU."""
        cores = share_of_cores(self._nodes(), self._count(), self._on_gpus)
        self._ray.cloudpickle.register_pickle_by_value(worker)
        kind = self._ray.remote(
            num_cpus=cores, num_gpus=int(self._on_gpus), concurrency_groups={"ask": 1}, max_restarts=0
        )(worker.Worker)
        return lambda: kind.remote(cores)

    def _ask(self, slot: _Slot) -> bool:
        """Take the worker's last answer about how far it is, and ask again. Says whether it has begun any shard."""
        from ray.exceptions import RayError

        if slot.asked is None:
            slot.asked = slot.actor.at.options(concurrency_group="ask").remote()
        if not self._ray.wait([slot.asked], timeout=0)[0]:
            return False
        try:
            at = self._ray.get(slot.asked)
        except RayError:  # it died, which its shard says as well
            return False
        slot.asked = None
        if at is not None and at[0] == slot.shard.number:
            slot.done = at[1]
        return at is not None

    def _report_death(self, shard: Shard, times: int, error: Exception) -> None:
        where = f"shard {shard.number} (rows {shard.rows[0]} to {shard.rows[-1]} of the source)"
        reason = textwrap.shorten(str(error).strip().splitlines()[-1], 300)
        if times > REPLACEMENTS:
            raise ChildProcessError(
                f"{where}: {times} workers died over it, the last one so: {reason} Often it is memory: try fewer "
                "--workers or a smaller --batch-size; a picture that kills a library can be found with --workers 1. "
                "What is finished is kept: the same command continues."
            )
        logger.warning(f"A worker died at {where}, which is made again ({times} of {REPLACEMENTS}): {reason}")


def share_of_cores(nodes: Sequence[tuple[int, int]], count: int, on_gpus: bool) -> int:
    """The most processor cores that each of `count` workers can have, on machines with (cores, GPUs); at least 1."""

    def fit(cores: int) -> int:
        return sum(min(gpus, all_cores // cores) if on_gpus else all_cores // cores for all_cores, gpus in nodes)

    most = max((cores for cores, _ in nodes), default=1)
    return next((cores for cores in range(most, 0, -1) if fit(cores) >= count), 1)


def check_cluster(address: str) -> None:
    """Raise `ValueError` where no Ray cluster answers; Ray itself would try for minutes and then end the process."""
    remedy = "Start one with `ray start --head`, or use --workers N for processes of this machine."
    asked = os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address
    if asked != AUTO and "://" not in asked:
        host, _, port = asked.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"ray='{asked}'; expected HOST:PORT, such as 10.0.0.1:6379, or auto.")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
        except (OSError, OverflowError) as error:
            raise ValueError(f"ray='{asked}': no Ray cluster answers there ({error}). {remedy}") from None
    if "://" in asked:
        return
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "health-check",
        *(["--address", asked] if asked != AUTO else []),
    ]
    try:
        healthy = subprocess.run(command, capture_output=True, timeout=SECONDS_TO_ANSWER).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise ValueError(f"ray='{address}': no Ray cluster answers{'' if asked == AUTO else ' there'}. {remedy}")
