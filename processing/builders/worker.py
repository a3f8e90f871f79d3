"""The class that runs in the processes that Ray starts.

The class travels to a worker as code, and imports nothing of this package before `make` has checked that the package is
installed. So a worker without it can report that.
"""

import os
import socket
import sys
from contextlib import suppress
from importlib import metadata
from typing import Any


class Worker:
    """Make shards, one after the other, in a process of its own.

    Args:
        cores: Number of cores that the process may use.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._maker: Any = None
        self._at: tuple[int, int] | None = None

    def make(self, shard: Any, job: dict[str, Any]) -> dict[str, Any]:
        """Make one shard and return its record; the first call loads the models.

        Args:
            shard: An `engine.Shard`, pickled.
            job: The same for all shards: the `folder` that the driver works in, the `paths` that it imports from, the
                `versions` of its packages, and the pickled `load_maker` of `engine.Engine.run_shards`.
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
        """Return the number of the current shard and of its finished rows; None before the first shard."""
        return self._at

    def _load(self, job: dict[str, Any]) -> Any:
        from ray import cloudpickle

        host = socket.gethostname()
        with suppress(OSError):  # absolute paths work without this folder
            os.chdir(job["folder"])
        sys.path += [path for path in job["paths"] if path not in sys.path]
        for name, expected in job["versions"].items():
            try:
                installed = metadata.version(name)
            except metadata.PackageNotFoundError:
                raise ImportError(
                    f"The worker on '{host}' does not have the package {name}. All machines need the same packages: "
                    f"install {name} {expected} there."
                ) from None
            # The part after "+" names the accelerator of a build.
            if installed.partition("+")[0] != expected.partition("+")[0]:
                raise ValueError(
                    f"The worker on '{host}' has {name} {installed}, and this process has {name} {expected}. Results "
                    "of different versions are not mixed: install the same version everywhere."
                )
        try:
            load_maker = cloudpickle.loads(job["load_maker"])
        except Exception as error:
            raise ValueError(
                f"The worker on '{host}' cannot open the data: {error}. All machines need the same packages, and the "
                "same folders under the same paths."
            ) from error
        return load_maker(self._cores)
