"""COCO, Flickr30k and Flickr8k with Karpathy's splits (caption_datasets.zip), or Flickr30k's table of the Hub."""

import csv
from pathlib import Path

from fastgoal.processing.data.sources import Source
from fastgoal.processing.files import parse_json

from .files import (
    Rows,
    as_list,
    as_object,
    begins_with,
    find_file,
    image_base,
    image_name,
    load_rows,
    matching_files,
    objects,
    read_json,
    select_split,
    text_of,
)
from .form import Form, SourceOptions

TABLE = "flickr_annotations_30k.csv"
NAMES = ("dataset_coco.json", "dataset_flickr30k.json", "dataset_flickr8k.json")
FILES = (*NAMES, *(f"{folder}/{name}" for folder in ("karpathy", "annotations") for name in NAMES), TABLE)
IMAGE_FOLDERS = ("val2014", "train2014", "flickr30k-images", "flickr30k_images", "images")


def fits(path: Path) -> bool:
    if path.is_dir():
        return bool(matching_files(path, FILES))
    return path.name == TABLE or begins_with(path, '"sentids"', '"sentences"')


def load(path: Path, options: SourceOptions) -> Source:
    file, base = find_file(path, FILES), image_base(path, options)
    rows = (read_table if file.suffix == ".csv" else read)(file, base)
    return load_rows(path, select_split(rows, options.split, path), options)


def read(file: Path, base: Path) -> Rows:
    """Yield the rows of all splits.

    `images` has `filename`, `split`, `sentences` with their `raw` text and, in COCO, the folder `filepath`.
    """
    for label, row in objects(as_object(read_json(file), str(file)).get("images"), f"{file} 'images'"):
        sentences = as_list(row.get("sentences"), f"{label} 'sentences'")
        captions = [text_of(as_object(sentence, label), "raw", label) for sentence in sentences]
        name, split = (text_of(row, key, label) for key in ("filename", "split"))
        folder = [text_of(row, "filepath", label)] if "filepath" in row else []
        yield label, {"image": image_name(base, name, *folder, *IMAGE_FOLDERS), "captions": captions, "split": split}


def read_table(file: Path, base: Path) -> Rows:
    """Yield the rows of all splits of the table of nlphuji/flickr30k: `raw`, a JSON list, `split` and `filename`."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        for number, row in enumerate(csv.DictReader(opened), start=2):
            label = f"{file} line {number}"
            captions = as_list(parse_json(text_of(row, "raw", label), label), f"{label} 'raw'")
            name, split = (text_of(row, key, label) for key in ("filename", "split"))
            yield label, {"image": image_name(base, name, *IMAGE_FOLDERS), "captions": captions, "split": split}


FORM = Form(
    "karpathy",
    "Karpathy's splits: dataset_coco.json, dataset_flickr30k.json or flickr_annotations_30k.csv, and the image folders "
    "(val2014/, flickr30k-images/); the splits are train, val, test and, in COCO, restval",
    fits,
    load,
    has_splits=True,
    has_image_folder=True,
)
