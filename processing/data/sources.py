"""Image-caption data as numbered rows, wherever it comes from.

A source is a folder with `metadata.jsonl`, a folder written by `Dataset.save_to_disk`, a folder of parquet files (what
`fastgoal pairs` writes) or a dataset on the Hub. Opening one reads no image: a broken picture fails when it is loaded.
Nothing here runs code that came with the data: no pickles are read and no dataset scripts are executed.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import hash_files
from fastgoal.processing.files import lies_inside, parse_json
from fastgoal.processing.texts import is_unicode, shortened

from .locations import (
    EXPECTED,
    METADATA,
    hub_cache,
    load_from_hub,
    parquet_files,
    parquet_of_split,
    pick_split,
)

# What `fastgoal caption` writes beside the metadata, and long before it.
CAPTIONS_MANIFEST = "fastgoal_captions.json"
SAVED = ("dataset_dict.json", "state.json")  # by `Dataset.save_to_disk`
CAPTION_COLUMNS = ("caption", "captions")


@dataclass(frozen=True)
class SourceRow:
    """One image with its captions."""

    name: str  # the image's file name inside the source, or a made-up one where there is none
    image: Any  # a path or a `{"bytes", "path"}` dict, not yet decoded; `processing.images.load_image` takes it
    captions: list[str]  # stripped, not one of them empty; none where the source was opened without
    columns: dict[str, Any] = field(default_factory=dict)  # all other values of the row

    @property
    def caption(self) -> str:
        """All captions as one text. One without a closing mark gets a full stop, so that it stays its own sentence."""
        if len(self.captions) == 1:
            return self.captions[0]
        return " ".join(text if _is_closed(text) else text + "." for text in self.captions)


class Source:
    """Rows by number. Without captions `caption_column` is None, and rows are pictures alone.

    Args:
        name: for messages and manifests.
        columns: all there are, of all rows together.
        image_column: the one asked for, else the first of `image_candidates` that is there.
        caption_column: likewise of `CAPTION_COLUMNS`.
        where: what has the columns, for messages; by default the name.

    Attributes:
        base: the folder that rows name image files in; None where they may name any.
        allow_outside_files: whether they may lead out of it all the same. A row that comes from somebody else must not
            be able to pick up files from the rest of the disk, which pairs and captions would hold copies of.
    """

    base: Path | None = None
    allow_outside_files = False

    def __init__(
        self,
        name: str,
        columns: Iterable[str],
        image_column: str | None = None,
        caption_column: str | None = None,
        with_captions: bool = True,
        image_candidates: Iterable[str] = ("file_name",),
        where: str = "",
    ) -> None:
        self.name = name
        self.columns = list(columns)
        self._columns_of = where or name
        self.image_column = self._choose("image_column", image_column, image_candidates)
        self.caption_column = None
        if with_captions:
            self.caption_column = self._choose("caption_column", caption_column, CAPTION_COLUMNS)

    @property
    def fingerprint(self) -> str:
        """Changes when the rows or the image files change."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[SourceRow]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> SourceRow:
        """The row at `index`. Raises `ValueError` that names the row when it lacks its image or a caption."""
        return self.row(index, self._values(index))

    def row(self, index: int, values: dict[str, Any]) -> SourceRow:
        """The row of these values, which it takes apart; raises as by number."""
        where = self._where(index, values)
        image = values.pop(self.image_column, None)
        if image is None or image == "" or (isinstance(image, dict) and not (image.get("bytes") or image.get("path"))):
            raise ValueError(f"{where}: there is no image in column '{self.image_column}'.")
        captions: list[str] = []
        if self.caption_column is not None:
            if self.caption_column not in values:
                raise ValueError(f"{where}: there is no '{self.caption_column}'; the row has {sorted(values)}.")
            captions = self._checked(values.pop(self.caption_column), where)
        return SourceRow(self._row_name(index, image, values), self._image(image, where), captions, values)

    def caption(self, index: int) -> str:
        """The caption of the row at `index`, its image left alone where that saves reading it."""
        return self[index].caption

    def captions(self, count: int) -> list[str]:
        """The captions of the first so many rows."""
        return [self.caption(index) for index in range(count)]

    def where(self, index: int) -> str:
        """The row in words, for messages: the source, the row and its file."""
        return self._where(index, self._values(index))

    def _choose(self, argument: str, asked: str | None, candidates: Iterable[str]) -> str:
        wanted = list(candidates) if asked is None else [asked]
        for column in wanted:
            if column in self.columns:
                return column
        raise ValueError(
            f"{argument}={asked!r}: {self._columns_of} has no column {' or '.join(map(repr, wanted))}; its columns are "
            f"{self.columns}. Name the right one with {argument} (--{argument.replace('_', '-')})."
        )

    def _checked(self, value: Any, where: str) -> list[str]:
        captions = value if isinstance(value, list) else [value]
        if not captions:
            raise ValueError(f"{where}: '{self.caption_column}' is an empty list; expected at least one caption.")
        for number, caption in enumerate(captions):
            which = f"'{self.caption_column}'" + (f"[{number}]" if isinstance(value, list) else "")
            if not isinstance(caption, str):
                raise ValueError(f"{where}: {which} is {caption!r}; expected text.")
            if not caption.strip():
                raise ValueError(f"{where}: {which} is an empty caption.")
            if not is_unicode(caption):
                raise ValueError(f"{where}: {which} is no valid text, it holds half of a character (a lone surrogate).")
        return [caption.strip() for caption in captions]

    def _values(self, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def _where(self, index: int, values: dict[str, Any]) -> str:
        raise NotImplementedError

    def _image(self, image: Any, where: str) -> Any:
        """What `load_image` takes of the value that a row has; raises `ValueError` where it is nothing of the kind."""
        if isinstance(image, str):
            return self._file(image, where)
        if hasattr(image, "getbands"):  # PIL's, decoded
            return image
        if isinstance(image, dict) and image.keys() <= {"bytes", "path"}:
            if isinstance(image.get("bytes"), bytes):
                return image
            if isinstance(image.get("path"), str):
                return {**image, "path": self._file(image["path"], where)}
        raise ValueError(
            f"{where}: '{self.image_column}' is {shortened(repr(image), 80)}; expected a file name or the bytes of an "
            "image. Name the right column with image_column (--image-column)."
        )

    def _file(self, name: str, where: str) -> str:
        """The path of an image file that a row names."""
        if self.base is None:
            return name
        path = os.path.join(self.base, name)
        try:
            inside = self.allow_outside_files or lies_inside(path, self.base)
        except ValueError as error:  # a name with a NUL in it
            raise ValueError(f"{where}: {shortened(repr(name), 200)} is no file name ({error}).") from None
        if not inside:
            raise ValueError(
                f"{where}: {shortened(repr(name), 200)} leads out of the folder {self.base}, to "
                f"{os.path.realpath(path)}. If you know where these rows are from and want such files read and copied: "
                "--allow-outside-files (allow_outside_files=True)."
            )
        return path

    def _row_name(self, index: int, image: Any, values: dict[str, Any]) -> str:
        return str(image)


class FolderSource(Source):
    """A folder with `metadata.jsonl`; lines keep their order, and stay text until they are asked for."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = self.base = folder
        self.metadata = folder / METADATA
        lines = self.metadata.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
        self._lines = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        if not self._lines:
            raise ValueError(f"{self.metadata} has no rows; expected one JSON object a line.")
        columns = dict.fromkeys(column for index in range(len(self)) for column in self._values(index))
        super().__init__(str(folder), columns, where=str(self.metadata), **options)

    @property
    def fingerprint(self) -> str:
        """Hash of the metadata and of the size of every image file (their pixels are not read)."""
        digest = hashlib.sha256()
        for index, (_, line) in enumerate(self._lines):
            name = self._values(index).get(self.image_column)
            try:
                size = (self.folder / name).stat().st_size if isinstance(name, str) else -1
            except (OSError, ValueError):
                size = -1
            digest.update(line + b"\n%d\n" % size)
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._lines)

    def _where(self, index: int, values: dict[str, Any]) -> str:
        name = values.get(self.image_column)
        return f"{self.metadata} line {self._lines[index][0]}" + (f" ({shortened(str(name), 200)})" if name else "")

    def _values(self, index: int) -> dict[str, Any]:
        number, line = self._lines[index]
        values = parse_json(line, f"{self.metadata} line {number}")
        if not isinstance(values, dict):
            raise ValueError(f"{self.metadata} line {number} is a {type(values).__name__}; expected a JSON object.")
        return values

    def _image(self, image: Any, where: str) -> str:
        if not isinstance(image, str):
            raise ValueError(f"{where}: '{self.image_column}' is {shortened(repr(image), 80)}; expected a file name.")
        return self._file(image, where)


class DatasetSource(Source):
    """A `datasets.Dataset`: saved, from parquet files or from the Hub. Images stay as undecoded bytes or paths."""

    def __init__(
        self,
        dataset: Any,
        name: str,
        image_column: str | None = None,
        caption_column: str | None = None,
        fingerprint: str | None = None,
        with_captions: bool = True,
        base: Path | None = None,
    ) -> None:
        import datasets

        self.base = base

        images = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        # One picture column needs no name; of several only 'image' is taken without being asked for.
        candidates = images if len(images) == 1 else ["image"]
        super().__init__(name, dataset.column_names, image_column, caption_column, with_captions, candidates)
        self._fingerprint = fingerprint or str(dataset._fingerprint)
        for column in images:
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        self.dataset = dataset
        self._texts: Any = with_captions and dataset.select_columns([self.caption_column])
        self._names = dataset.select_columns(["file_name"]) if "file_name" in dataset.column_names else None

    def caption(self, index: int) -> str:
        return self._caption(index, self._texts[index][self.caption_column])

    def captions(self, count: int) -> list[str]:
        return list(itertools.starmap(self._caption, enumerate(self._texts[:count][self.caption_column])))

    def _caption(self, index: int, value: Any) -> str:
        return SourceRow("", None, self._checked(value, f"{self.name} row {index}")).caption

    def where(self, index: int) -> str:
        # The image's bytes are not read for its name, where that stands in a column.
        named = dict(self._names[index]) if self._names is not None else {}
        return self._where(index, named) if named.get("file_name") else super().where(index)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.dataset)

    def _where(self, index: int, values: dict[str, Any]) -> str:
        return f"{self.name} row {index} ({self._row_name(index, values.get(self.image_column), values)})"

    def _values(self, index: int) -> dict[str, Any]:
        return dict(self.dataset[index])

    def _row_name(self, index: int, image: Any, values: dict[str, Any]) -> str:
        path = image.get("path") if isinstance(image, dict) else image
        name = values.get("file_name") or (os.path.basename(path) if isinstance(path, str) else "")
        return str(name) if name else f"row-{index:08d}"


def load_source(
    source: str | os.PathLike[str],
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    with_captions: bool = True,
    allow_outside_files: bool = False,
) -> Source:
    """Load a folder or a Hub dataset of images and captions as a sequence of rows. No image is decoded.

    >>> source = load_source("photos")  # doctest: +SKIP
    >>> source[0].name, source[0].captions  # doctest: +SKIP
    ('dog.jpg', ['A brown dog lies on a red sofa. A lamp stands to its left.'])

    Args:
        source: A folder with `metadata.jsonl`, a folder written by `Dataset.save_to_disk`, a folder of parquet files,
            or the OWNER/NAME of a dataset on the Hub.
        image_column: Column of the images. Defaults to `file_name` in `metadata.jsonl`, else to the image column.
        caption_column: Column of the captions, each a text or a list of texts. Defaults to `caption`, else `captions`.
        split: Name of the split; required if there are several. `metadata.jsonl` has none.
        with_captions: Pass False to read the images alone; a caption column is then not required.
        allow_outside_files: Whether rows may name image files outside the folder.

    Returns:
        A sequence of `SourceRow`, each with `name`, `image`, `captions`, `caption` (all captions as one text) and the
        other `columns`.

    Raises:
        ValueError: The data cannot be read, or the column or split does not exist.
    """
    text, folder = os.fspath(source), Path(source)
    opened = _open(text, folder, image_column, caption_column, split, with_captions)
    opened.allow_outside_files = allow_outside_files
    return opened


def _open(
    text: str, folder: Path, image_column: str | None, caption_column: str | None, split: str | None, captions: bool
) -> Source:
    fingerprint = None
    options: Any = {"image_column": image_column, "caption_column": caption_column, "with_captions": captions}
    if folder.is_file():
        raise ValueError(f"source='{text}' is a file; pass its folder. Expected {EXPECTED}.")
    if not folder.is_dir():
        dataset = load_from_hub(text, split)
        folder = hub_cache()
    elif (folder / METADATA).is_file():
        if split is not None:
            raise ValueError(f"split='{split}': {folder / METADATA} has no splits; leave split out.")
        return FolderSource(folder, **options)
    elif (folder / CAPTIONS_MANIFEST).is_file():
        raise ValueError(
            f"source='{text}': its captions are not finished. Run `fastgoal caption` again as before: it continues "
            "where it stopped."
        )
    elif any((folder / name).is_file() for name in SAVED):
        import datasets

        with loading(f"source='{text}'"):
            loaded = datasets.load_from_disk(text)
        dataset = pick_split(loaded, split, text)
    elif chosen := parquet_of_split(folder, split):
        import datasets

        with loading(f"source='{text}'"):
            dataset = datasets.load_dataset("parquet", data_files=[str(path) for path in chosen], split="train")
        fingerprint = hash_files(chosen)
    else:
        raise ValueError(
            f"source='{text}' has no {METADATA}, saved dataset or .parquet file in it. Expected {EXPECTED}."
        )
    return DatasetSource(dataset, text, fingerprint=fingerprint, base=folder, **options)


def is_source(folder: Path) -> bool:
    """Whether a folder is one of those that `load_source` reads, or one of captions that are not finished."""
    return bool(parquet_files(folder)) or any((folder / n).is_file() for n in (METADATA, CAPTIONS_MANIFEST, *SAVED))


def _is_closed(text: str) -> bool:
    return text.rstrip("\"'”’»)]").endswith((".", "!", "?", "…", ":", ";", "。", "！", "？"))
