"""Tokens of captions with their positions in the text, stored compactly and padded to batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastgoal.processing.tokens import padded_length, padding_of, tokens_with_spans

CHUNK = 10_000


class CaptionTokens(NamedTuple):
    """The tokens of one caption, without padding.

    Attributes:
        ids: `(tokens,)`.
        spans: `(tokens, 2)`, start and end of each token in characters of the caption.
        special: `(tokens,)` bool, True for BOS and EOS.
    """

    ids: NDArray[Any]
    spans: NDArray[Any]
    special: NDArray[Any]


class TokenTable(Sequence[CaptionTokens]):
    """The `CaptionTokens` of many captions, in three arrays that the workers of a data loader share.

    A token takes 7 bytes, so 100,000 captions take about 100 MB.

    Args:
        captions: The captions.
        tokenizer: The model's tokenizer, which truncates them at its `model_max_length`.

    Attributes:
        lengths: The number of tokens of each caption.
    """

    def __init__(self, captions: Sequence[str], tokenizer: Any):
        ids, spans, special = [], [], []
        self.lengths: list[int] = []
        for start in range(0, len(captions), CHUNK):
            encoded = tokens_with_spans(tokenizer, captions[start : start + CHUNK])
            self.lengths += map(len, encoded["input_ids"])
            ids.append(np.concatenate([np.array(row, np.int32) for row in encoded["input_ids"]]))
            spans.append(np.concatenate([np.array(row, np.int32) for row in encoded["offset_mapping"]]))
            special.append(np.concatenate([np.array(row, np.bool_) for row in encoded["special_tokens_mask"]]))
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._columns = [_compact(np.concatenate(parts)) for parts in (ids, spans, special)]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        tokens = slice(self._starts[index], self._starts[index + 1])
        return CaptionTokens(*(column[tokens] for column in self._columns))


def pad_tokens(captions: Sequence[CaptionTokens], tokenizer: Any, multiple: int = 1) -> dict[str, torch.Tensor]:
    """Pad captions on the right, as the tokenizer does; `multiple` is that of `padded_length`.

    Returns:
        `input_ids` `(captions, tokens)`, `offset_mapping` `(captions, tokens, 2)`, `special_tokens_mask` `(captions,
        tokens)` and, if the model takes one, `attention_mask` `(captions, tokens)`.
    """
    shape = (len(captions), padded_length(tokenizer, max(len(row.ids) for row in captions), multiple))
    arrays = {
        "input_ids": np.full(shape, tokenizer.pad_token_id, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
        "offset_mapping": np.zeros((*shape, 2), np.int64),
        "special_tokens_mask": np.ones(shape, np.int64),
    }
    for number, row in enumerate(captions):
        values: tuple[Any, ...] = (row.ids, 1, row.spans, row.special)
        for array, value in zip(arrays.values(), values, strict=True):
            array[number, : len(row.ids)] = value
    if padding_of(tokenizer) is not True:
        del arrays["attention_mask"]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _compact(values: NDArray[Any]) -> NDArray[Any]:
    """Store integers in 16 bits if they fit."""
    return values.astype(np.uint16) if values.dtype == np.int32 and values.max() < 2**16 else values
