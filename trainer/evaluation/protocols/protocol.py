"""What a protocol is: a named dataset form, with the numbers of images and captions that published results used."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Rows = Iterator[tuple[Path, list[str]]]
"""Image files with their captions, as a reader yields them."""


@dataclass(frozen=True)
class Protocol:
    """A named evaluation protocol.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        about: Files that a folder of the published dataset must have, and the captions that are used.
        read: Reads a folder of the published dataset; None if there is no published form.
        images: Number of images of the complete protocol; None if it has no fixed number.
        captions_each: Number of captions per image that are used; None for all.
        columns: Caption columns to try, in order, if the protocol is given as a table (parquet files, a saved dataset,
            a Hub id). None stands for the defaults of `load_source`.
        split: Split to use in such a table, if it has several; `a+b` for two.
    """

    name: str
    title: str
    about: str
    read: Callable[[Path], Rows] | None = None
    images: int | None = None
    captions_each: int | None = None
    columns: tuple[str | None, ...] = (None,)
    split: str | None = None

    def remark(self, images: int) -> str:
        """Return the note on a result of incomplete data; empty if `images` is the protocol's number of images."""
        if self.images in (None, images):
            return ""
        return (
            f"{self.title} has {self.images:,} images, but the data have {images:,}: do not compare the result with"
            " published results."
        )
