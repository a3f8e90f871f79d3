"""COCO captions (cocodataset.org): annotations/captions_*.json, with the boxes of instances_*.json if it is there."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from fastgoal.processing.data.locations import wrong_split
from fastgoal.processing.data.sources import Source

from .files import Rows, as_object, begins_with, image_base, image_name, matching_files, objects, read_json, text_of
from .form import Form, SourceOptions
from .rows import RowsSource

_FIRST_KEY = re.compile(r'\s*\{\s*"(info|licenses|images|annotations|categories|type)"\s*:')


def _files(path: Path) -> dict[str, Path]:
    """Return the caption files of a folder by split."""
    files = matching_files(path, ("annotations/captions_*.json", "captions_*.json"))
    return {file.stem.removeprefix("captions_"): file for file in files}


def fits(path: Path) -> bool:
    if path.is_dir():
        return bool(_files(path))
    if not begins_with(path, "{") or begins_with(path, '"sentids"', '"sentences"'):
        return False
    with path.open("rb") as file:
        return bool(_FIRST_KEY.match(file.read(4096).decode(errors="replace")))


def load(path: Path, options: SourceOptions) -> Source:
    file, split = path, options.split
    if path.is_dir():
        files = _files(path)
        if split is None and len(files) == 1:
            (split,) = files
        if split not in files:
            raise wrong_split(split, files, path)
        file = files[split]
    elif split is not None:
        raise ValueError(f"`split` must be left out for {path}, which is the file of one split, got {split!r}.")
    base = image_base(path, options)
    if options.image_folder is None and file.parent.name == "annotations":
        base = file.parent.parent
    source = RowsSource(path, read(file, base), base, options)
    source.box_format = "xywh"
    return source


def read(file: Path, base: Path) -> Rows:
    """Yield one row per image with captions, in the order of `images`.

    Boxes of the file itself, or of the instances file next to it, are in the column `boxes` as (x, y, width, height),
    and their categories in `labels`.
    """
    content = as_object(read_json(file), str(file))
    captions: dict[Any, list[str]] = defaultdict(list)
    boxes: dict[Any, list[list[float]]] = defaultdict(list)
    labels: dict[Any, list[str]] = defaultdict(list)
    for label, row in objects(content.get("annotations"), f"{file} 'annotations'"):
        if "caption" in row:
            captions[row.get("image_id")].append(text_of(row, "caption", label))
    if not captions:
        raise ValueError(
            f"{file}: no annotation has a 'caption'. Name a file of captions, such as captions_val2017.json."
        )
    instances = file.with_name(file.name.replace("captions_", "instances_"))
    with_boxes = file if any("bbox" in row for row in content["annotations"]) else instances
    if with_boxes == file or (instances != file and instances.is_file()):
        _read_boxes(content if with_boxes == file else read_json(with_boxes), with_boxes, boxes, labels)
    split = file.stem.removeprefix("captions_")
    seen: set[Any] = set()
    for label, row in objects(content.get("images"), f"{file} 'images'"):
        number = row.get("id")
        if number in seen:
            raise ValueError(f"{label}: the id {number!r} appears twice.")
        seen.add(number)
        if number not in captions:
            continue
        values = {"image": image_name(base, text_of(row, "file_name", label), split), "captions": captions[number]}
        yield label, values | ({"boxes": boxes[number], "labels": labels[number]} if boxes else {})
    if unknown := captions.keys() - seen:
        raise ValueError(
            f"{file}: {len(unknown):,} images with captions are not in 'images'. The first is {min(map(str, unknown))}."
        )


def _read_boxes(content: Any, file: Path, boxes: dict[Any, list[list[float]]], labels: dict[Any, list[str]]) -> None:
    content = as_object(content, str(file))
    categories = {
        row.get("id"): str(row.get("name", ""))
        for _, row in objects(content.get("categories", []), f"{file} 'categories'")
    }
    for label, row in objects(content.get("annotations"), f"{file} 'annotations'"):
        if "bbox" not in row:
            continue
        try:
            x, y, width, height = map(float, row["bbox"])
        except (TypeError, ValueError):
            raise ValueError(f"{label}: 'bbox' must be [x, y, width, height], got {row['bbox']!r}.") from None
        boxes[row.get("image_id")].append([x, y, width, height])
        labels[row.get("image_id")].append(categories.get(row.get("category_id"), ""))


FORM = Form(
    "coco",
    "COCO captions: annotations/captions_SPLIT.json and SPLIT/, or such a file; boxes of instances_SPLIT.json are in "
    "the column boxes",
    fits,
    load,
    has_splits=True,
    has_image_folder=True,
)
