"""The worker processes of data loaders: they end with the training, and not at the signals that stop it."""

import os
import signal
import threading
from collections.abc import Iterable
from typing import Any

from .streams import StreamBatches


def loader_of_batches(loader: Any) -> Any:
    """Return the torch data loader that makes the batches, inside one of accelerate or of a stream."""
    inner = getattr(loader, "base_dataloader", loader)
    return inner.dataset.loader if isinstance(inner.dataset, StreamBatches) else inner


def start_workers(loader: Any) -> Any:
    """Return a data loader with a `WorkerStart` for its workers."""
    inner = loader_of_batches(loader)
    inner.worker_init_fn = WorkerStart(inner.worker_init_fn)
    return loader


def end_workers(loaders: Iterable[Any]) -> None:
    """End the workers that data loaders keep between epochs.

    Otherwise the garbage collector does. It closes the queues of the workers first, so they do not learn that they
    should end, and torch waits five seconds for each of them.
    """
    for loader in map(loader_of_batches, loaders):
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()
            loader._iterator = None


class WorkerStart:
    """Let a worker of a data loader ignore the signals that stop a training, for `worker_init_fn`.

    Launchers and terminals send them to all processes, and a training cannot finish its step without its workers. A
    worker still ends when its own training ends it.

    Args:
        then: The `worker_init_fn` to call afterwards.
    """

    def __init__(self, then: Any = None):
        self.then = then

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):  # not on macOS
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        if self.then is not None:
            self.then(worker)


def _end_with_parent(parent: int) -> None:
    """Exit at a SIGTERM from the process that started this one, as torch's own handler in workers does."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
