"""What the composition benchmarks share: items of images and captions, how they are read, and how they are scored.

Caption i of an item describes its image i; the captions after the last image describe none of its images. An item asks
which caption belongs to each image and which image to each caption. Ties count against the model.
"""

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgoal.processing.data.forms.files import as_list, text_of
from fastgoal.processing.data.forms.form import SourceOptions
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.forms.rows import RowsSource
from fastgoal.processing.data.sources import DatasetSource, Source, SourceRow
from fastgoal.processing.texts import is_unicode

from ..measures.outcomes import Outcomes
from .protocol import AccuracyTest, images_in_memory

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[float, float, float, float]
ITEMS_AT_ONCE = 1024  # about 15 MB of products of embeddings with five captions


@dataclass(frozen=True)
class Item:
    """An item of a benchmark, before its images are numbered.

    Attributes:
        label: Name for messages: the file and the entry.
        images: File names, relative to the folder of the images.
        captions: As many captions as images, or more.
        subset: Part of the benchmark that it belongs to.
        box: (x1, y1, x2, y2) to cut out of the images, in pixels; None for whole images.
    """

    label: str
    images: tuple[str, ...]
    captions: tuple[str, ...]
    subset: str = ""
    box: Box | None = None


@dataclass(frozen=True)
class ItemTable:
    """The items of a test with their images and captions numbered; all have the same numbers of both.

    Attributes:
        images: `[item][image]`, rows of the source of images.
        captions: `[item][caption]`, numbers of texts.
        subsets: The subset of each item.
        owners: The image file of each item, as a number: items of one file succeed and fail together.
    """

    images: list[list[int]]
    captions: list[list[int]]
    subsets: list[str]
    owners: list[int]

    def answers(self, image_embeds: "Tensor", text_embeds: "Tensor") -> dict[str, "Tensor"]:
        """Return which items are right, `(items,)` bool: `text`, `image` and `group`, as Winoground defines them.

        `text` is right if every image is more similar to its own caption than to every other caption of the item,
        `image` if every caption of an image is more similar to it than to every other image, and `group` if both are.

        Args:
            image_embeds: `(images, dim)`, L2-normalized.
            text_embeds: `(texts, dim)`, L2-normalized.
        """
        import torch

        images, captions = torch.tensor(self.images), torch.tensor(self.captions)
        text, image = [], []
        for start in range(0, len(images), ITEMS_AT_ONCE):
            part = slice(start, start + ITEMS_AT_ONCE)
            # A matrix product could round equal embeddings differently, and break a tie.
            pairs = image_embeds[images[part]].unsqueeze(2) * text_embeds[captions[part]].unsqueeze(1)
            scores = pairs.sum(-1)  # (items, images, captions)
            own = scores.diagonal(dim1=1, dim2=2)  # (items, images)
            is_own = torch.eye(*scores.shape[1:], dtype=torch.bool)
            others = scores.masked_fill(is_own, -torch.inf)
            text.append((own > others.amax(2)).all(1))
            image.append((own > others.amax(1)[:, : own.shape[1]]).all(1))
        right = {"text": torch.cat(text), "image": torch.cat(image)}
        return {**right, "group": right["text"] & right["image"]}

    def outcomes(self, correct: "Tensor", subsets: Collection[str] | None = None, by_subset: bool = False) -> Outcomes:
        """Return the outcomes of the items of some subsets, or of all.

        Args:
            correct: `(items,)`, from `answers`.
            subsets: The subsets.
            by_subset: Whether the accuracy is the mean over the subsets of the accuracy in each.
        """
        import torch

        rows = [row for row, subset in enumerate(self.subsets) if subsets is None or subset in subsets]
        classes = torch.tensor(_numbered(self.subsets[row] for row in rows)) if by_subset else None
        return Outcomes(correct[rows], classes, torch.tensor(_numbered(self.owners[row] for row in rows)))


Score = Callable[[ItemTable, "Tensor", "Tensor"], dict[str, Outcomes]]
"""Scores the embeddings of the images and texts of a test; the names are those of the report."""


