"""What commands say in the same words: numbers, sizes, and what a push sent."""

import os
from pathlib import Path

from fastgoal.hub_cards.pushing import Pushed


def counted(number: int, what: str) -> str:
    """A number and what it counts: "1 file", "1,200 files"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def decimals(value: float, digits: int) -> str:
    """A number with so many decimals; what rounds to nothing has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def size_in_words(size: int) -> str:
    """Bytes as kB, MB..."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def describe_push(pushed: Pushed, folder: str | os.PathLike[str]) -> str:
    """What was sent, or would be, and what was not, in lines to read."""
    files = counted(len(pushed.sent), "file")
    lines = [f"{pushed.url}: {files}"]
    if pushed.url is None:
        kind = "data set" if pushed.kind == "dataset" else pushed.kind
        sizes = [(Path(folder) / name).stat().st_size for name in pushed.sent]
        lines = [f"would be sent to {pushed.repo} as a {kind}, {files}, {size_in_words(sum(sizes))}:"]
        lines += [f"  {name}  {size_in_words(size)}" for name, size in zip(pushed.sent, sizes, strict=True)]
    if pushed.left_out:
        top = dict.fromkeys(name.partition("/")[0] + "/" * ("/" in name) for name in pushed.left_out)
        lines.append(f"not sent: {', '.join(top)}")
    return "\n".join(lines)
