"""What a program shows on a terminal, whatever its data hold, and how it ends.

Imports nothing heavy: every command of `fastgoal` runs in it, and so does the run script.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# What moves the cursor, rings, or turns the direction of what follows is not shown raw, but for tabs, line ends,
# colors and the step up of progress bars.
_CONTROL = re.compile(
    r"\x1b\[[0-9;]*m|\x1b\[A|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


class Terminal:
    """A stream that shows any text: control characters as `\\x1b`, and likewise what its encoding has not.

    Progress bars go back to the start of their line with a carriage return at an end of what they write.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        inner = text.strip("\r")
        before, _, after = text.partition(inner) if inner else (text, "", "")
        shown = before + _CONTROL.sub(_spelled, inner) + after
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _spelled(found: re.Match[str]) -> str:
    text = found[0]
    if len(text) > 1:
        return text
    return f"\\x{ord(text):02x}" if ord(text) < 256 else f"\\u{ord(text):04x}"


@contextmanager
def any_text() -> Iterator[None]:
    """Let `print`, progress bars and warnings of the block show any text on the standard streams."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream if isinstance(stream, Terminal) else Terminal(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def run_cleanly(
    name: Callable[[], str], work: Callable[[], int], show_traceback: Callable[[], bool] = lambda: False
) -> int:
    """Run a program; what goes wrong with its input is a line on stderr.

    Args:
        name: Gives the name of the program, which begins the line.
        work: Returns the exit code.
        show_traceback: Whether errors shall rather be raised; asked when there is one.

    Returns:
        The exit code: that of `work`, 2 for wrong arguments or input, 130 when interrupted. `--help` leaves through
        `SystemExit`, as argparse does.
    """
    with any_text():
        try:
            code = work()
            sys.stdout.flush()
            return code
        except SystemExit as stop:
            if stop.code == 2:  # the parser has said what is wrong
                return 2
            raise
        except KeyboardInterrupt:
            sys.stderr.write(f"{name()}: interrupted\n")
            return 130
        except BrokenPipeError:
            # The reader of our output (`| head`) has gone: leave quietly, also when Python flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            expected = isinstance(error, ValueError | OSError | ImportError | MemoryError)
            of_wandb = type(error).__module__.startswith("wandb.")  # not logged in, for example
            out_of_memory = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
            if show_traceback() or not (expected or out_of_memory or of_wandb):
                raise
            reason = str(error)
            if out_of_memory:
                said = f" ({' '.join(reason.split()[:30])})" if reason else ""
                reason = f"the memory is too small for this{said}. Take smaller batches."
            if of_wandb:
                reason = f"wandb: {reason} WANDB_MODE=offline needs no account, --report_to none no wandb."
            sys.stderr.write(f"{name()}: error: {reason}\n")
            return 2
