"""Show any text safely on a terminal, and end a program with an exit code and one line instead of a traceback.

This module imports nothing heavy: every `fastgoal` command and the run script use it.
"""

import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .parser import Parser

# Control characters that move the cursor, ring the bell or change the writing direction. Tabs, newlines, colors and
# the cursor-up code of progress bars are not among them.
_CONTROL = re.compile(
    r"\x1b\[[0-9;]*m|\x1b\[A|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


PEER_ENDED = 1  # exit code of a process that stopped because another process of the same training did


class Terminal:
    """A stream that writes control characters, and characters that its encoding does not have, as `\\x1b`.

    Carriage returns at the start or end of a text are kept, because progress bars use them.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        inner = text.strip("\r")
        before, _, after = text.partition(inner) if inner else (text, "", "")
        shown = before + _CONTROL.sub(_escape, inner) + after
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _escape(match: re.Match[str]) -> str:
    text = match[0]
    if len(text) > 1:
        return text
    return f"\\x{ord(text):02x}" if ord(text) < 256 else f"\\u{ord(text):04x}"


@contextmanager
def any_text() -> Iterator[None]:
    """Let `print`, progress bars and warnings inside the block show any text on the standard streams."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream if isinstance(stream, Terminal) else Terminal(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def quiet_libraries(show_downloads: bool = True) -> None:
    """Switch off the libraries' progress bars for every model and dataset, and a warning about their own code.

    Args:
        show_downloads: Keep the bars of downloads from the Hub.
    """
    import datasets
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    # peft 0.21 asks transformers for it; a user can do nothing about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    show_downloads = show_downloads and not are_progress_bars_disabled()
    logging.disable_progress_bar()  # those of the Hub too
    datasets.disable_progress_bars()
    if show_downloads:
        enable_progress_bars()


def is_peer_lost(error: BaseException) -> bool:
    """Return whether an error says that another process of a distributed training ended."""
    is_distributed = os.environ.get("WORLD_SIZE", "1") != "1"
    return is_distributed and isinstance(error, RuntimeError) and bool(re.search(r"\bgloo\b|NCCL|TCPStore", str(error)))


def run_cleanly(
    parser: Callable[[], Parser], work: Callable[[], int], show_traceback: Callable[[], bool] = lambda: False
) -> int:
    """Run a program and print an expected error as one line on stderr.

    Args:
        parser: Returns the parser of the running command. The line starts with its name, and parameters of Python
            functions in the message become its flags.
        work: Does the work and returns the exit code.
        show_traceback: Returns whether to raise errors instead. It is called only when there is an error.

    Returns:
        The exit code: that of `work`, 2 for invalid arguments or input, 130 after an interrupt, 143 if a training was
        stopped by SIGTERM. `--help` raises `SystemExit`, as in argparse.
    """
    with any_text():
        try:
            code = work()
            sys.stdout.flush()
            return code
        except SystemExit as stop:
            if stop.code == 2:  # the parser has printed the error
                return 2
            raise
        except KeyboardInterrupt as stop:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                sys.stderr.write(f"{parser().prog}: interrupted{f'. {stop}' if str(stop) else ''}\n")
            return 128 + getattr(stop, "signum", signal.SIGINT)
        except BrokenPipeError:
            # The reader of our output (`| head`) has ended. Exit quietly, also when Python flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            expected = isinstance(error, ValueError | OSError | ImportError | MemoryError)
            of_wandb = type(error).__module__.startswith("wandb.")  # not logged in, for example
            out_of_memory = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
            if is_peer_lost(error):
                time.sleep(1)
                sys.stderr.write(f"{parser().prog}: error: another process of this training ended first.\n")
                return PEER_ENDED
            if show_traceback() or not (expected or out_of_memory or of_wandb):
                raise
            reason = str(error)
            if out_of_memory:
                details = f" ({' '.join(reason.split()[:30])})" if reason else ""
                reason = f"out of memory: reduce the batch size{details}."
            if of_wandb:
                reason = f"wandb: {reason} Set WANDB_MODE=offline to log without an account, or `report_to=none`."
            if os.environ.get("LOCAL_RANK", "0") != "0":
                time.sleep(1)  # if all processes have this error, the first one reports it, and then this one is ended
            sys.stderr.write(f"{parser().prog}: error: {parser().with_flags(reason)}\n")
            return 2
