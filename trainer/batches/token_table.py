"""The tokens of a dataset's captions, made once for all epochs, with where each stands in its caption."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastgoal.processing.tokens import padding_of, tokens_with_spans

AT_ONCE = 10_000
MADE_TOKENS = "tokens_made"
"""The key of a row under which its table stands, with its number there."""


class TokenTable:
    """Tokens by row, in a few arrays that a data loader's workers share: 7 bytes a token, 100 MB for 100,000 captions.

    Args:
        captions: One for each row.
        tokenizer: The model's. Captions are cut at the length that it has now.

    Attributes:
        lengths: Tokens of each row.
    """

    def __init__(self, captions: Sequence[str], tokenizer: Any):
        self.settings = settings_of(tokenizer)
        ids, spans, special, lengths = [], [], [], []
        for start in range(0, len(captions), AT_ONCE):
            made = tokens_with_spans(tokenizer, captions[start : start + AT_ONCE])
            lengths += [len(row) for row in made["input_ids"]]
            ids.append(np.concatenate([np.array(row, np.int32) for row in made["input_ids"]]))
            spans.append(np.concatenate([np.array(row, np.int32) for row in made["offset_mapping"]]))
            special.append(np.concatenate([np.array(row, np.bool_) for row in made["special_tokens_mask"]]))
        self.lengths = lengths
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._ids, self._spans, self._special = (_small(np.concatenate(parts)) for parts in (ids, spans, special))

    def batch(self, rows: Sequence[int], tokenizer: Any) -> dict[str, torch.Tensor]:
        """What the tokenizer gives for these rows, padded on the right: `input_ids`, `offset_mapping`,
        `special_tokens_mask` and, where the model takes one, `attention_mask`."""
        to_longest = padding_of(tokenizer) is True
        longest = max(self.lengths[row] for row in rows) if to_longest else tokenizer.model_max_length
        ids = np.full((len(rows), longest), tokenizer.pad_token_id, np.int64)
        spans = np.zeros((len(rows), longest, 2), np.int64)
        special = np.ones((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for place, row in enumerate(rows):
            here, length = slice(self._starts[row], self._starts[row + 1]), self.lengths[row]
            ids[place, :length], spans[place, :length] = self._ids[here], self._spans[here]
            special[place, :length], mask[place, :length] = self._special[here], 1
        arrays = {"input_ids": ids, "attention_mask": mask, "offset_mapping": spans, "special_tokens_mask": special}
        if not to_longest:
            del arrays["attention_mask"]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _small(values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in 16 bits, where they fit."""
    return values.astype(np.uint16) if values.dtype == np.int32 and values.max() < 2**16 else values


def settings_of(tokenizer: Any) -> tuple[Any, ...]:
    """What the tokens of a caption depend on, besides the vocabulary."""
    return tokenizer.model_max_length, tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.is_fast
