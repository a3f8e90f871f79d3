"""Typed rows, and the datasets that make them from whatever the trainer is given."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import datasets
import pyarrow.compute
import torch
from torch.utils.data import Dataset, IterableDataset

from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.pairs_dataset import IMAGE_GROUP, SHORT_CAPTIONS
from fastgoal.processing.data.sources import DatasetSource, Source, SourceRow, refuse_problems

from .token_table import CaptionTokens, TokenTable

CHUNK = 10_000
SAMPLED_CAPTIONS = 1_000
# Captions that are tokenized before a training: 1 GB of tokens in each process.
MOST_TOKENIZED = 1_000_000


@dataclass(frozen=True)
class TrainingRow:
    """An image with its caption and local pairs, as `FastGoalCollator` reads it.

    Attributes:
        image: A PIL image, a file name or `{"bytes", "path"}`.
        caption: The whole caption.
        name: The name of the row in messages. What is drawn at random for a row depends on its name and caption.
        regions: Dicts with `box`, (x1, y1, x2, y2) in pixels of the upright image.
        sentences: Dicts with `start` and `end`, in characters of the caption.
        pairs: Dicts with `sentence`, `region` (indices of the two above) and `score`.
        short_captions: A short caption, several, or None.
        image_group: Number of the image, if several rows can show the same one; -1 if only this row does.
        epoch: The epoch, on which random draws depend. None for evaluation, where nothing is drawn.
        tokens: The tokens of the caption if they are known.
        position: The row's position in a stream; see `streams`.
    """

    image: Any
    caption: str
    name: str
    regions: Sequence[Mapping[str, Any]] = ()
    sentences: Sequence[Mapping[str, Any]] = ()
    pairs: Sequence[Mapping[str, Any]] = ()
    short_captions: Any = None
    image_group: int | None = None
    epoch: int | None = None
    tokens: CaptionTokens | None = None
    position: Any = None

    @classmethod
    def of(cls, row: Any, **changes: Any) -> "TrainingRow":
        """Convert a dict as `fastgoal pairs` writes it, a `SourceRow` or a `TrainingRow`, and set some attributes.

        Raises:
            TypeError: The row is something else.
            ValueError: The row has no caption.
        """
        if isinstance(row, cls):
            return replace(row, **changes)
        if isinstance(row, SourceRow):
            row = {**row.columns, "image": row.image, "caption": row.caption, "file_name": row.name}
        if not isinstance(row, Mapping):
            raise TypeError(f"a row must be a dict with `image` and `caption`, got {row!r:.80}.")
        image, caption = row.get("image"), row.get("caption")
        path = image.get("path") if isinstance(image, Mapping) else None
        name = str(row.get("file_name") or path or "a row of the dataset")
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{name}: `caption` must be a text that is not empty, got {caption!r}.")
        regions, sentences, pairs = (row.get(column) or () for column in ("regions", "sentences", "pairs"))
        group = row.get(IMAGE_GROUP)
        if IMAGE_GROUP in row and (group is None or isinstance(group, bool) or not isinstance(group, int)):
            if group is not None:
                raise ValueError(f"{name}: `{IMAGE_GROUP}` must be an integer, got {group!r}.")
            group = -1
        return cls(image, caption, name, regions, sentences, pairs, row.get(SHORT_CAPTIONS), group, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as `fastgoal pairs` writes it, without the size of the image."""
        columns = ("image", "caption", "regions", "sentences", "pairs")
        return {"file_name": self.name, **{column: getattr(self, column) for column in columns}}


