"""The processes that make one folder together, started by `torchrun` or `accelerate launch`; or one process alone.

They speak through the small key-value store that those launchers provide. There is no process group and no collective
operation: no process waits for another before the end, none of torch's timeouts applies to hours of work, and one that
dies leaves the others with what they have finished.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from transformers.utils import logging

from .shards import is_gone, own_process

logger = logging.get_logger(__name__)

POLL_SECONDS = 0.1
GONE = (
    "What is finished is kept: run the same command again, with any number of processes, and it continues where this "
    "one stopped."
)
_teams = itertools.count()


class Team:
    """One of `size` processes that share work out among themselves; number 0 leads.

    Args:
        rank: This process's number.
        size: How many there are.
        store: What all of them read and write; by default that of a process alone.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank = rank
        self.size = size
        self.errors: dict[int, str] = {}
        self._store = dist.HashStore() if store is None else store

    @classmethod
    def from_environment(cls) -> "Team":
        """The team that RANK and WORLD_SIZE tell of, which the launchers set; a process alone without them.

        Raises:
            OSError: The launcher's store cannot be reached.
        """
        if int(os.environ.get("WORLD_SIZE") or 1) == 1:
            return cls()
        try:
            store, rank, size = next(rendezvous("env://"))
        except (RuntimeError, ValueError) as error:
            raise OSError(
                f"the processes of this run cannot find each other: {error} Start them with torchrun or accelerate "
                "launch; for a process alone, unset WORLD_SIZE."
            ) from error
        # All of them come here equally often, so a script may make several folders one after the other.
        return cls(rank, size, dist.PrefixStore(f"fastgoal-{next(_teams)}", store))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @contextmanager
    def planning(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """For the leader: gives the function that tells the others the plan. They also get to know if it fails."""
        try:
            yield lambda plan: self._set("plan", {"plan": plan})
        except Exception as error:
            with suppress(OSError):
                self._set("plan", {"error": str(error)})
            raise

    def plan(self) -> dict[str, Any]:
        """For the others: the leader's plan. Raises `ValueError` with its reason when there is none."""
        self._wait_for("plan")
        message = self._get("plan")
        if "error" in message:
            raise ValueError(f"the first process stopped: {message['error']}")
        return dict(message["plan"])

    def take(self, items: Sequence[int]) -> Iterator[int]:
        """Items that no other process takes, until none is left or one of the processes has failed."""
        while True:
            with _store_errors():
                if self._store.check(["stop"]):
                    return
                number = self._store.add("taken", 1) - 1
            if number >= len(items):
                return
            yield items[number]

    def count(self, amount: int) -> int:
        """Add to what all processes have counted, and return it."""
        with _store_errors():
            return int(self._store.add("counted", amount))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Do this process's part in the block.

        When one fails, the others finish the item that they are at and take no more. The leader leaves the block last;
        then `errors` has the reason of every process that failed or died.
        """
        self._set(f"process-{self.rank}", own_process())
        try:
            yield
        except Exception as error:
            with suppress(OSError):
                self._set("stop", True)
                self._set(f"over-{self.rank}", {"error": str(error) or type(error).__name__})
                # A launcher ends all processes as soon as one has failed: the others come to an end first.
                self._wait_for_others() if self.leads else self._wait_for("over-all")
            raise
        self._set(f"over-{self.rank}", {})
        if self.leads:
            self._wait_for_others()

    def _wait_for_others(self) -> None:
        waiting = set(range(1, self.size))
        while waiting:
            for rank in sorted(waiting):
                with _store_errors():
                    over = self._store.check([f"over-{rank}"])
                    known = self._store.check([f"process-{rank}"])
                if over:
                    error = self._get(f"over-{rank}").get("error")
                elif known and is_gone(self._get(f"process-{rank}")):
                    error = "it ended before its work was done."
                else:
                    continue
                waiting.remove(rank)
                if error:
                    self.errors[rank] = error
            time.sleep(POLL_SECONDS if waiting else 0)
        self._set("over-all", True)

    def _wait_for(self, key: str) -> None:
        """Wait for the leader to set a key. `OSError` if it is gone."""
        while True:
            with _store_errors():
                if self._store.check([key]):
                    return
                known = self._store.check(["process-0"])
            if known and is_gone(self._get("process-0")):
                raise OSError(f"the first process of this run ended before its work was done. {GONE}")
            time.sleep(POLL_SECONDS)

    def _set(self, key: str, value: Any) -> None:
        with _store_errors():
            self._store.set(key, json.dumps(value))

    def _get(self, key: str) -> Any:
        with _store_errors():
            return json.loads(self._store.get(key))


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"the store that the processes of this run share is gone: {error} {GONE}") from error
