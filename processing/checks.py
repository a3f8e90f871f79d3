"""Checks and default values of arguments that several stages share."""

# Limits of regions; areas are fractions of the image.
MIN_SCORE, MIN_AREA, MAX_AREA = 0.25, 0.01, 0.80


def is_positive(value: object) -> bool:
    """Return whether a value is an integer of at least 1; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_positive(**values: object) -> None:
    """Raise `ValueError` for an argument that is neither None nor a positive integer; the message names it."""
    for name, value in values.items():
        if value is not None and not is_positive(value):
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