def files_of(data: Any, names: Sequence[str], folders: Sequence[str] = ("",)) -> list[Path]:
    """Return the files with some of these names in a folder, or the file itself.

    Args:
        data: What the user passed: a folder or a file.
        names: Names of the files of the benchmark.
        folders: Subfolders to look into; the first that has one of the files counts.

    Raises:
        ValueError: There is no such file.
    """
    if not isinstance(data, str | os.PathLike):
        raise ValueError(f"`data` must be the folder of {' or '.join(names)}, got a {type(data).__name__}.")
    path = Path(data)
    if path.is_file():
        return [path]
    if not path.exists():
        raise ValueError(f"`data` must be the folder of {' or '.join(names)}, got {path}, which does not exist.")
    for folder in folders:
        if files := [path / folder / name for name in names if (path / folder / name).is_file()]:
            return files
    raise ValueError(f"{path} has no {' or '.join(map(repr, names))}. Download the annotations into this folder.")


@contextmanager
def reading(benchmark: str) -> Iterator[None]:
    """Add to an error of a file that it may belong to another benchmark."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} Check that it is a file of {benchmark}.") from error


def caption_of(values: dict[str, Any], key: str, label: str) -> str:
    """Return the caption of a key. Raise `ValueError` if it is not a text with valid Unicode."""
    text = text_of(values, key, label)
    if not is_unicode(text):
        raise ValueError(f"{label}: {key!r} contains an unpaired surrogate, which is not valid Unicode.")
    return text


def box_of(values: dict[str, Any], label: str) -> Box:
    """Return the box of ARO's keys `bbox_x`, `bbox_y`, `bbox_w` and `bbox_h`, in pixels."""
    numbers = []
    for key in ("bbox_x", "bbox_y", "bbox_w", "bbox_h"):
        value = values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{label}: {key!r} must be a number, got {value!r}. The row has {sorted(values)}.")
        numbers.append(value)
    x, y, width, height = numbers
    return x, y, x + width, y + height


def open_files(
    path: Path,
    items: Sequence[Item],
    base: Path,
    score: Score,
    *,
    published: Sequence[int],
    facts: Mapping[str, str] | None = None,
    allow_outside_files: bool = False,
) -> AccuracyTest:
    """Return the test of items that name image files.

    Args:
        path: File or folder of the annotations, for messages.
        items: The items.
        base: Folder of the images. Items may not name files outside it, unless `allow_outside_files` is set.
        score: Scores the items.
        published: Numbers of items of the complete benchmark, any of them.
        facts: See `AccuracyTest`.

    Raises:
        ValueError: There are no items, or an image file does not exist.
    """
    numbers: dict[tuple[str, Box | None], int] = {}
    rows: list[tuple[str, dict[str, Any]]] = []
    for item in items:
        for name in item.images:
            if (name, item.box) not in numbers:
                numbers[name, item.box] = len(numbers)
                rows.append((item.label, {"image": name, "box": item.box}))
    images = _Images(path, rows, base, SourceOptions(with_captions=False))
    images.allow_outside_files = allow_outside_files
    images.require_files()
    return _test(
        images,
        [[numbers[name, item.box] for name in item.images] for item in items],
        [item.captions for item in items],
        [item.subset for item in items],
        _numbered(item.images[0] for item in items),
        score,
        published,
        facts,
    )


