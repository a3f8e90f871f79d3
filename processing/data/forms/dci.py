"""DCI, densely captioned images (facebookresearch/DCI): the contents of dci.tar.gz with images in `photos/`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastgoal.processing.data.locations import wrong_split
from fastgoal.processing.data.sources import Source

from .files import as_list, as_object, begins_with, image_base, image_name, load_rows, read_json, text_of
from .form import Form, SourceOptions

FOLDER = "densely_captioned_images"  # in dci.tar.gz
EXTENDED = "extended_caption"


def root(path: Path) -> Path:
    """Return the folder with `annotations`."""
    return path if (path / "annotations").is_dir() else path / FOLDER


def fits(path: Path) -> bool:
    first = next(iter(sorted((root(path) / "annotations").glob("*.json"))), None)
    return first is not None and begins_with(first, '"short_caption"', '"extra_caption"', '"mask_data"')


def load(path: Path, options: SourceOptions) -> Source:
    if not (root(path) / "annotations").is_dir():
        raise ValueError(f"{path} has no folder 'annotations'. Expected the contents of dci.tar.gz and 'photos'.")
    rows = read(root(path), image_base(path, options))
    if options.caption_column in (None, "caption"):
        rows = (row for row in rows if row[1]["caption"])
    if options.split is not None:
        names = names_of_split(root(path), options.split)
        rows = (row for row in rows if row[1]["file"] in names)
    return load_rows(path, rows, options)


def read(folder: Path, base: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows in the order of the names of `annotations/*.json`.

    `caption` is `extra_caption`, the long one, which may be empty. `short_captions` is `short_caption`.
    `extended_caption` joins both by a line break, as DCI's `get_extended_caption` does.
    """
    subfolders = ("photos", f"{FOLDER}/photos")
    for path in sorted((folder / "annotations").glob("*.json")):
        label = str(path)
        row = as_object(read_json(path), label)
        short, long = (text_of(row, key, label, empty=True) for key in ("short_caption", "extra_caption"))
        image = image_name(base, text_of(row, "image", label), *subfolders)
        yield (
            label,
            {
                "image": image,
                "caption": long,
                "short_captions": short,
                EXTENDED: f"{short}\n{long}".strip(),
                "file": path.stem,
            },
        )


def names_of_split(folder: Path, split: str) -> set[str]:
    """Return the names, without their ends, of the annotations of a split of `splits.json`."""
    file = folder / "splits.json"
    if not file.is_file():
        raise ValueError(f"`split` must be left out for {folder}, which has no splits.json, got {split!r}.")
    splits = as_object(read_json(file), str(file))
    if split not in splits:
        raise wrong_split(split, splits, folder)
    return {Path(str(name)).stem for name in as_list(splits[split], f"{file} {split!r}")}


FORM = Form(
    "dci",
    "DCI: dci.tar.gz unpacked (annotations/) and photos/; the long captions, images without one left out; all splits "
    "by default",
    fits,
    load,
    has_splits=True,
    has_image_folder=True,
)
