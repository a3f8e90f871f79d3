"""DOCCI: photographs with long descriptions by hand (google/docci on the Hub; google.github.io/docci)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .files import find_file, image_file, read_json_lines, text_of
from .protocol import Protocol, Rows


def read_docci(folder: Path, splits: Sequence[str]) -> Rows:
    """Read splits of `docci_descriptions.jsonlines`: `train`, `test`, `qual_dev` and `qual_test`.

    Each line has `example_id`, `split`, `image_file` and `description`; images are in `images/`.
    """
    for label, row in read_json_lines(find_file(folder, "docci_descriptions.jsonlines")):
        if text_of(row, "split", label) in splits:
            image = image_file(folder, text_of(row, "image_file", label), "images")
            yield image, [text_of(row, "description", label)]


_TABLE: dict[str, Any] = {"captions_each": 1, "columns": ("description", "caption")}
PROTOCOLS = (
    Protocol(
        "docci",
        "DOCCI test",
        "docci_descriptions.jsonlines and images/; the test split",
        partial(read_docci, splits=("test",)),
        images=5000,
        split="test",
        **_TABLE,
    ),
    Protocol(
        "docci-5100",
        "DOCCI, GOAL's list of 5,100",
        "docci_descriptions.jsonlines and images/; the splits test and qual_test",
        # The images of datasets/docci_test.json in PerceptualAI-Lab/GOAL.
        partial(read_docci, splits=("test", "qual_test")),
        images=5100,
        split="test+qual_test",
        **_TABLE,
    ),
)
