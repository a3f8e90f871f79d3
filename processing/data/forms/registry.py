"""Forms of data by name, and `load_source`, which recognizes the form of a path and loads it.

To add a form, add a file with a `FORM` to this folder: `load_source` and the commands find it. Imports nothing heavy,
as the help of the commands lists the forms.
"""

import importlib
import os
import pkgutil
from itertools import chain
from pathlib import Path

from fastgoal.processing.data.locations import SUFFIXES
from fastgoal.processing.data.pairs_dataset import MANIFEST
from fastgoal.processing.data.sources import CAPTIONS, Source, refuse_file_names
from fastgoal.processing.data.streams import StreamSource

from .captions import ChosenCaptions
from .form import Form, SourceOptions
from .metadata import METADATA_FILES

FORMS: dict[str, Form] = {
    form.name: form
    for module in pkgutil.iter_modules([os.path.dirname(__file__)])
    if module.name != "registry"
    for form in [getattr(importlib.import_module(f"{__package__}.{module.name}"), "FORM", None)]
    if form is not None
}


def load_source(
    source: str | os.PathLike[str],
    *,
    form: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    captions: str = "join",
    with_captions: bool = True,
    allow_outside_files: bool = False,
) -> Source:
    """Load a file, a folder or a Hub dataset of images and captions as a sequence of rows. No image is decoded.

    >>> source = load_source("photos")  # doctest: +SKIP
    >>> source[0].name, source[0].captions  # doctest: +SKIP
    ('dog.jpg', ['A brown dog lies on a red sofa. A lamp stands to its left.'])

    Args:
        source: A file or folder in one of `FORMS`, or the OWNER/NAME of a dataset on the Hub.
        form: Name of the form, a key of `FORMS`. Default: recognized from the files.
        split: Name of the split; required if there are several.
        image_column: Column of the images. Default: that of the form.
        caption_column: Column of the captions, each a text or a list of texts. Default: `caption`, else `captions`.
        image_folder: Folder of the image files, for forms that name image files in a table. Default: the folder of the
            table.
        captions: What `caption` of a row is, for an image with several captions: `join` for all as one text; `longest`,
            with the others as `short_captions`; or `each` for a row per caption, where rows of one image have the same
            `image_group` and are no negatives of each other in training. `each` reads all captions at once.
        with_captions: Pass False to read the images alone; a caption column is then not required.
        allow_outside_files: Whether rows may name image files outside the folder.

    Returns:
        A sequence of `SourceRow`, each with `name`, `image`, `captions`, `caption` (all captions as one text) and the
        other `columns`.

    Raises:
        ValueError: The data cannot be read, fit no form or several, the column or split does not exist, or the first
            captions are file names.
    """
    options = SourceOptions(
        split=split,
        image_folder=None if image_folder is None else Path(image_folder),
        image_column=image_column,
        caption_column=caption_column,
        with_captions=with_captions,
    )
    opened = _choose(Path(source), form, options).load(Path(source), options)
    opened.allow_outside_files = allow_outside_files
    if with_captions:
        refuse_file_names(opened)
    if captions not in CAPTIONS:
        raise ValueError(f"`captions` must be one of {', '.join(CAPTIONS)}, got {captions!r}.")
    return opened if captions == "join" or not with_captions else ChosenCaptions(opened, captions)


def open_stream(
    source: str | os.PathLike[str],
    *,
    form: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    allow_outside_files: bool = False,
) -> StreamSource:
    """Open a folder of shards or a Hub dataset as a stream. The arguments are those of `load_source`.

    Raises:
        ValueError: The form is not one that can be streamed, or shards are missing.
    """
    options = SourceOptions(split=split, image_column=image_column, caption_column=caption_column)
    chosen = _choose(Path(source), form, options)
    if chosen.stream is None:
        streamed = ", ".join(form.name for form in FORMS.values() if form.stream is not None)
        raise ValueError(
            f"`train_data`: {source} is in the form {chosen.name}, which cannot be streamed, unlike {streamed}. Train "
            "on it with `streaming=False`."
        )
    opened = chosen.stream(Path(source), options)
    opened.allow_outside_files = allow_outside_files
    return opened


def recognize(path: Path) -> Form:
    """Return the form of a path. Raise `ValueError` if it fits none, or several."""
    forms = [form for form in FORMS.values() if form.fits(path)]
    if len(forms) > 1:
        raise ValueError(
            f"{path} fits {len(forms)} forms: {'; '.join(f'{form.name} ({form.about})' for form in forms)}. Choose one "
            "with `form`."
        )
    if not forms:
        raise ValueError(f"{path} {_why_unknown(path)}")
    return forms[0]


def _why_unknown(path: Path) -> str:
    """Return what is wrong with a path that fits no form, and the way out."""
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return "has no finished shards of `fastgoal pairs` yet. Run the same command again to resume it."
        inside = [file.parent for name in METADATA_FILES for file in path.glob(f"*/{name}")]
        if inside:
            return f"has no captions itself. Name a folder in it that has metadata, such as {min(inside)}."
        if any(file.suffix.lower() in SUFFIXES for file in chain(path.iterdir(), path.glob("*/*"))):
            if any((path.parent / name).is_file() for name in METADATA_FILES):
                return f"contains images but no captions. Name the folder above it, {path.parent}, which has metadata."
            return (
                "contains images but no captions. Add a metadata.jsonl with file_name and caption for each image, "
                "or write captions with `fastgoal caption`."
            )
    return (
        f"is not in a known form of images with captions ({', '.join(FORMS)}). `fastgoal pairs --help` describes them."
    )


def is_source(path: Path) -> bool:
    """Return whether `load_source` can read a file or folder, or the captions in it are not finished."""
    return path.exists() and any(form.fits(path) for form in FORMS.values())


def _choose(path: Path, name: str | None, options: SourceOptions) -> Form:
    """Return the form called `name`, or that of a path. Raise `ValueError` for options that it does not have."""
    if name is not None and name not in FORMS:
        raise ValueError(f"`form` must be one of {', '.join(FORMS)}, got {name!r}.")
    form = recognize(path) if name is None else FORMS[name]
    for option, has in (("split", form.has_splits), ("image_folder", form.has_image_folder)):
        value = getattr(options, option)
        if value is not None and not has:
            raise ValueError(
                f"`{option}` must be left out for {path}, which is in the form {form.name} ({form.about}), got "
                f"{str(value)!r}."
            )
    return form
