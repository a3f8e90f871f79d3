"""What runs in the processes that Ray starts. Nothing of this package is imported before `make` has looked for it.

The class travels to a worker as its code, not as a name: one without the package can then say so.
"""

import os
import socket
import sys
from contextlib import suppress
from importlib import metadata
from typing import Any


class Worker:
    """Makes shards, one after the other, in a process of its own.

    Args:
        cores: Processor cores that are its own.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._maker: Any = None
        self._at: tuple[int, int] | None = None

    def make(self, shard: Any, job: dict[str, Any]) -> dict[str, Any]:
        """Make one shard and return its record; load the models first, where that has not been done.

        Args:
            shard: An `engine.Shard`, pickled.
            job: The same for all shards: `folder` that the driver works in, `paths` that it imports from,
                `versions` of its packages, and `load_maker` of `engine.Engine.run_shards`, pickled.
        """
        from ray import cloudpickle

        if self._maker is None:
            self._maker = self._load(job)
        shard = cloudpickle.loads(shard)
        self._at = (shard.number, 0)

        def advance(rows: int) -> None:
            self._at = (shard.number, (self._at or (0, 0))[1] + rows)

        rows = self._maker.threads.map(self._maker.load, shard.rows, self._maker.ahead)
        return dict(self._maker.make(shard, rows, advance))

    def at(self) -> tuple[int, int] | None:
        """Number of the shard in the making and its rows that are done; None before the first."""
        return self._at

    def _load(self, job: dict[str, Any]) -> Any:
        from ray import cloudpickle

        host = socket.gethostname()
        with suppress(OSError):  # where there is no such folder, whole paths may do all the same
            os.chdir(job["folder"])
        sys.path += [path for path in job["paths"] if path not in sys.path]
        for name, wanted in job["versions"].items():
            try:
                found = metadata.version(name)
            except metadata.PackageNotFoundError:
                raise ImportError(
                    f"the worker on '{host}' has no package {name}; all machines need the same packages: install "
                    f"{name} {wanted} there."
                ) from None
            # The part after "+" says for which accelerator it was built.
            if found.partition("+")[0] != wanted.partition("+")[0]:
                raise ValueError(
                    f"the worker on '{host}' has {name} {found}, this process {name} {wanted}; results of several "
                    "versions are not mixed. Install the same one everywhere."
                )
        try:
            load_maker = cloudpickle.loads(job["load_maker"])
        except Exception as error:
            raise ValueError(
                f"the worker on '{host}' cannot open the data: {error}. All machines need the same packages, and the "
                "same folders under the same paths."
            ) from error
        return load_maker(self._cores)
