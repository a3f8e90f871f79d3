"""A CSV or TSV file with the names of image files and their captions, as open_clip reads it (`filepath`, `title`)."""

from pathlib import Path

from fastgoal.processing.data.sources import Source

from . import urls
from .form import Form, SourceOptions
from .karpathy import TABLE
from .metadata import METADATA_FILES
from .tables import PATH_COLUMNS, TableSource, read_header

SUFFIXES = (".csv", ".tsv")
OTHERS = (*METADATA_FILES, TABLE)
"""Tables of other forms."""


def table_files(path: Path) -> list[Path]:
    """Return a CSV or TSV file, or those of a folder that name image files."""
    if path.is_dir():
        files = sorted(file for suffix in SUFFIXES for file in path.glob(f"*{suffix}"))
        return [file for file in files if file.name not in OTHERS and {*PATH_COLUMNS} & {*read_header(file)}]
    return [path] if path.suffix in SUFFIXES and path.name != TABLE else []


def fits(path: Path) -> bool:
    """Return whether there is such a table, and not only one of URLs."""
    return bool(table_files(path)) and not urls.fits(path)


def load(path: Path, options: SourceOptions) -> Source:
    """Load the table. Raise `ValueError` if there is none, or if there are several."""
    files = table_files(path)
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ValueError(f"{path} must have one .csv or .tsv file with names of image files, got {names}. Name a file.")
    return TableSource(files[0], options)


FORM = Form(
    "csv",
    "a .csv or .tsv file with names of image files (such as filepath) and captions (such as title), or its folder",
    fits,
    load,
    has_image_folder=True,
)
