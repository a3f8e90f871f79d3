"""COCO and Flickr30k with Karpathy's splits (caption_datasets.zip): the first five captions of each test image."""

import csv
from pathlib import Path

from .files import as_list, as_object, find_file, image_file, objects, parse_json, read_json, text_of
from .protocol import Protocol, Rows


def read_karpathy(path: Path, folder: Path, *image_folders: str) -> Rows:
    """Read the test split of a file of Karpathy's.

    It has `images`, each with `filename`, `split`, `sentences` with their `raw` text and, in COCO, `filepath`.
    """
    for label, row in objects(as_object(read_json(path), str(path)).get("images"), f"{path} 'images'"):
        if text_of(row, "split", label) != "test":
            continue
        sentences = as_list(row.get("sentences"), f"{label} 'sentences'")
        captions = [text_of(as_object(sentence, label), "raw", label) for sentence in sentences]
        name = text_of(row, "filename", label)
        subfolder = text_of(row, "filepath", label) if "filepath" in row else ""
        yield image_file(folder, name, subfolder, *image_folders), captions[:5]


def read_coco(folder: Path) -> Rows:
    """Read `dataset_coco.json`; images are in `val2014/`."""
    path = find_file(folder, "dataset_coco.json", "karpathy", "annotations")
    return read_karpathy(path, folder, "val2014", "images")


def read_flickr30k(folder: Path) -> Rows:
    """Read `flickr_annotations_30k.csv` (nlphuji/flickr30k on the Hub), or Karpathy's `dataset_flickr30k.json`.

    The table has `raw`, a JSON list of captions, `split` and `filename`. Images are in `flickr30k-images/`.
    """
    image_folders = ("flickr30k-images", "images", "flickr30k_images")
    table = folder / "flickr_annotations_30k.csv"
    if not table.is_file():
        yield from read_karpathy(find_file(folder, "dataset_flickr30k.json", "annotations"), folder, *image_folders)
        return
    with table.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            label = f"{table} line {number}"
            if text_of(row, "split", label) == "test":
                captions = as_list(parse_json(text_of(row, "raw", label), label), f"{label} 'raw'")
                image = image_file(folder, text_of(row, "filename", label), *image_folders)
                yield image, [str(caption) for caption in captions][:5]


PROTOCOLS = (
    Protocol(
        "coco-5k",
        "COCO 2014 5k (Karpathy test)",
        "dataset_coco.json (Karpathy) and val2014/; five captions per image",
        read_coco,
        images=5000,
        captions_each=5,
        split="test",
    ),
    Protocol(
        "flickr30k-1k",
        "Flickr30k 1k (Karpathy test)",
        "dataset_flickr30k.json (Karpathy) or flickr_annotations_30k.csv, and flickr30k-images/; five captions per "
        "image",
        read_flickr30k,
        images=1000,
        captions_each=5,
        split="test",
    ),
)
