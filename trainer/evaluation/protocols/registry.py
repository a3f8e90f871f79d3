"""Evaluation protocols by name: which images and captions of a dataset a published number was measured on.

Numbers under the name of one dataset are often not comparable: three test sets called "DCI", two called "DOCCI" and two
called "Flickr30k" are in use. Each protocol therefore has a name of its own, says what it uses, and counts the images.
To add one, add a file with `PROTOCOLS` to this folder, and the form of its dataset to `processing/data/forms/`: the
commands and their help find both. A protocol with accuracies is the file alone (see `AccuracyProtocol`).

Imports nothing heavy, as `fastgoal evaluate --help` lists the protocols.
"""

import importlib
import os
import pkgutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fastgoal.processing.data.forms.registry import is_source, load_source
from fastgoal.processing.data.sources import DatasetSource, Source, SourceRow

from .protocol import AccuracyProtocol, Protocol

_FOUND = [
    protocol
    for module in pkgutil.iter_modules([os.path.dirname(__file__)])
    if module.name != "registry"
    for protocol in getattr(importlib.import_module(f"{__package__}.{module.name}"), "PROTOCOLS", ())
]
ACCURACY_PROTOCOLS: dict[str, AccuracyProtocol] = {
    protocol.name: protocol for protocol in _FOUND if isinstance(protocol, AccuracyProtocol)
}
"""Protocols with accuracies by name."""
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _FOUND if isinstance(protocol, Protocol)}
"""Retrieval protocols by name."""
PROTOCOLS["folder"] = Protocol(
    "folder",
    "own data",
    "metadata.jsonl with file_name and caption or captions, a saved dataset, parquet files, or a Hub id",
)


class SelectedRows(Source):
    """Some rows of a source, in the given order, each with at most `captions_each` captions."""

    def __init__(self, source: Source, rows: Sequence[int], captions_each: int | None) -> None:
        super().__init__(source.name, source.columns, source.image_column, source.caption_column)
        self.source, self.rows, self.captions_each = source, rows, captions_each

    @property
    def problems(self) -> dict[int, str]:
        known = self.source.problems
        return {index: known[row] for index, row in enumerate(self.rows) if row in known} if known else {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> SourceRow:
        row = self.source[self.rows[index]]
        return SourceRow(row.name, row.image, row.captions[: self.captions_each], row.columns)

    def label(self, index: int) -> str:
        return self.source.label(self.rows[index])


def open_protocol(
    name: str,
    data: Any,
    *,
    form: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    allow_outside_files: bool = False,
) -> Source:
    """Open the data of a protocol.

    Args:
        name: Name of the protocol, a key of `PROTOCOLS`.
        data: A folder of the published dataset (see `PROTOCOLS[name].about`), anything that `load_source` takes, a
            `Source`, a `datasets.Dataset`, or a list of rows, each a dict with an image and its captions.
        form: See `load_source`. A `Source` ignores this and the next four arguments.
        split: Split of the dataset. Default: that of the protocol.
        image_column: See `load_source`.
        caption_column: Column with the captions. Default: that of the protocol.
        image_folder: See `load_source`.
        limit: Number of rows to use, from the first one. Default: all rows.
        allow_outside_files: See `load_source`.

    Raises:
        ValueError: The name is unknown, the folder lacks a file, or a row is not in the published form.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {', '.join(PROTOCOLS)}, got {name!r}.")
    protocol = PROTOCOLS[name]
    options: dict[str, Any] = {
        "form": form,
        "split": split,
        "image_column": image_column,
        "caption_column": caption_column,
        "image_folder": image_folder,
        "allow_outside_files": allow_outside_files,
    }
    published = _published_path(protocol, data) if form in (None, protocol.form) else None
    if published is None:
        source = _load_table(protocol, data, options)
    else:
        options |= {"form": protocol.form, "split": split or protocol.split}
        if published.is_file():
            options["image_folder"] = image_folder or data
        options["caption_column"] = caption_column or protocol.published_column
        source = load_source(published, **options)
    rows: Sequence[int] = range(len(source))
    if protocol.split and not split and "split" in source.columns:
        rows = [row for row in rows if source._values(row).get("split") in protocol.split.split("+")]
    return SelectedRows(source, rows[:limit], protocol.captions_each)


def _published_path(protocol: Protocol, data: Any) -> Path | None:
    """Return the file or folder to load if `data` is a folder in the published form; None if it is another source."""
    if not isinstance(data, str | os.PathLike) or not Path(data).is_dir() or protocol.form is None:
        return None
    paths = [Path(data) / name for name in protocol.files if (Path(data) / name).exists()]
    if paths:
        return paths[0] if paths[0].is_file() else Path(data)
    if is_source(Path(data)):
        return None
    raise ValueError(
        f"{data} has no {' or '.join(map(repr, protocol.files))}. The protocol {protocol.name} needs {protocol.about}."
    )


def _load_table(protocol: Protocol, data: Any, options: dict[str, Any]) -> Source:
    """Load a table with the split and the caption column of the protocol, unless the options name others."""
    split, caption_column = options["split"], options["caption_column"]
    splits = [split] if split or not protocol.split else [protocol.split, None]
    errors: list[ValueError] = []
    for each_split, column in product(splits, [caption_column] if caption_column else protocol.columns):
        try:
            return _load(data, {**options, "split": each_split, "caption_column": column})
        except ValueError as error:
            errors.append(error)
    raise errors[0]  # about the protocol's own split and first column


def _load(data: Any, options: dict[str, Any], name: str = "data") -> Source:
    """Load any data with options of `load_source`; `name` is the name of rows in memory."""
    if isinstance(data, Source):
        return data
    if isinstance(data, str | os.PathLike):
        return load_source(data, **options)
    import datasets

    if not isinstance(data, datasets.Dataset):
        data = datasets.Dataset.from_list([dict(row) for row in data])
    return DatasetSource(data, name, options.get("image_column"), options.get("caption_column"))
