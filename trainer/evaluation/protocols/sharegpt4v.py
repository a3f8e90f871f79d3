"""ShareGPT4V 1k, the first rows of ShareGPT4V's captions (train/sharegpt4v.py of Long-CLIP)."""

from itertools import islice
from pathlib import Path

from .files import find_file, image_file, objects, read_json, text_of
from .protocol import Protocol, Rows


def read_sharegpt4v(folder: Path) -> Rows:
    """Read the first 1,000 entries of share-captioner_coco_lcs_sam_1246k_1107.json.

    Each has `image` and, in `conversations[1]["value"]`, the caption; its line breaks become spaces.
    """
    path = find_file(folder, "share-captioner_coco_lcs_sam_1246k_1107.json", "data")
    for label, row in islice(objects(read_json(path), str(path)), 1000):
        turns = row.get("conversations")
        if not isinstance(turns, list) or len(turns) < 2 or not isinstance(turns[1], dict):
            raise ValueError(f"{label}: 'conversations' has no second turn. Expected the caption there.")
        caption = text_of(turns[1], "value", label).replace("\n", " ")
        yield image_file(folder, text_of(row, "image", label), "", "data"), [caption]


PROTOCOLS = (
    Protocol(
        "sharegpt4v-1k",
        "ShareGPT4V 1k",
        "share-captioner_coco_lcs_sam_1246k_1107.json, its first 1,000 entries, and the images under their paths",
        read_sharegpt4v,
        images=1000,
        captions_each=1,
    ),
)
