"""A folder of images, each with a text file of the same name: `dog.jpg` with `dog.txt`, `dog.caption` or `dog.json`.

Trainers such as kohya's read this form, and img2dataset writes it (`files`).
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from fastgoal.processing.data.locations import SUFFIXES
from fastgoal.processing.data.sources import CAPTION_COLUMNS, Source
from fastgoal.processing.texts import is_unicode

from .form import Form, SourceOptions
from .samples import SNIFFED, TABLE, TEXTS, columns_of, text_columns, warn_of_failures


class SidecarSource(Source):
    """The images of a folder and its subfolders in the order of their paths, with text files of the same names.

    With captions, images without any text file are left out.

    Raises:
        ValueError: There are no images, a name is not valid UTF-8, or a column does not exist.
    """

    def __init__(self, folder: Path, options: SourceOptions) -> None:
        self.folder = self.base = folder
        warn_of_failures(folder)
        self.files: list[tuple[str, tuple[str, ...]]] = []
        """Each image, and the suffixes of its text files."""
        for parent, names in walk(folder):
            self.files += [
                (str(parent / name), suffixes)
                for name, suffixes in pair_files(names)
                if suffixes or not options.with_captions
            ]
        self.files.sort(key=lambda entry: entry[0].split("/"))
        if not self.files:
            raise ValueError(f"{folder} and its subfolders have no images with a .txt, .caption or .json file.")
        for name, _ in self.files:
            if not is_unicode(name):
                raise ValueError(f"{folder}: the file name {name!r} is not valid UTF-8. Rename the file.")
        first = islice(map(self._texts_or_none, range(len(self))), SNIFFED)
        options_of_columns = {**options.columns, "image_column": "image"}
        super().__init__(str(folder), columns_of(columns for columns in first if columns), **options_of_columns)

    @property
    def fingerprint(self) -> str:
        """A hash of the texts, and of the names and sizes of the images."""
        digest = hashlib.sha256()
        for index, (name, _) in enumerate(self.files):
            texts = self._texts_or_none(index)
            digest.update(json.dumps([name, self._size(name), texts], default=str).encode(errors="surrogatepass"))
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.files)

    def _label(self, index: int, values: dict[str, Any]) -> str:
        return str(self.folder / self.files[index][0])

    def _values(self, index: int) -> dict[str, Any]:
        return {**self._texts(index), "image": self.files[index][0]}

    def _texts(self, index: int) -> dict[str, Any]:
        name, suffixes = self.files[index]
        label = self._label(index, {})
        files = {}
        for suffix in suffixes:
            path = self._image_path(os.path.splitext(name)[0] + f".{suffix}", label)  # not outside the folder either
            try:
                files[suffix.lower()] = _read(path)
            except OSError as error:
                raise ValueError(f"{label}: {path} cannot be read: {error}.") from None
        return text_columns(files, label)

    def _texts_or_none(self, index: int) -> dict[str, Any] | None:
        with suppress(ValueError):
            return self._texts(index)
        return None


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folder and its subfolders, relative to it, with the names of their files, except for hidden ones."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(parent).relative_to(folder), [name for name in names if not name.startswith(".")]


def pair_files(names: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each image among the files of a folder, and the suffixes of its text files."""
    texts: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower().removeprefix(".") in (*TEXTS, TABLE):
            texts.setdefault(stem, []).append(suffix.removeprefix("."))
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES:
            yield name, tuple(sorted(texts.get(stem, [])))


def fits(path: Path) -> bool:
    """Return whether an image has a text file of the same name, or a JSON file with a caption."""
    if not path.is_dir():
        return False
    for parent, names in walk(path):
        for name, suffixes in pair_files(names):
            if {*map(str.lower, suffixes)} & {*TEXTS}:
                return True
            if suffixes:
                stem = os.path.splitext(name)[0]
                return _has_caption(path / parent / f"{stem}.{suffixes[0]}")
    return False


def _read(path: str | Path) -> bytes:
    from fastgoal.processing.images import read_regular  # imports PIL, and the help of the commands lists the forms

    return read_regular(path)


def _has_caption(path: Path) -> bool:
    try:
        table = json.loads(_read(path))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(table, dict) and any(column in table for column in CAPTION_COLUMNS)


FORM = Form(
    "sidecar",
    "a folder of images, each with a caption file of the same name (.txt, .caption or .json), as img2dataset writes",
    fits,
    SidecarSource,
)
