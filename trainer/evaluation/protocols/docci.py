"""DOCCI: photographs with long descriptions by hand (google/docci on the Hub; google.github.io/docci)."""

from pathlib import Path

from .files import find_file, image_file, read_json_lines, text_of
from .protocol import Protocol, Rows


def read_docci(folder: Path) -> Rows:
    """Read the test split of `docci_descriptions.jsonlines`.

    Each line has `example_id`, `split`, `image_file` and `description`; images are in `images/`.
    """
    for label, row in read_json_lines(find_file(folder, "docci_descriptions.jsonlines")):
        if text_of(row, "split", label) == "test":
            image = image_file(folder, text_of(row, "image_file", label), "images")
            yield image, [text_of(row, "description", label)]


PROTOCOLS = (
    Protocol(
        "docci",
        "DOCCI test",
        "docci_descriptions.jsonlines and images/; the test split",
        read_docci,
        images=5000,
        captions_each=1,
        columns=("description", "caption"),
        split="test",
    ),
)
