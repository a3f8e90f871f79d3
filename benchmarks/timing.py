"""Timing side by side: several things in interleaved rounds, so that what else a machine does falls on all of them."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, by default the GPU if there is one. A GPU that PyTorch does not see is an error of one line."""

    def device(name: str) -> str:
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise argparse.ArgumentTypeError(f"must be cpu, because PyTorch sees no GPU, got {name}")
        return name

    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device, default=default, help="cpu or cuda (default: cuda if there is a GPU)")


def now(device: str = "cpu") -> np.ndarray:
    """Seconds on the clock and of the processor, when the device is done with what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def timed(run: Callable[[], Any], device: str = "cpu") -> np.ndarray:
    """Seconds of a call, on the clock and of the processor."""
    start = now(device)
    run()
    return now(device) - start


class Rounds:
    """Seconds of several things, round by round; a round gives all of them the same work.

    Attributes:
        seconds: For each thing `(clock, processor)` of every round.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[np.ndarray]] = {}

    def add(self, name: str, seconds: np.ndarray) -> None:
        """Add a round of one thing."""
        self.seconds.setdefault(name, []).append(seconds)

    def median(self, name: str) -> np.ndarray:
        """Median seconds of a thing, `(2,)`."""
        return np.median(self.seconds[name], axis=0)

    def ratios(self, name: str, other: str) -> np.ndarray:
        """Seconds of a thing as a multiple of another's in the same round, `(rounds, 2)`."""
        return np.array(self.seconds[name]) / np.array(self.seconds[other])