def open_table(
    data: Any,
    image_columns: Sequence[str],
    caption_columns: Sequence[str],
    subset_column: str | None,
    score: Score,
    *,
    published: Sequence[int],
    split: str | None,
    image_folder: str | os.PathLike[str] | None,
    limit: int | None,
    allow_outside_files: bool,
) -> AccuracyTest:
    """Return the test of a table of `datasets` with an item in each row: parquet files, a saved dataset, or a Hub id.

    Raises:
        ValueError: The data is not such a table, a column is missing, a caption is not a text, or there is an
            `image_folder`.
    """
    if image_folder is not None:
        raise ValueError(f"`image_folder` must be left out for a table with the images in it, got {image_folder}.")
    if isinstance(data, str | os.PathLike):
        options: dict[str, Any] = {"with_captions": False, "allow_outside_files": allow_outside_files}
        sources = [load_source(data, split=split, image_column=column, **options) for column in image_columns]
    else:
        sources = [images_in_memory(data, column) for column in image_columns]
    first = sources[0]
    if not isinstance(first, DatasetSource):
        raise ValueError(f"{first.name} must be a folder of parquet files, a saved dataset or a dataset on the Hub.")
    text_columns = [*caption_columns, *([subset_column] if subset_column in first.columns else [])]
    if absent := [column for column in text_columns if column not in first.columns]:
        raise ValueError(f"{first.name} has no column {' or '.join(map(repr, absent))}, only {first.columns}.")
    rows = first.dataset.select_columns(text_columns)
    captions, subsets = [], []
    for index, values in enumerate(rows.select(range(min(len(rows), limit or len(rows))))):
        label = f"{first.name} row {index}"
        captions.append([caption_of(values, column, label) for column in caption_columns])
        subsets.append(str(values[subset_column]) if subset_column in text_columns else "")
    count = len(image_columns)
    images = [[*range(row * count, (row + 1) * count)] for row in range(len(captions))]
    return _test(
        _Interleaved(sources, len(captions)), images, captions, subsets, [*range(len(captions))], score, published
    )


def texts_of(values: dict[str, Any], key: str, count: int, label: str) -> tuple[str, ...]:
    """Return the list of `count` texts of a key."""
    texts = as_list(values.get(key), f"{label} {key!r}")
    if len(texts) != count:
        raise ValueError(f"{label}: {key!r} must have {count} texts, got {len(texts)}.")
    return tuple(caption_of({key: text}, key, label) for text in texts)


def _test(
    images: Source,
    image_numbers: list[list[int]],
    captions: Sequence[Sequence[str]],
    subsets: list[str],
    owners: list[int],
    score: Score,
    published: Sequence[int],
    facts: Mapping[str, str] | None = None,
) -> AccuracyTest:
    texts = {text: number for number, text in enumerate(dict.fromkeys(text for row in captions for text in row))}
    table = ItemTable(image_numbers, [[texts[text] for text in row] for row in captions], subsets, owners)
    facts = dict(facts or {})
    if len(subsets) not in published:
        complete = " or ".join(f"{number:,}" for number in published)
        facts["note"] = (
            f"The benchmark has {complete} items, but the data have {len(subsets):,}: do not compare the result with"
            " published results."
        )

    def score_table(image_embeds: "Tensor", text_embeds: "Tensor") -> dict[str, Outcomes]:
        return score(table, image_embeds, text_embeds)

    return AccuracyTest(images, [*texts], score_table, facts)


def _numbered(values: Iterable[Any]) -> list[int]:
    """Return the number of each value among the distinct ones, in the order in which they come."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


class _Images(RowsSource):
    """Image files, or boxes in them."""

    def require_files(self) -> None:
        """Raise `ValueError` if an image file does not exist, or is outside the folder of the images."""
        for index in range(len(self)):
            values = self._values(index)
            label, name = self._label(index, values), values["image"]
            if not os.path.isfile(self._image_path(name, label)):
                raise ValueError(
                    f"{label}: the image {name} does not exist in {self.base}. Pass the folder of the images as "
                    "`image_folder`."
                )

    def __getitem__(self, index: int) -> SourceRow:
        row = super().__getitem__(index)
        box = row.columns.get("box")
        if box is None:
            return row
        from fastgoal.processing.geometry import crop_bounds
        from fastgoal.processing.images import load_image

        image = load_image(row.image, name=row.name)
        crop_bounds(image.size, box)  # raises if the box is outside the image
        return replace(row, image=image.crop(box))  # what of the box is outside is black, as in ARO's own code


class _Interleaved(Source):
    """The first `count` rows of sources with one row per item: all images of the first item, then of the second."""

    def __init__(self, sources: Sequence[Source], count: int) -> None:
        super().__init__(sources[0].name, sources[0].columns, sources[0].image_column, with_captions=False)
        self.sources, self.count = sources, count

    def __len__(self) -> int:
        return self.count * len(self.sources)

    def __getitem__(self, index: int) -> SourceRow:
        return self.sources[index % len(self.sources)][index // len(self.sources)]

    def label(self, index: int) -> str:
        return self.sources[index % len(self.sources)].label(index // len(self.sources))
