"""Pictures without captions as numbered rows: a plain folder of them, or any source of `load_source`."""

import hashlib
import os
from pathlib import Path
from typing import Any

from .sources import Source, is_source, load_source

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Read at both ends of every file for the fingerprint: enough to notice another picture of the same size.
_BLOCK = 4096


def open_images(
    images: str | os.PathLike[str],
    image_column: str | None = None,
    split: str | None = None,
    allow_outside_files: bool = False,
) -> Source:
    """Open pictures as rows without captions.

    Args:
        images: a folder of image files, sub-folders included, or what `load_source` opens. A folder with
            `metadata.jsonl`, a saved dataset or parquet files in it is taken as such.
        image_column: as for `load_source`, like `split`; a plain folder has neither.
        allow_outside_files: whether links in the folder may lead out of it.

    Raises:
        ValueError: names what is wrong with the folder, the column or the split.
    """
    folder = Path(images)
    if not folder.is_dir() or is_source(folder):
        return load_source(
            images, image_column, split=split, with_captions=False, allow_outside_files=allow_outside_files
        )
    for name, value in (("image_column", image_column), ("split", split)):
        if value is not None:
            raise ValueError(f"{name}='{value}': {folder} is a plain folder of images, which has none; leave it out.")
    opened = ImageFolder(folder)
    opened.allow_outside_files = allow_outside_files
    return opened


class ImageFolder(Source):
    """The pictures of a folder and its sub-folders, in order of their paths; hidden ones are left out.

    A row's name is the path inside the folder.

    Raises:
        ValueError: there is no picture, or a name that is not valid text.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), ["file_name"], with_captions=False)
        self.folder = self.base = folder
        self.files: list[str] = []
        for place, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = (Path(place, name) for name in names if not name.startswith("."))
            self.files += [path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in SUFFIXES]
        self.files.sort(key=lambda name: name.split("/"))
        if not self.files:
            raise ValueError(f"{folder} has no image; looked for {', '.join(SUFFIXES)} in it and its sub-folders.")
        for name in self.files:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{folder}: the file name {name!r} is not valid UTF-8; rename the file.") from None

    @property
    def fingerprint(self) -> str:
        """Hash of the names and sizes of all files and of the bytes at both ends of each."""
        digest = hashlib.sha256()
        for name in self.files:
            path = self.folder / name
            if not path.is_file():  # a pipe, a device or a link to nothing: an error when it is its turn
                digest.update(f"{name}\n".encode())
                continue
            size = path.stat().st_size
            digest.update(f"{name}\n{size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(_BLOCK))
                if size > _BLOCK:
                    file.seek(max(_BLOCK, size - _BLOCK))
                    digest.update(file.read(_BLOCK))
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.files)

    def _where(self, index: int, values: dict[str, Any]) -> str:
        return str(self.folder / self.files[index])

    def _values(self, index: int) -> dict[str, Any]:
        return {"file_name": self.files[index]}
