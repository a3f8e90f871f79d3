"""Images with captions as numbered rows; `forms` has one file for each form of data that they are loaded from.

Loading a source reads no images: a broken image is an error when it is used. No code that comes with the data is run:
no pickles are read and no dataset scripts are executed.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastgoal.processing.files import lies_inside
from fastgoal.processing.texts import is_unicode, shortened

from .locations import SUFFIXES

CAPTIONS = ("join", "longest", "each")
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "prompt", "title")


@dataclass(frozen=True)
class SourceRow:
    """An image with its captions.

    Attributes:
        name: File name of the image in the source; made of the row's number if there is none.
        image: Path or `{"bytes", "path"}`, not decoded, for `load_image`.
        captions: The captions, stripped and not empty; an empty list if the source was loaded without captions.
        columns: All other values of the row.
    """

    name: str
    image: Any
    captions: list[str]
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """All captions as one text. Those that do not end a sentence get a full stop."""
        return join_captions(self.captions)


class Source:
    """A sequence of `SourceRow`s.

    A form of data is a subclass with `__len__`, `fingerprint`, `_values` and `_label`.

    Args:
        name: Name of the data, for messages and manifests.
        columns: All columns of all rows.
        image_column: Column of the images; by default the first of `image_candidates` that exists.
        caption_column: Column of the captions; by default the first of `CAPTION_COLUMNS` that exists.
        with_captions: Whether the rows have captions. Otherwise `caption_column` is None.
        image_candidates: Default columns of the images.
        file_name: Name of the file with the columns, for messages; by default `name`.

    Attributes:
        base: Folder of the image files that rows name; None if they may be anywhere.
        allow_outside_files: Whether rows may nevertheless name files outside `base`. Rows that come from somebody else
            must not be able to copy private files into pairs or captions.
        names_are_paths: Whether the names of the rows are paths of files in a folder; otherwise they can be any text,
            and several rows can share one.
        box_format: Usual format of boxes in this form of data, `xyxy` or `xywh`; see `regions_from_boxes`.

    Raises:
        ValueError: A column does not exist.
    """

    base: Path | None = None
    allow_outside_files = False
    names_are_paths = True
    box_format = "xyxy"

    def __init__(
        self,
        name: str,
        columns: Iterable[str],
        image_column: str | None = None,
        caption_column: str | None = None,
        with_captions: bool = True,
        image_candidates: Iterable[str] = ("file_name",),
        file_name: str = "",
    ) -> None:
        self.name = name
        self.columns = list(columns)
        self._file_name = file_name or name
        self.image_column = self._choose("image_column", image_column, image_candidates)
        self.caption_column = None
        if with_captions:
            self.caption_column = self._choose("caption_column", caption_column, CAPTION_COLUMNS)
            if self.caption_column == self.image_column:
                raise ValueError(
                    f"`caption_column` must be another column of {self._file_name} than the images, got "
                    f"{self.caption_column!r} for both. Its columns are {self.columns}."
                )

    @property
    def fingerprint(self) -> str:
        """A hash that changes when the rows or the image files change."""
        raise NotImplementedError

    @property
    def problems(self) -> Mapping[int, str]:
        """Reasons, by row, why rows that were found broken when the source was loaded cannot be used."""
        return {}

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[SourceRow]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> SourceRow:
        """Return a row. Raise `ValueError` if it has no image or no caption."""
        return self.row(index, self._values(index))

    def row(self, index: int, values: dict[str, Any]) -> SourceRow:
        """Make a row of its values by column, which are changed. Raise `ValueError` without an image or a caption."""
        label = self._label(index, values)
        image = values.pop(self.image_column, None)
        if image is None or image == "" or (isinstance(image, dict) and not (image.get("bytes") or image.get("path"))):
            raise ValueError(f"{label}: the column '{self.image_column}' has no image.")
        captions: list[str] = []
        if self.caption_column is not None:
            if self.caption_column not in values:
                raise ValueError(f"{label}: there is no '{self.caption_column}', only {sorted(values)}.")
            captions = self._read_captions(values.pop(self.caption_column), label)
        return SourceRow(self._row_name(index, image, values), self._read_image(image, label), captions, values)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Return the captions of rows, each row's as one text, without reading images if possible."""
        return [join_captions(self.captions_of(index)) for index in indices]

    def captions_of(self, index: int) -> list[str]:
        """Return the captions of a row, without reading its image if possible."""
        return self[index].captions

    def label(self, index: int) -> str:
        """Return the name of a row for messages: the source, the number of the row and its file."""
        return self._label(index, self._values(index))

    def describe(self, index: int, error: object) -> str:
        """Return an error of a row, with the label of the row in front if the error does not begin with it."""
        label, text = self.label(index), str(error)
        return text if text.startswith(label) else f"{label}: {text}"

    def _choose(self, argument: str, column: str | None, candidates: Iterable[str]) -> str:
        names = list(candidates) if column is None else [column]
        for name in names:
            if name in self.columns:
                return name
        raise ValueError(
            f"`{argument}` must be a column of {self._file_name}, got {column!r}: it has no column "
            f"{' or '.join(map(repr, names))}, only {self.columns}."
        )

    def _read_captions(self, value: Any, label: str) -> list[str]:
        captions = value if isinstance(value, list) else [value]
        if not captions:
            raise ValueError(f"{label}: '{self.caption_column}' must have at least one caption, got an empty list.")
        for number, caption in enumerate(captions):
            name = f"'{self.caption_column}'" + (f"[{number}]" if isinstance(value, list) else "")
            if not isinstance(caption, str):
                raise ValueError(
                    f"{label}: {name} must be a text, got {shortened(repr(caption), 80)}. Name the right column with "
                    "`caption_column`."
                )
            if not caption.strip():
                raise ValueError(f"{label}: {name} is an empty caption.")
            if not is_unicode(caption):
                raise ValueError(f"{label}: {name} contains an unpaired surrogate, which is not valid Unicode.")
        return [caption.strip() for caption in captions]

    def _values(self, index: int) -> dict[str, Any]:
        """Return the values of a row by column."""
        raise NotImplementedError

    def _label(self, index: int, values: dict[str, Any]) -> str:
        """Return the name of a row with these values for messages."""
        raise NotImplementedError

    def _read_image(self, image: Any, label: str) -> Any:
        """Turn the value of the image column into what `load_image` reads. Raise `ValueError` for anything else."""
        if isinstance(image, str):
            return self._image_path(image, label)
        if hasattr(image, "getbands"):  # a decoded PIL image
            return image
        if isinstance(image, dict) and image.keys() <= {"bytes", "path"}:
            if isinstance(image.get("bytes"), bytes):
                return image
            if isinstance(image.get("path"), str):
                return {**image, "path": self._image_path(image["path"], label)}
        raise ValueError(
            f"{label}: '{self.image_column}' must be a file name or the bytes of an image, got "
            f"{shortened(repr(image), 80)}. Name the right column with `image_column`."
        )

    def _image_path(self, name: str, label: str) -> str:
        """Return the path of an image file that a row names. Raise `ValueError` if it is outside the data's folder."""
        if self.base is None:
            return name
        path = os.path.join(self.base, name)
        try:
            inside = self.allow_outside_files or lies_inside(path, self.base)
        except ValueError as error:  # the name contains a NUL
            raise ValueError(f"{label}: {shortened(repr(name), 200)} is not a file name ({error}).") from None
        if not inside:
            raise ValueError(
                f"{label}: {shortened(repr(name), 200)} is outside the folder {self.base}: it is "
                f"{os.path.realpath(path)}. If you trust the source of the data, pass `allow_outside_files=True`."
            )
        return path

    def _size(self, name: Any) -> int:
        """Return the size in bytes of an image file that a row names; -1 if there is none."""
        try:
            return os.stat(os.path.join(self.base or "", name)).st_size
        except (OSError, ValueError, TypeError):
            return -1

    def _row_name(self, index: int, image: Any, values: dict[str, Any]) -> str:
        return str(image)


