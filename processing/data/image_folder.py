"""Images without captions as numbered rows: a plain folder of images, or anything that `load_source` reads."""

import os
from pathlib import Path
from typing import Any

from fastgoal.processing.checkpoints.fingerprints import hash_files
from fastgoal.processing.texts import is_unicode

from .forms.registry import is_source, load_source
from .locations import SUFFIXES
from .sources import Source


def open_images(
    images: str | os.PathLike[str],
    form: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    allow_outside_files: bool = False,
) -> Source:
    """Open images as rows without captions.

    Args:
        images: A folder of image files and subfolders, or anything that `load_source` reads.
        form: As for `load_source`, like the next three arguments; a plain folder of images takes none of them.
        allow_outside_files: Whether links in the folder, or rows, may lead out of it.

    Raises:
        ValueError: There are no images, or the column or split does not exist.
    """
    folder = Path(images)
    if form is not None or not folder.is_dir() or is_source(folder):
        return load_source(
            images,
            form=form,
            split=split,
            image_column=image_column,
            image_folder=image_folder,
            with_captions=False,
            allow_outside_files=allow_outside_files,
        )
    for name, value in (("split", split), ("image_column", image_column), ("image_folder", image_folder)):
        if value is not None:
            raise ValueError(f"`{name}` must be left out for {folder}, a plain folder of images, got {value!r}.")
    opened = ImageFolder(folder)
    opened.allow_outside_files = allow_outside_files
    return opened


class ImageFolder(Source):
    """The images of a folder and its subfolders in the order of their paths, except for hidden ones.

    The name of a row is the path inside the folder.

    Raises:
        ValueError: There are no images, or a name is not valid UTF-8.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), ["file_name"], with_captions=False)
        self.folder = self.base = folder
        self.files: list[str] = []
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = (Path(parent, name) for name in names if not name.startswith("."))
            self.files += [path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in SUFFIXES]
        self.files.sort(key=lambda name: name.split("/"))
        if not self.files:
            raise ValueError(f"{folder} and its subfolders have no images ({', '.join(SUFFIXES)}).")
        for name in self.files:
            if not is_unicode(name):
                raise ValueError(f"{folder}: the file name {name!r} is not valid UTF-8. Rename the file.")

    @property
    def fingerprint(self) -> str:
        """A hash of the names and sizes of all files and of the bytes at both ends of each."""
        # Both ends of a file tell images of the same size apart.
        return hash_files((self.folder / name for name in self.files), self.folder, blocks=2, block_size=4096)

    def __len__(self) -> int:
        return len(self.files)

    def _label(self, index: int, values: dict[str, Any]) -> str:
        return str(self.folder / self.files[index])

    def _values(self, index: int) -> dict[str, Any]:
        return {"file_name": self.files[index]}
