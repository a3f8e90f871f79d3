"""A folder of images with `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, the image folder of `datasets`.

`fastgoal caption` writes it too, with a JSON object per line.
"""

import hashlib
from pathlib import Path
from typing import Any

from fastgoal.processing.data.locations import METADATA
from fastgoal.processing.data.sources import Source
from fastgoal.processing.files import parse_json
from fastgoal.processing.texts import shortened

from .form import Form, SourceOptions
from .tables import TableSource

METADATA_FILES = (METADATA, "metadata.csv", "metadata.parquet")
CAPTIONS_MANIFEST = "fastgoal_captions.json"
"""Written by `fastgoal caption`, long before the metadata."""


class MetadataSource(Source):
    """A folder with `metadata.jsonl`, of which a line is parsed when its row is read."""

    def __init__(self, folder: Path, options: SourceOptions) -> None:
        self.folder = self.base = folder
        self.metadata = folder / METADATA
        lines = self.metadata.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
        self._lines = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        if not self._lines:
            raise ValueError(f"{self.metadata} has no rows. It must have one JSON object per line.")
        columns = dict.fromkeys(column for index in range(len(self)) for column in self._values(index))
        super().__init__(str(folder), columns, file_name=str(self.metadata), **options.columns)

    @property
    def fingerprint(self) -> str:
        """A hash of the metadata and of the sizes of all image files."""
        digest = hashlib.sha256()
        for index, (_, line) in enumerate(self._lines):
            size = self._size(self._values(index).get(self.image_column))
            digest.update(line + b"\n%d\n" % size)
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._lines)

    def _label(self, index: int, values: dict[str, Any]) -> str:
        name = values.get(self.image_column)
        return f"{self.metadata} line {self._lines[index][0]}" + (f" ({shortened(str(name), 200)})" if name else "")

    def _values(self, index: int) -> dict[str, Any]:
        number, line = self._lines[index]
        values = parse_json(line, f"{self.metadata} line {number}")
        if not isinstance(values, dict):
            raise ValueError(f"{self.metadata} line {number} must be a JSON object, got a {type(values).__name__}.")
        return values

    def _read_image(self, image: Any, label: str) -> str:
        if not isinstance(image, str):
            raise ValueError(f"{label}: '{self.image_column}' must be a file name, got {shortened(repr(image), 80)}.")
        return self._image_path(image, label)


def fits(path: Path) -> bool:
    """Return whether a folder has metadata, or captions that are not finished."""
    return any((path / name).is_file() for name in (*METADATA_FILES, CAPTIONS_MANIFEST))


def load(path: Path, options: SourceOptions) -> Source:
    """Load the folder. Raise `ValueError` if its captions are not finished, or it has several files of metadata."""
    files = [path / name for name in METADATA_FILES if (path / name).exists()]
    if len(files) > 1:
        raise ValueError(
            f"{path} has {len(files)} files of metadata, {files[0].name} and {files[1].name}. Remove all but one."
        )
    if not files and (path / CAPTIONS_MANIFEST).is_file():
        raise ValueError(
            f"{path}: the captions are not finished. Run the same `fastgoal caption` command again, which continues "
            "where it stopped."
        )
    if files and files[0].name != METADATA:
        return TableSource(files[0], options)
    return MetadataSource(path, options)


FORM = Form(
    "metadata",
    "a folder of images with metadata.jsonl, .csv or .parquet (file_name, and caption, captions, text or prompt)",
    fits,
    load,
)