class DatasetSource(Source):
    """A `datasets.Dataset` with images as undecoded bytes or paths."""

    names_are_paths = False

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
        self.base = base
        candidates = image_candidates(dataset.features)
        super().__init__(name, dataset.column_names, image_column, caption_column, with_captions, candidates)
        self._fingerprint = fingerprint or str(dataset._fingerprint)
        self.dataset = dataset = undecoded(dataset)
        self._texts: Any = with_captions and dataset.select_columns([self.caption_column])
        self._names = dataset.select_columns(["file_name"]) if "file_name" in dataset.column_names else None

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.dataset)

    def captions(self, indices: Sequence[int]) -> list[str]:
        values = self._texts[indices][self.caption_column]
        labels = (f"{self.name} row {index}" for index in indices)
        return [*map(join_captions, map(self._read_captions, values, labels))]

    def captions_of(self, index: int) -> list[str]:
        return self._read_captions(self._texts[index][self.caption_column], f"{self.name} row {index}")

    def label(self, index: int) -> str:
        # Without reading the image, if the row has a file name.
        values = {} if self._names is None else dict(self._names[index])
        return self._label(index, values) if values.get("file_name") else super().label(index)

    def _label(self, index: int, values: dict[str, Any]) -> str:
        return f"{self.name} row {index} ({self._row_name(index, values.get(self.image_column), values)})"

    def _values(self, index: int) -> dict[str, Any]:
        return dict(self.dataset[index])

    def _row_name(self, index: int, image: Any, values: dict[str, Any]) -> str:
        path = image.get("path") if isinstance(image, dict) else image
        name = values.get("file_name") or (os.path.basename(path) if isinstance(path, str) else "")
        return str(name) if name else f"row-{index:08d}"


