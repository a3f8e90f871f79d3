"""ShareGPT4V (Lin-Chen/ShareGPT4V on the Hub): a JSON list with conversations, and images under their paths."""

from itertools import islice
from pathlib import Path

from fastgoal.processing.data.sources import Source

from .files import (
    Rows,
    begins_with,
    find_file,
    image_base,
    image_name,
    load_rows,
    matching_files,
    objects,
    read_json,
    text_of,
)
from .form import Form, SourceOptions

FILES = ("share*.json", "data/share*.json")
TEST_ROWS = 1000
"""The first rows are the test set of Long-CLIP (train/sharegpt4v.py)."""


def fits(path: Path) -> bool:
    if path.is_dir():
        return any(begins_with(file, '"conversations"') for file in matching_files(path, FILES))
    return begins_with(path, '"conversations"')


def load(path: Path, options: SourceOptions) -> Source:
    parts = {None: (0, None), "test": (0, TEST_ROWS), "train": (TEST_ROWS, None)}
    if options.split not in parts:
        raise ValueError(
            f"`split` must be 'train', 'test' (the first {TEST_ROWS:,} rows) or None for {path}, got {options.split!r}."
        )
    rows = read(find_file(path, FILES), image_base(path, options))
    return load_rows(path, islice(rows, *parts[options.split]), options)


def read(file: Path, base: Path) -> Rows:
    """Yield all rows: `image`, and the caption in `conversations[1]["value"]`; its line breaks become spaces."""
    for label, row in objects(read_json(file), str(file)):
        turns = row.get("conversations")
        if not isinstance(turns, list) or len(turns) < 2 or not isinstance(turns[1], dict):
            raise ValueError(f"{label}: 'conversations' has no second turn. Expected the caption there.")
        caption = text_of(turns[1], "value", label).replace("\n", " ")
        yield label, {"image": image_name(base, text_of(row, "image", label), "", "data"), "caption": caption}


FORM = Form(
    "sharegpt4v",
    "ShareGPT4V: share*.json with conversations, and the images under their paths; test is the first 1,000 rows, train "
    "the others, and the default all",
    fits,
    load,
    has_splits=True,
    has_image_folder=True,
)
