"""Numbers as a person says them."""


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
