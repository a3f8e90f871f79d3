"""DOCCI: photographs with long descriptions by hand (google.github.io/docci)."""

from pathlib import Path

from fastgoal.processing.data.sources import Source

from .files import (
    Rows,
    find_file,
    image_base,
    image_name,
    load_rows,
    matching_files,
    read_json_lines,
    select_split,
    text_of,
)
from .form import Form, SourceOptions

FILES = ("docci_descriptions.jsonlines",)


def fits(path: Path) -> bool:
    return path.name in FILES or bool(matching_files(path, FILES))


def load(path: Path, options: SourceOptions) -> Source:
    base = image_base(path, options)
    return load_rows(path, select_split(read(find_file(path, FILES), base), options.split, path), options)


def read(file: Path, base: Path) -> Rows:
    """Yield the rows of all splits: each line has `split`, `image_file` and `description`; images are in `images/`."""
    for label, row in read_json_lines(file):
        split, name, caption = (text_of(row, key, label) for key in ("split", "image_file", "description"))
        yield label, {"image": image_name(base, name, "images"), "caption": caption, "split": split}


FORM = Form(
    "docci",
    "DOCCI: docci_descriptions.jsonlines and images/; the splits are train, test, qual_dev and qual_test",
    fits,
    load,
    has_splits=True,
    has_image_folder=True,
)
