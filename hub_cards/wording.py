"""Numbers in words that people read: on pages, pictures, cards and the command line."""


def number(value: float, digits: int = 0) -> str:
    """A number with so many decimal places; what rounds to zero has no sign."""
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def count(many: int, thing: str, things: str = "") -> str:
    """A number of things: "1 file", "2,000 files"; `things` is the plural, where it is not `thing` with an s."""
    return f"{many:,} {thing if many == 1 else things or thing + 's'}"


def percent(share: float) -> str:
    """A share, 0 to 1, in percent; one that is small, but not nothing, does not become 0.0 %."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{number(100 * share, 1)} %"


def size_in_words(size: int) -> str:
    """Bytes as kB, MB..."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
