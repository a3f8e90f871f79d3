"""Texts as token ids: padded as the model wants them, and where each token stands in its text.

This file travels with a checkpoint.
"""

import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import torch

SIGLIP_TOKENS = 64


def padding_of(tokenizer: Any) -> bool | str:
    """The `padding` of a call of the tokenizer: to the longest text, or to the length of the model.

    The latter where the tokenizer is SigLIP's, which gives no mask: the model attends to padding, and a text's
    embedding is what stands at the last position.
    """
    return True if "attention_mask" in tokenizer.model_input_names else "max_length"


def pad_ids(tokenizer: Any, ids: Sequence[Sequence[int]], are_short: bool = False) -> dict[str, torch.Tensor]:
    """`input_ids` `(texts, tokens)` and, where the model takes one, `attention_mask` of texts that are tokenized.

    Args:
        tokenizer: The model's.
        ids: Of each text.
        are_short: They are sentences or short captions to train on: of SigLIP these are padded to the 64 tokens that it
            read before it was stretched, where they fit, as pipelines pad labels. That costs a quarter, and a model so
            trained understands short texts padded to 64 and to its own length.
    """
    if padding_of(tokenizer) is True:
        return dict(tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt"))
    length = tokenizer.model_max_length
    if are_short and max(map(len, ids), default=0) <= SIGLIP_TOKENS:
        length = min(length, SIGLIP_TOKENS)
    found = tokenizer.pad({"input_ids": list(ids)}, padding="max_length", max_length=length, return_tensors="pt")
    return dict(found)


def tokens_with_spans(tokenizer: Any, texts: Sequence[str], truncation: bool = True) -> Mapping[str, list[Any]]:
    """`input_ids`, `offset_mapping` and `special_tokens_mask` of texts, not padded.

    Raises:
        ValueError: The tokenizer cannot tell where its tokens stand.
    """
    more = {"truncation": truncation, "return_attention_mask": False, "verbose": False}
    if tokenizer.is_fast:
        return dict(tokenizer(list(texts), return_offsets_mapping=True, return_special_tokens_mask=True, **more))
    if not hasattr(tokenizer, "canonicalize_text"):
        raise ValueError(
            f"a {type(tokenizer).__name__} cannot tell where its tokens stand in a caption: take a fast tokenizer."
        )
    encoded: dict[str, list[Any]] = {"input_ids": tokenizer(list(texts), **more)["input_ids"]}
    spans = [_siglip_spans(tokenizer, text, ids) for text, ids in zip(texts, encoded["input_ids"], strict=True)]
    encoded["offset_mapping"] = [[*found, (0, 0)] for found in spans]
    encoded["special_tokens_mask"] = [[0] * len(found) + [1] for found in spans]
    return encoded


def _siglip_spans(tokenizer: Any, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Where the tokens of SigLIP's tokenizer stand, EOS left out: it reads texts in lower case without punctuation."""
    # As `canonicalize_text` does it, with the place of every character that is left.
    lowered = [(low, i) for i, char in enumerate(text) for low in (char.lower() if tokenizer.do_lower_case else char)]
    kept: list[tuple[str, int]] = []
    for char, place in lowered:
        if char in string.punctuation:
            continue
        if not (char.isspace() or char == "▁"):
            kept.append((char, place))
        elif not kept or kept[-1][0] != " ":
            kept.append((" ", place))
    if kept and kept[-1][0] == " ":
        kept.pop()
    # The tokenizer puts a mark for the first word's start in front, and a word that it cuts off again before that.
    places = [place for _, place in kept]
    front = tokenizer.unk_token + "▁"
    spans: list[tuple[int, int]] = []
    start = -len(front)
    for surface in _surfaces(tokenizer.sp_model, front + "".join(char for char, _ in kept)):
        first, last = max(start, 0), start + len(surface) - 1
        start += len(surface)
        if first <= last:
            spans.append((places[first], places[last] + 1))
        else:  # a mark alone, or the second half of what was one character
            here = places[first] if first < len(places) else len(text)
            spans.append((here, here))
    return spans[tokenizer.unk_token_length :][: len(ids) - 1]


def _surfaces(model: Any, text: str) -> list[str]:
    """The parts of a text that become the pieces of a sentencepiece model."""
    try:
        found = model.encode(text, return_type="proto")
    except TypeError:  # before 0.2.2
        found = model.encode(text, out_type="immutable_proto")
    return [piece.surface for piece in found.pieces]


def span_masks(
    caption: str, spans: Sequence[tuple[int, int]], offsets: torch.Tensor, special: torch.Tensor
) -> torch.Tensor:
    """Which tokens of a caption lie in which of its spans, `(spans, tokens)` bool.

    Args:
        caption: The text.
        spans: (start, end) in characters.
        offsets: `(tokens, 2)`, where each token stands in the text.
        special: `(tokens,)`, 1 for BOS, EOS and padding.

    Raises:
        ValueError: A span does not lie in the caption.
    """
    for start, end in spans:
        if not 0 <= start < end <= len(caption):
            raise ValueError(
                f"`start` and `end` must be a span of the caption's {len(caption)} characters, got {start}, {end}."
            )
    bounds = torch.tensor(spans).reshape(-1, 2)
    return (offsets[:, 0] < bounds[:, 1:]) & (offsets[:, 1] > bounds[:, :1]) & (special == 0)


def require_tokens(tokenizer: Any) -> None:
    """Raise `ValueError` for a tokenizer without tokens, as transformers makes where their files are missing."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError("there are no tokens: tokenizer.json, or vocab.json and merges.txt, is missing.")


def count_truncated(texts: Sequence[str], tokenizer: Any, limit: int) -> int:
    """Return how many texts have more than `limit` tokens, BOS and EOS included."""
    # A token covers at least one byte of the normalized text, except BOS, EOS and a mark for the start of a word. So
    # short texts need not be tokenized.
    candidates = [text for text in texts if len(unicodedata.normalize("NFKC", text).encode()) + 3 > limit]
    if not candidates:
        return 0
    ids = tokenizer(candidates, truncation=False, padding=False, verbose=False)["input_ids"]
    return sum(len(row) > limit for row in ids)