def image_candidates(features: Mapping[str, Any]) -> list[str]:
    """Return the default image column for columns of `datasets`: the only one with images, or `image`."""
    images = _image_columns(features)
    return images if len(images) == 1 else ["image"]


def undecoded(dataset: Any) -> Any:
    """Return a dataset or stream of `datasets` with images as undecoded bytes or paths."""
    import datasets

    for column in _image_columns(dataset.features):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def refuse_file_names(source: Source) -> None:
    """Raise `ValueError` if the captions of the first three rows are names of image files: it is the wrong column."""
    texts: list[str] = []
    for index in range(min(3, len(source))):
        try:
            texts += source.captions_of(index)
        except (ValueError, OSError):
            return  # the error is that of the row when it is read
    if texts and all(text.lower().endswith(SUFFIXES) and not any(map(str.isspace, text)) for text in texts):
        raise ValueError(
            f"`caption_column` must be a column with captions, got {source.caption_column!r}: the first captions of "
            f"{source.name} are file names, such as {shortened(repr(texts[0]), 80)}. Its columns are {source.columns}."
        )


def refuse_problems(source: Source, limit: int | None = None, way_out: str = "") -> None:
    """Raise `ValueError` if rows were found broken when the source was loaded, for work that stops at such rows.

    Args:
        source: The source.
        limit: Number of rows that are used, from the first one.
        way_out: Another way out, which ends the message.
    """
    bad = [reason for row, reason in source.problems.items() if limit is None or row < limit]
    if bad:
        more = f" {len(bad):,} rows cannot be used; this is the first." if len(bad) > 1 else ""
        raise ValueError(f"{bad[0]}{more}{way_out}")


def _image_columns(features: Mapping[str, Any]) -> list[str]:
    import datasets

    return [column for column, feature in features.items() if isinstance(feature, datasets.Image)]


def join_captions(captions: Sequence[str]) -> str:
    """Return captions as one text. Those that do not end a sentence get a full stop."""
    if len(captions) == 1:
        return captions[0]
    return " ".join(text if _is_closed(text) else text + "." for text in captions)


def _is_closed(text: str) -> bool:
    return text.rstrip("\"'”’»)]").endswith((".", "!", "?", "…", ":", ";", "。", "！", "？"))
