"""Format numbers for readers of pages, images, cards and the command line."""


def number(value: float, digits: int = 0) -> str:
    """Format a number with some decimal places; a value that rounds to zero has no sign."""
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def count(many: int, thing: str, things: str = "") -> str:
    """Format a number of things: "1 file", "2,000 files". `things` is an irregular plural."""
    return f"{many:,} {thing if many == 1 else things or thing + 's'}"


def percent(share: float) -> str:
    """Format a share from 0 to 1 in percent; a small positive one is "<0.1 %", not "0.0 %"."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{number(100 * share, 1)} %"


def size_in_words(size: int) -> str:
    """Format bytes as kB, MB, GB or TB."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
