"""Localized Narratives (google.github.io/localized-narratives): jsonl files, with images of COCO, Flickr30k, ..."""

import re
from pathlib import Path
from typing import Any

from fastgoal.processing.data.sources import Source

from .files import (
    Rows,
    begins_with,
    image_base,
    image_name,
    load_rows,
    matching_files,
    read_json_lines,
    select_split,
    text_of,
)
from .form import Form, SourceOptions

FILES = ("*localized_narratives*.jsonl",)
SUFFIXES = (".jsonl",)


def fits(path: Path) -> bool:
    files = matching_files(path, FILES) if path.is_dir() else [path]
    return any(begins_with(file, '"annotator_id"', suffixes=SUFFIXES) for file in files)


def load(path: Path, options: SourceOptions) -> Source:
    files = matching_files(path, FILES) if path.is_dir() else [path]
    return load_rows(path, select_split(read(files, image_base(path, options)), options.split, path), options)


def read(files: list[Path], base: Path) -> Rows:
    """Yield one row per image, with the narratives of all its annotators as `captions`.

    Each line has `dataset_id` ("mscoco_val2017", "open_images_train", ...), `image_id` and `caption`; the split is the
    end of `dataset_id` without digits. The traces are left out.
    """
    rows: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for file in files:
        for label, row in read_json_lines(file):
            dataset, caption = (text_of(row, key, label) for key in ("dataset_id", "caption"))
            name = str(row.get("image_id", ""))
            if not name:
                raise ValueError(f"{label}: 'image_id' must be a text, got {row.get('image_id')!r}.")
            if (dataset, name) in rows:
                rows[dataset, name][1]["captions"].append(caption)
                continue
            part = dataset.rsplit("_", 1)[-1]
            # COCO's file names are numbers of twelve digits.
            image = f"{int(name):012d}.jpg" if dataset.startswith("mscoco") and name.isdigit() else f"{name}.jpg"
            subfolders = (part, "flickr30k-images", "images")
            values = {"image": image_name(base, image, *subfolders), "captions": [caption]}
            rows[dataset, name] = label, values | {"split": re.sub(r"\d+$", "", part)}
    return rows.values()


FORM = Form(
    "localized-narratives",
    "Localized Narratives: *_localized_narratives*.jsonl, and the images (val2017/, flickr30k-images/, images/); the "
    "splits are train, val or validation, and test",
    fits,
    load,
    has_splits=True,
    has_image_folder=True,
)
