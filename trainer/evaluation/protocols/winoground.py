"""Winoground: match two images with two captions of the same words (facebook/winoground, arXiv 2204.03162)."""

import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgoal.processing.data.forms.files import folder_of, image_name, read_json_lines, text_of
from fastgoal.processing.data.forms.registry import is_source

from ..measures.outcomes import Outcomes
from .composition import Item, ItemTable, caption_of, files_of, open_files, open_table, reading
from .protocol import AccuracyProtocol, AccuracyTest

if TYPE_CHECKING:
    from torch import Tensor

FILE = "examples.jsonl"
FOLDERS = ("", "data")
IMAGES, CAPTIONS, TAG = ("image_0", "image_1"), ("caption_0", "caption_1"), "collapsed_tag"
ITEMS = (400,)


def open_examples(
    data: Any,
    *,
    split: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    allow_outside_files: bool = False,
) -> AccuracyTest:
    """Read `examples.jsonl` with the images' names without `.png`, or the table of the Hub with the images in it."""
    path = Path(data) if isinstance(data, str | os.PathLike) else None
    has_file = path is not None and any((path / folder / FILE).is_file() for folder in FOLDERS)
    if path is None or not path.exists() or (path.is_dir() and not has_file and is_source(path)):
        return open_table(
            data,
            IMAGES,
            CAPTIONS,
            TAG,
            score,
            published=ITEMS,
            split=split,
            image_folder=image_folder,
            limit=limit,
            allow_outside_files=allow_outside_files,
        )
    if split is not None:
        raise ValueError(f"`split` must be left out for {path}, which has no splits, got {split!r}.")
    (file,) = files_of(path, [FILE], FOLDERS)
    base = Path(image_folder) if image_folder is not None else folder_of(path)
    items = []
    with reading("Winoground"):
        for label, row in islice(read_json_lines(file), limit):
            names = [f"{text_of(row, column, label)}.png" for column in IMAGES]
            images = tuple(image_name(base, name, "images", "data/images") for name in names)
            captions = tuple(caption_of(row, column, label) for column in CAPTIONS)
            items.append(Item(label, images, captions, text_of(row, TAG, label, empty=True)))
    return open_files(file, items, base, score, published=ITEMS, allow_outside_files=allow_outside_files)


def score(table: ItemTable, image_embeds: "Tensor", text_embeds: "Tensor") -> dict[str, Outcomes]:
    """Return the text, image and group scores of all items, and of those with each tag."""
    answers = table.answers(image_embeds, text_embeds)
    outcomes = {name: table.outcomes(correct) for name, correct in answers.items()}
    for tag in sorted({*table.subsets} - {""}):
        for name, correct in answers.items():
            outcomes[f"{name}_{tag.lower()}"] = table.outcomes(correct, [tag])
    return outcomes


PROTOCOLS = (
    AccuracyProtocol(
        "winoground",
        "Winoground",
        "examples.jsonl and images/ (facebook/winoground), or its parquet files or Hub id; text, image and group score",
        open_examples,
    ),
)
