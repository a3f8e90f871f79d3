"""The values of k in recall@k, and the formats of vectors. Imports nothing heavy, as the command line needs them."""

from collections.abc import Sequence

from fastgoal.processing.checks import is_positive

KS = (1, 5, 10, 25, 50)
FORMATS = ("float32", "int8", "binary")


def check_ks(ks: Sequence[int]) -> None:
    """Raise `ValueError` unless `ks` is a non-empty sequence of positive integers."""
    if not isinstance(ks, Sequence) or not ks or not all(map(is_positive, ks)):
        raise ValueError(f"`ks` must be a non-empty sequence of positive integers, got {ks!r}.")
