"""Run a function in two processes that train together."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def in_two_processes(function: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
    """Call `function(*arguments)` in two processes of one group, and return what each returns."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_work, (port, folder, function, arguments), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def _work(rank: int, port: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    torch.save(function(*arguments), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