class TrainingData(Dataset):
    """Rows by number for `FastGoalCollator`, to train or to evaluate on.

    `FastGoalTrainer` makes one of any dataset that it is given. Make it yourself to use the first rows only:

        trainer = FastGoalTrainer(..., train_dataset=TrainingData("pairs", limit=1000))

    Args:
        data: The folder that `fastgoal pairs` wrote, or anything else that `load_source` takes; what it returns; a
            `datasets.Dataset`; a list of dicts; or any dataset with such rows by number.
        limit: Use the first rows only.

    Attributes:
        tokens: The tokens of all captions, if `for_training` made them.

    Raises:
        ValueError: The source cannot be read.
    """

    def __init__(self, data: Any, limit: int | None = None):
        self.data: Any = load_source(data) if isinstance(data, str | os.PathLike) else data
        self.limit = limit
        self.tokens: TokenTable | None = None
        # In shared memory: workers of a data loader may live longer than an epoch.
        self._epoch: torch.Tensor | None = None

    @staticmethod
    def of(data: Any) -> "TrainingData":
        """Return the rows of any dataset."""
        if isinstance(data, TrainingData):
            return data
        return IterableTrainingData(data) if isinstance(data, IterableDataset) else TrainingData(data)

    @property
    def source(self) -> Source | None:
        """The source that the rows are from; None if they are from a dataset in memory."""
        return self.data if isinstance(self.data, Source) else None

    def __len__(self) -> int:
        return len(self.data) if self.limit is None else min(self.limit, len(self.data))

    def __getitem__(self, index: int) -> TrainingRow:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._row(self.data[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[TrainingRow]:
        """Read the rows of a batch. A `datasets.Dataset` reads them faster together than one by one."""
        read = getattr(self.data, "__getitems__", None)
        return [*map(self._row, read(indices) if read else [self.data[index] for index in indices], indices)]

    def _row(self, row: Any, index: int | None = None) -> TrainingRow:
        tokens = None if self.tokens is None or index is None else self.tokens[index]
        return TrainingRow.of(row, epoch=None if self._epoch is None else int(self._epoch), tokens=tokens)

    def for_training(self, tokenizer: Any = None, rows_seen: int = 0) -> "TrainingData":
        """Return the same rows with an epoch, which `begin_epoch` sets in all workers.

        With a tokenizer, the captions of a source are tokenized here, once for all epochs and workers. It must be a
        fast one that pads on the right, and it must pay: there are at most a million rows, and the training sees all of
        them (`rows_seen` is their number; 0 or less for all).
        """
        rows = copy.copy(self)
        rows._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        pays = self.source is not None and len(self) <= MOST_TOKENIZED and not 0 < rows_seen < len(self)
        if tokenizer is not None and pays and tokenizer.is_fast and tokenizer.padding_side == "right":
            rows.tokens = TokenTable(self.captions(), tokenizer)
        return rows

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch of the rows. Accelerate calls `set_epoch` instead, with a wrong number after a resume."""
        if self._epoch is not None:
            self._epoch.fill_(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a dataset that shuffles itself."""
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)

    def captions(self, indices: Sequence[int] | None = None) -> list[str]:
        """Return the captions of rows, by default of all, without decoding images.

        Raises:
            ValueError: A row has no caption.
        """
        if self.source is not None:
            return self.source.captions(range(len(self)) if indices is None else indices)
        rows = self.data.select_columns(["caption"]) if is_table(self.data) else self.data
        chosen = islice(rows, len(self)) if indices is None else (rows[index] for index in indices)
        return [TrainingRow.of(row).caption for row in chosen]

    def caption_lengths(self, processor: Any) -> list[int]:
        """Count the tokens of each caption as the model reads it, truncated to its length.

        Raises:
            ValueError: There is no processor, or a row has no caption.
        """
        if processor is None:
            raise ValueError(
                "`train_sampling_strategy=group_by_length` counts tokens: `processing_class` must be the model's "
                "FastGoalProcessor, got None."
            )
        if self.tokens is not None:
            return self.tokens.lengths
        captions, counts = self.captions(), list[int]()
        for start in range(0, len(captions), CHUNK):
            counts += map(len, processor.tokenizer(captions[start : start + CHUNK], truncation=True)["input_ids"])
        return counts

    def whole_caption_lengths(self, tokenizer: Any) -> list[int]:
        """Count the tokens of captions without truncating them.

        Returns:
            The lengths of all captions if `for_training` has tokenized them, and of up to 1,000 of them otherwise;
            empty for a dataset that may have to decode images to give its captions.

        Raises:
            ValueError: A row has no caption.
        """
        lengths: dict[int, int] = {}
        if self.tokens is not None:
            lengths = dict(enumerate(self.tokens.lengths))
        elif isinstance(self.data, Source | list) or is_table(self.data):
            step = max(1, -(-len(self) // SAMPLED_CAPTIONS))
            lengths = dict.fromkeys(range(0, len(self), step), tokenizer.model_max_length)
        # Those that `for_training` has truncated, or all of the sample.
        open_ended = [index for index, length in lengths.items() if length >= tokenizer.model_max_length]
        for start in range(0, len(open_ended), CHUNK):
            chunk = open_ended[start : start + CHUNK]
            ids = tokenizer(self.captions(chunk), truncation=False, padding=False, verbose=False)["input_ids"]
            lengths.update(zip(chunk, map(len, ids), strict=True))
        return [*lengths.values()]

    @cached_property
    def has_pairs(self) -> bool:
        """Whether all rows have local pairs, as far as this is known before they are read."""
        is_known = isinstance(self.data, Source | Sequence) or is_table(self.data)
        return not is_known or all(self._has("pairs"))

    def _has(self, column: str) -> Iterator[bool]:
        """Yield for each row whether it has a value in the column; a list of pairs must not be empty."""
        table = self.data.dataset if isinstance(self.data, DatasetSource) else self.data
        if not isinstance(table, datasets.Dataset):
            for index in range(len(self)):
                row = self.data[index]
                values = vars(TrainingRow.of(row)) if isinstance(row, SourceRow | TrainingRow) else row
                if not isinstance(values, Mapping):
                    raise TypeError(f"row {index} must be a dict with `image` and `caption`, got {values!r:.80}.")
                yield bool(values.get(column)) if column == "pairs" else values.get(column) is not None
            return
        schema = table.features.arrow_schema
        if column not in schema.names or (column == "pairs" and not hasattr(schema.field(column).type, "value_type")):
            yield from [False] * len(self)
        elif column == "pairs":
            table = table.select_columns([column]).with_format("arrow").select(range(len(self)))
            for part in table.iter(CHUNK):
                yield from (bool(length) for length in pyarrow.compute.list_value_length(part[column]).to_pylist())

    def _describe(self, index: int) -> str:
        """Return the row's number and name for messages, without decoding its image."""
        if self.source is not None:
            return self.source.label(index)
        has_image = is_table(self.data) and "image" in self.data.column_names
        row = (self.data.remove_columns("image") if has_image else self.data)[index]
        name = row.get("file_name") if isinstance(row, Mapping) else row.name
        return f"row {index} ({name})" if name else f"row {index}"


class IterableTrainingData(TrainingData, IterableDataset):
    """Rows of a dataset that is iterated over. It has a length only if the dataset has one."""

    def __iter__(self) -> Iterator[TrainingRow]:
        return map(self._row, self.data)


def source_of(data: Any) -> Any:
    """Return the `Source` or `StreamSource` that a dataset's rows are from; None if they are from memory."""
    return data if isinstance(data, Source) else getattr(data, "source", None)


def has_short_captions(data: Any) -> bool:
    """Return whether the rows of a dataset have short captions at all."""
    data = data.data if isinstance(data, TrainingData) else data
    columns = getattr(getattr(data, "source", data), "columns", None) or getattr(data, "column_names", None)
    if columns is not None:
        return SHORT_CAPTIONS in columns
    return isinstance(data, Sequence) and any(isinstance(row, Mapping) and row.get(SHORT_CAPTIONS) for row in data)


def check_rows(data: Any, name: str, needs_pairs: bool) -> None:
    """Check that each row has what `FastGoalCollator` reads. Only columns that tell are read from disk.

    Streams and other datasets are not checked: the collator names the row that it cannot use.

    Args:
        data: A dataset as `TrainingData` takes it, a dict of datasets by name, or None.
        name: The name of the dataset in messages.
        needs_pairs: Whether each row must have local pairs.

    Raises:
        TypeError: The data are a single row, or a row is not a dict.
        ValueError: A row has no image, no caption or no local pairs; the message names the first and says how many.
    """
    if isinstance(data, str):
        raise TypeError(f"`{name}` must be a dataset or a list of dicts, got {data!r}. Pass `TrainingData({data!r})`.")
    if isinstance(data, Mapping):
        if "image" in data or "caption" in data:
            raise TypeError(f"`{name}` must be rows, a list of dicts or a dataset, got a single row. Pass `[row]`.")
        for key, part in data.items():
            check_rows(part, f"{name}[{key!r}]", needs_pairs)
        return
    rows = TrainingData.of(data)
    if not isinstance(rows.data, Source | Sequence) and not is_table(rows.data):
        return
    if rows.source is not None:
        refuse_problems(rows.source, rows.limit)
    # A source has checked both columns when it was opened, and checks them again row by row.
    needed = {} if rows.source else dict.fromkeys(("image", "caption"), "Each must be a dict with both.")
    if needs_pairs:
        needed["pairs"] = (
            "This objective trains on them. Make them with `fastgoal pairs SOURCE --output DIR --model MODEL` or "
            "`processor.pair_rows(images, captions, model)`, leave such rows out, or train with the objective global "
            "or sparc, which need none."
        )
    for column, way_out in needed.items():
        missing = [index for index, has_value in enumerate(rows._has(column)) if not has_value]
        if missing:
            label = "local pairs" if column == "pairs" else f"`{column}`"
            first = rows._describe(missing[0])
            raise ValueError(
                f"`{name}`: {len(missing):,} of {len(rows):,} rows have no {label}; the first is {first}. {way_out}"
            )


def is_table(data: Any) -> bool:
    """Return whether this is a `datasets.Dataset` with rows of its own columns, without a transform that makes them."""
    return isinstance(data, datasets.Dataset) and data.format["type"] != "custom"
