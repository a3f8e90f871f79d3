"""DCI, densely captioned images (facebookresearch/DCI). Three test sets of it are in use."""

from functools import partial
from pathlib import Path

from .files import as_object, find_file, image_file, objects, read_json, text_of
from .protocol import Protocol, Rows


def read_dci(folder: Path, long_only: bool) -> Rows:
    """Read the contents of dci.tar.gz, in the order of file names.

    `annotations/*.json` have `image`, `short_caption` and `extra_caption` (the long one); images are in `photos/`.

    Args:
        long_only: Use the long caption, and leave out images without one. Otherwise join both captions by a line
            break, as DCI's `get_extended_caption` does.
    """
    if not (folder / "annotations").is_dir() and (folder / "densely_captioned_images").is_dir():
        folder = folder / "densely_captioned_images"
    if not (folder / "annotations").is_dir():
        raise ValueError(f"{folder} has no folder 'annotations'. Expected the contents of dci.tar.gz and 'photos'.")
    for path in sorted((folder / "annotations").glob("*.json")):
        row = as_object(read_json(path), str(path))
        short, long = (text_of(row, key, str(path), empty=True) for key in ("short_caption", "extra_caption"))
        image = image_file(folder, text_of(row, "image", str(path)), "photos")
        if not long_only:
            yield image, [f"{short}\n{long}".strip()]
        elif long:
            yield image, [long]


def read_dci_2k(folder: Path) -> Rows:
    """Read GOAL's test split (datasets/DCI_test.json in PerceptualAI-Lab/GOAL).

    `DCI_test.json` is a list of `filename`, a path on the authors' disk that ends with the image's name, and `caption`.
    """
    path = find_file(folder, "DCI_test.json")
    for label, row in objects(read_json(path), str(path)):
        name = text_of(row, "filename", label).replace("\\", "/").rsplit("/", 1)[-1]
        yield image_file(folder, name, "photos", "densely_captioned_images/photos"), [text_of(row, "caption", label)]


PROTOCOLS = (
    Protocol(
        "dci-7805",
        "DCI, all 7,805",
        "dci.tar.gz unpacked (annotations/) and photos/; short and long caption joined",
        partial(read_dci, long_only=False),  # as in LoTLIP's evaluation
        images=7805,
        captions_each=1,
    ),
    Protocol(
        "dci-7602",
        "DCI, the 7,602 with a long caption",
        "dci.tar.gz unpacked (annotations/) and photos/; the long caption, images without one left out",
        # FAST-GOAL's evaluation leaves out 203 images; the captions in GOAL's DCI_test.json are `extra_caption`.
        partial(read_dci, long_only=True),
        images=7602,
        captions_each=1,
    ),
    Protocol(
        "dci-2k",
        "DCI, GOAL's 2k test split",
        "GOAL's DCI_test.json and photos/",
        read_dci_2k,
        images=1999,
        captions_each=1,
        split="test",
    ),
)
