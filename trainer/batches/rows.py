"""Datasets as the trainer reads them: rows by number, images left undecoded for the workers, checked beforehand."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import pyarrow.compute
from torch.utils.data import Dataset
from transformers import TrainingArguments

from fastgoal.processing.data.pairs_dataset import SHORT_CAPTIONS
from fastgoal.processing.data.sources import DatasetSource, Source, load_source

from .token_table import MADE_TOKENS, TokenTable

READ_AT_ONCE = 10_000
# Rows whose captions are tokenized beforehand: 1 GB of tokens in each process.
MOST_TOKENIZED = 1_000_000


class PairData(Dataset):
    """Rows of a dataset for `FastGoalCollator`: `image`, `caption`, `file_name`, and local pairs where it has them.

    Args:
        source: An opened dataset, or what `load_source` takes: the folder that `fastgoal pairs` wrote, or any
            folder of images and captions for training without local pairs.
        limit: Use the first rows only.

    Raises:
        ValueError: The source cannot be read; the message says what it should be.
    """

    def __init__(self, source: str | Source, limit: int | None = None):
        self.source = load_source(source) if isinstance(source, str) else source
        self.tokens: TokenTable | None = None
        self.rows = len(self.source) if limit is None else min(limit, len(self.source))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of {self.rows}")
        row = self.source[index]
        values = {**row.columns, "image": row.image, "caption": row.caption, "file_name": row.name}
        return {**values, MADE_TOKENS: (self.tokens, index)} if self.tokens else values

    def tokenize(self, processor: Any, args: TrainingArguments) -> None:
        """Make the tokens of all captions now, for all epochs, so that no worker has to.

        Not if the training ends before it has seen all, or the rows are too many.

        Raises:
            ValueError: A row has no caption; the message names it.
        """
        tokenizer = processor.tokenizer
        seen = args.max_steps * args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        worth = len(self) <= MOST_TOKENIZED and not 0 < seen < len(self)
        if worth and tokenizer.is_fast and tokenizer.padding_side == "right":
            self.tokens = TokenTable(self.source.captions(len(self)), tokenizer)


def captions_of(data: Any) -> list[str]:
    """The captions of a `PairData`, of a `datasets.Dataset` or of a sequence of rows; images are not touched.

    Raises:
        ValueError: A row of a `PairData` has no caption; the message names it.
    """
    if isinstance(data, PairData):
        return data.source.captions(len(data))
    if _is_table(data):
        data = data.select_columns(["caption"])
    return [row["caption"] for row in data]


def token_counts(data: Any, processor: Any) -> list[int]:
    """The tokens of each caption of `captions_of` as the model reads it, cut at its length.

    Raises:
        ValueError: There is no processor.
    """
    if processor is None:
        raise ValueError(
            "`train_sampling_strategy=group_by_length` counts tokens: `processing_class` must be the model's "
            "FastGoalProcessor, got None."
        )
    if isinstance(data, PairData) and data.tokens:
        return data.tokens.lengths
    captions, counts = captions_of(data), list[int]()
    for start in range(0, len(captions), READ_AT_ONCE):
        portion = list(captions[start : start + READ_AT_ONCE])
        counts += map(len, processor.tokenizer(portion, truncation=True)["input_ids"])
    return counts


def has_short_captions(data: Any) -> bool:
    """Whether the rows of a `PairData`, a stream, a `datasets.Dataset` or a sequence have short captions at all."""
    columns = getattr(getattr(data, "source", None), "columns", None) or getattr(data, "column_names", None)
    if columns is not None:
        return SHORT_CAPTIONS in columns
    return isinstance(data, Sequence) and any(isinstance(row, Mapping) and row.get(SHORT_CAPTIONS) for row in data)


def check_rows(data: Any, name: str, needs_pairs: bool) -> None:
    """Check that each row has what `FastGoalCollator` reads; of datasets on the disk only the columns that tell.

    Streams, and datasets of other kinds, are not looked into: the collator names the row that it stops at.

    Args:
        data: A `PairData`, a `datasets.Dataset`, a sequence of rows, a dict of such by name, or None.
        name: What to call it in messages.
        needs_pairs: Whether each row must have local pairs.

    Raises:
        TypeError: The data are a single row, or a row is no dict.
        ValueError: A row has no image, no caption or no local pairs; the message names the first and says how many.
    """
    if isinstance(data, Mapping):
        if "image" in data or "caption" in data:
            raise TypeError(f"`{name}` must be rows, a list of dicts or a dataset, got a single row: pass `[row]`.")
        for key, part in data.items():
            check_rows(part, f"{name}[{key!r}]", needs_pairs)
    elif isinstance(data, PairData | Sequence) or _is_table(data):
        # A source has found both columns when it was opened, and checks them row by row.
        for key in () if isinstance(data, PairData) else ("image", "caption"):
            _refuse_lacking(data, key, name, f"`{key}`", "Each must be a dict with `image` and `caption`")
        if needs_pairs:
            way_out = (
                "This objective trains on them: make them with `fastgoal pairs SOURCE --output DIR --model CLIP` or "
                "`processor.pair_rows(images, captions, model)`, leave such rows out, or train with the objective "
                "global or sparc, which need none"
            )
            _refuse_lacking(data, "pairs", name, "local pairs", way_out)


def _refuse_lacking(data: Any, key: str, name: str, what: str, way_out: str) -> None:
    lacking = [index for index, held in enumerate(_holds(data, key)) if not held]
    if lacking:
        raise ValueError(
            f"`{name}`: {len(lacking):,} of {len(data):,} rows have no {what}; the first is "
            f"{_where(data, lacking[0])}. {way_out}."
        )


def _holds(data: Any, key: str) -> Iterator[bool]:
    """For each row whether it has the key, with a value; a list of pairs must not be empty."""
    table = data
    if isinstance(data, PairData) and isinstance(data.source, DatasetSource):
        table = data.source.dataset
    if not isinstance(table, datasets.Dataset):
        for index in range(len(data)):
            row = data[index]
            if not isinstance(row, Mapping):
                raise TypeError(f"Row {index} must be a dict with `image` and `caption`, got a {type(row).__name__}.")
            yield bool(row.get(key)) if key == "pairs" else row.get(key) is not None
        return
    schema = table.features.arrow_schema
    if key not in schema.names or (key == "pairs" and not hasattr(schema.field(key).type, "value_type")):
        yield from [False] * len(data)
    elif key == "pairs":
        table = table.select_columns([key]).with_format("arrow").select(range(len(data)))
        for part in table.iter(READ_AT_ONCE):
            yield from (bool(length) for length in pyarrow.compute.list_value_length(part[key]).to_pylist())


def _is_table(data: Any) -> bool:
    """Whether this is a dataset of `datasets` whose rows are its columns, and not made of them by a function."""
    return isinstance(data, datasets.Dataset) and data.format["type"] != "custom"


def _where(data: Any, index: int) -> str:
    """A row in words."""
    if isinstance(data, PairData):
        return data.source.label(index)
    table = data.remove_columns("image") if _is_table(data) and "image" in data.column_names else data
    name = table[index].get("file_name")
    return f"row {index} ({name})" if name else f"row {index}"
