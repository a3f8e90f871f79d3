"""Runs a case in a process of its own, forked from one that has imported everything, and says what became of it.

The child may not reach the network nor read standard input, and is ended after a time and at a size. Beside its folder
lie a private picture and a private text: what of them turns up in a file that it wrote, or on the console, is a leak.
"""

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fastgoal.quickstart.tour import BASE
from tests.squares import rows_of_squares, write_pairs

SECONDS = 60.0
MEMORY = 6 * 2**30  # bytes of addresses above the parent's
RESULTS = ("clear", "fine", "traceback", "hang", "silent")
PRIVATE = "a private text of 7391 words"
LONGEST_LINE = 1500


@dataclass(frozen=True)
class Kit:
    """What cases are made of: made once, copied by those that change it."""

    folder: Path
    clip: Path
    pairs: Path
    picture: Path

    @classmethod
    def make(cls, folder: Path) -> "Kit":
        rows = rows_of_squares()
        clip = shutil.copytree(BASE, folder / "clip")
        pairs = folder / "pairs"
        write_pairs(rows, pairs / "data")
        picture = folder / "picture.png"
        picture.write_bytes(rows[0]["image"]["bytes"])
        return cls(folder, clip, pairs, picture)

    def copy(self, what: Path, place: Path) -> Path:
        return shutil.copytree(what, place)


@dataclass(frozen=True)
class Case:
    """An input, and the answer that is due.

    Attributes:
        area: Of the table.
        name: Within the area.
        make: Gets the case's empty folder and the kit; gives the arguments of `fastgoal`, or something to call.
        words: A pattern that the one-line error must match; None where the command must do its work.
        either: Whether an error that matches, or the work done, is right.
        check: Gets the folder and what was printed, when the work was done; raises `AssertionError`.
        sample: Whether the case runs with the other tests.
    """

    area: str
    name: str
    make: Callable[[Path, Kit], list[str] | Callable[[], Any]]
    words: str | None = None
    either: bool = False
    check: Callable[[Path, str], None] | None = None
    sample: bool = False


@dataclass
class Outcome:
    """What became of a case: one of `RESULTS`, why, and whether that is right."""

    case: Case
    result: str
    right: bool
    why: str = ""
    seconds: float = 0.0
    output: str = field(default="", repr=False)


def run_case(case: Case, kit: Kit, root: Path) -> Outcome:
    """Run a case in a child, in a folder of its own below `root`."""
    place = root / f"{case.area}-{abs(hash((case.area, case.name))):x}"
    folder = place / "case"
    folder.mkdir(parents=True)
    Image.new("RGB", (24, 24), (201, 17, 93)).save(place / "private.png")
    (place / "private.txt").write_text(PRIVATE)
    try:
        todo = case.make(folder, kit)
    except Exception:
        return Outcome(case, "traceback", False, f"the case itself: {traceback.format_exc(limit=-1)}")
    log = place / "log"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _in_child(todo, folder, log)
    status, ended = 0, 0
    while not ended and time.monotonic() - started < SECONDS:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.005)
    seconds = time.monotonic() - started
    if not ended:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return Outcome(case, "hang", False, f"not done after {SECONDS:.0f} s", seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it left running
    output = log.read_text(encoding="utf-8", errors="replace")
    outcome = _judge(case, os.waitstatus_to_exitcode(status), output, folder, place)
    outcome.seconds = seconds
    shutil.rmtree(place, ignore_errors=True)
    return outcome


def _in_child(todo: list[str] | Callable[[], Any], folder: Path, log: Path) -> None:
    code = 99
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        sys.stdin = _Asked()  # type: ignore[assignment]
        socket.socket.connect = _no_network  # type: ignore[method-assign, assignment]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        os.chdir(folder)
        if callable(todo):
            todo()
            code = 0
        else:
            from fastgoal.cli import main

            code = main(todo)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_connect = socket.socket.connect


class _Asked:
    """Standard input that may not be read."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("standard input was read")


def _no_network(self: socket.socket, address: Any) -> Any:
    """Connect to this machine only, where some cases have a server of their own."""
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise RuntimeError(f"the network was reached for: {address}")
    return _connect(self, address)


def _judge(case: Case, code: int, output: str, folder: Path, place: Path) -> Outcome:
    def outcome(result: str, right: bool, why: str = "") -> Outcome:
        return Outcome(case, result, right, why, output=output)

    said = [line for line in re.split(r"[\r\n]+", output) if line.strip()]
    last = said[-1] if said else ""
    if leak := _leak(folder, place, output):
        return outcome("silent", False, leak)
    if "Traceback (most recent call last)" in output or code not in (0, 2):
        return outcome("traceback", False, f"exit {code}: {last[:300]}")
    if "\x1b]" in output or "\x1b[2J" in output:
        return outcome("silent", False, "escape codes reached the console")
    if code == 2:
        errors = [line for line in said if ": error: " in line]
        message = errors[-1] if errors else last
        if case.words is None:
            return outcome("clear", False, f"refused, but it should work: {message[:300]}")
        if not re.search(case.words, output):
            return outcome("clear", False, f"the error lacks {case.words!r}: {message[:300]}")
        if len(message) > LONGEST_LINE:
            return outcome("clear", False, f"an error of {len(message)} characters")
        return outcome("clear", True)
    if case.words is not None and not case.either:
        return outcome("silent", False, f"nothing was said of {case.words!r}: {last[:200]}")
    if case.check is not None:
        try:
            case.check(folder, output)
        except Exception as error:
            return outcome("silent", False, f"the check failed: {type(error).__name__} {str(error)[:300]}")
    return outcome("fine", True)


def _leak(folder: Path, place: Path, output: str) -> str:
    """What of the private files turned up; empty where nothing did."""
    picture = (place / "private.png").read_bytes()
    if (place / "private.txt").read_text() != PRIVATE:
        return "the private text was overwritten"
    beside = {path.name for path in place.iterdir()} - {"case", "log", "private.png", "private.txt"}
    if beside:
        return f"files beside its folder: {sorted(beside)}"
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if picture in data or PRIVATE.encode() in data:
            return f"{path.name} holds the private picture or text"
    return "the private text was printed" if PRIVATE in output else ""
