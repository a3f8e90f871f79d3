"""What a form of data is: how it is recognized, and how it is loaded.

Imports nothing heavy, as the help of the commands lists the forms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgoal.processing.data.sources import Source
from fastgoal.processing.data.streams import StreamSource


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The options of `load_source` that a form gets.

    Attributes:
        split: Name of the split; None unless the form has `has_splits`.
        image_folder: Folder of the image files; None unless the form has `has_image_folder`.
        image_column: Column of the images; None for the default of the form.
        caption_column: Column of the captions; None for the default of the form.
        with_captions: Whether the rows have captions.
    """

    split: str | None = None
    image_folder: Path | None = None
    image_column: str | None = None
    caption_column: str | None = None
    with_captions: bool = True

    @property
    def columns(self) -> dict[str, Any]:
        """The options that `Source` takes."""
        names = ("image_column", "caption_column", "with_captions")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Form:
    """A form in which people keep images with captions.

    Attributes:
        name: Name on the command line.
        about: The files of the form, for help and messages: "a folder with metadata.jsonl".
        fits: Returns whether a path, a file or a folder, is in this form. It looks at names, or at the beginning of a
            file, and never raises. No path may fit two forms, unless it holds two sets of data.
        load: Loads a path as a `Source`. Raises `ValueError` that names the file and the row if it cannot be read.
        stream: Opens a path as a stream of rows, which need not fit on the disk; None for forms that are not read from
            the beginning to the end.
        has_splits: Whether `split` selects rows.
        has_image_folder: Whether the image files may be in another folder, `image_folder`.
    """

    name: str
    about: str
    fits: Callable[[Path], bool]
    load: Callable[[Path, SourceOptions], Source]
    stream: Callable[[Path, SourceOptions], StreamSource] | None = None
    has_splits: bool = False
    has_image_folder: bool = False
