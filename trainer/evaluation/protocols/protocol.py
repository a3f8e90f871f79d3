"""What a protocol is: a named dataset form, with the numbers of images and captions that published results used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """A named evaluation protocol.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        about: Files that a folder of the published dataset must have, and the captions that are used.
        form: Form of the published dataset, a key of `FORMS`; None if there is no published form.
        files: Files or folders that a folder of the published dataset has, any of them.
        images: Number of images of the complete protocol; None if it has no fixed number.
        captions_each: Number of captions per image that are used; None for all.
        split: Split to use, `a+b` for two; None if the dataset has no splits.
        published_column: Caption column of the published form; None for the default of the form.
        columns: Caption columns to try, in order, if the protocol is given as a table (parquet files, a saved dataset,
            a Hub id). None stands for the defaults of `load_source`.
    """

    name: str
    title: str
    about: str
    form: str | None = None
    files: tuple[str, ...] = ()
    images: int | None = None
    captions_each: int | None = None
    split: str | None = None
    published_column: str | None = None
    columns: tuple[str | None, ...] = (None,)

    def remark(self, images: int) -> str:
        """Return the note on a result of incomplete data; empty if `images` is the protocol's number of images."""
        if self.images in (None, images):
            return ""
        return (
            f"{self.title} has {self.images:,} images, but the data have {images:,}: do not compare the result with"
            " published results."
        )
