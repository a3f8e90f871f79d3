"""Token ids of texts, padded as the model needs them, and the spans of tokens in their texts.

This file is saved with every checkpoint.
"""

import os
import shutil
import string
import unicodedata
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch

SIGLIP_TOKENS = 64
# Options of earlier calls that transformers keeps in a tokenizer and its files, where processors look for defaults.
REMEMBERED = ("max_length", "truncation", "truncation_strategy", "stride", "padding", "pad_to_multiple_of")


def set_text_length(tokenizer: Any, length: int, keep: Container[str] = ()) -> None:
    """Make `length` the number of tokens that a tokenizer truncates texts to, and clear the options of earlier calls.

    A tokenizer that was saved after a call with `max_length` remembers it, and processors prefer it to
    `model_max_length`.

    Args:
        tokenizer: The tokenizer, which is changed in place.
        length: Number of tokens, BOS and EOS included.
        keep: Names of options that are not cleared.
    """
    tokenizer.model_max_length = length
    for name in REMEMBERED:
        if name not in keep:
            tokenizer.init_kwargs.pop(name, None)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


def save_vocabulary(tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Write the vocabulary of a tokenizer as programs expect that do not read `tokenizer.json`.

    These are `vocab.json` and `merges.txt` for CLIP. For other families it is the file that the tokenizer was loaded
    from, such as `sentencepiece.bpe.model`, if there is one.

    Args:
        tokenizer: The tokenizer.
        folder: An existing folder.
    """
    source = getattr(tokenizer, "vocab_file", None)
    if type(tokenizer).__name__.startswith("CLIPTokenizer"):
        tokenizer.backend_tokenizer.model.save(os.fspath(folder))
    elif isinstance(source, str) and os.path.isfile(source):
        target = os.path.join(folder, os.path.basename(source))
        if not (os.path.exists(target) and os.path.samefile(source, target)):
            shutil.copyfile(source, target)


def padding_of(tokenizer: Any) -> bool | str:
    """Return the argument `padding` for a tokenizer: True (the longest text), or "max_length" for SigLIP.

    The text tower of SigLIP attends to padding, and so its tokenizer gives no attention mask; see `Family.pools_last`.
    """
    return True if "attention_mask" in tokenizer.model_input_names else "max_length"


def padded_length(tokenizer: Any, longest: int, multiple: int = 1) -> int:
    """Return the length that texts of up to `longest` tokens are padded to.

    This is the next multiple of `multiple` that the model reads, or for SigLIP always the model's length.
    """
    limit = int(tokenizer.model_max_length)
    return limit if padding_of(tokenizer) is not True else min(-(-longest // multiple) * multiple, max(limit, longest))


def pad_ids(
    tokenizer: Any, ids: Sequence[Sequence[int]], are_short: bool = False, multiple: int = 1
) -> dict[str, torch.Tensor]:
    """Pad token ids to `input_ids` `(texts, tokens)` and, if the model takes one, `attention_mask`.

    Args:
        tokenizer: Tokenizer of the model.
        ids: Token ids of each text.
        are_short: Whether the texts are sentences or short captions for training. For SigLIP they are padded to 64
            tokens if they fit, its length before it was stretched, as pipelines pad labels. This costs a quarter of the
            time, and the trained model understands short texts padded to 64 tokens and to its own length.
        multiple: Number that the padded length is a multiple of, unless the model reads fewer tokens; see
            `padded_length`.
    """
    longest = max(map(len, ids), default=0)
    length = padded_length(tokenizer, longest, multiple)
    if are_short and padding_of(tokenizer) is not True and longest <= SIGLIP_TOKENS:
        length = min(length, SIGLIP_TOKENS)
    return dict(tokenizer.pad({"input_ids": list(ids)}, padding="max_length", max_length=length, return_tensors="pt"))


def tokens_with_spans(tokenizer: Any, texts: Sequence[str], truncation: bool = True) -> Mapping[str, list[Any]]:
    """Tokenize texts to `input_ids`, `offset_mapping` and `special_tokens_mask`, without padding.

    Raises:
        ValueError: The tokenizer does not know the spans of its tokens.
    """
    options = {"truncation": truncation, "return_attention_mask": False, "verbose": False}
    if tokenizer.is_fast:
        return dict(tokenizer(list(texts), return_offsets_mapping=True, return_special_tokens_mask=True, **options))
    if not hasattr(tokenizer, "canonicalize_text"):
        raise ValueError(f"A {type(tokenizer).__name__} does not know the spans of its tokens. Use a fast tokenizer.")
    encoded: dict[str, list[Any]] = {"input_ids": tokenizer(list(texts), **options)["input_ids"]}
    spans = [_siglip_spans(tokenizer, text, ids) for text, ids in zip(texts, encoded["input_ids"], strict=True)]
    encoded["offset_mapping"] = [[*of_text, (0, 0)] for of_text in spans]
    encoded["special_tokens_mask"] = [[0] * len(of_text) + [1] for of_text in spans]
    return encoded


def _siglip_spans(tokenizer: Any, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return the spans of the tokens of SigLIP's tokenizer, which reads lower case without punctuation; without EOS."""
    # The same as `canonicalize_text`, with the index of every character that is kept.
    lowered = [(low, i) for i, char in enumerate(text) for low in (char.lower() if tokenizer.do_lower_case else char)]
    kept: list[tuple[str, int]] = []
    for char, index in lowered:
        if char in string.punctuation:
            continue
        if not (char.isspace() or char == "▁"):
            kept.append((char, index))
        elif not kept or kept[-1][0] != " ":
            kept.append((" ", index))
    if kept and kept[-1][0] == " ":
        kept.pop()
    # The tokenizer prepends a mark for the start of the first word, and before it a token that it removes again.
    indices = [index for _, index in kept]
    front = tokenizer.unk_token + "▁"
    spans: list[tuple[int, int]] = []
    start = -len(front)
    for surface in _surfaces(tokenizer.sp_model, front + "".join(char for char, _ in kept)):
        first, last = max(start, 0), start + len(surface) - 1
        start += len(surface)
        if first <= last:
            spans.append((indices[first], indices[last] + 1))
        else:  # a mark alone, or the rest of a character
            index = indices[first] if first < len(indices) else len(text)
            spans.append((index, index))
    return spans[tokenizer.unk_token_length :][: len(ids) - 1]


def _surfaces(model: Any, text: str) -> list[str]:
    """Return the parts of a text that become the pieces of a sentencepiece model."""
    try:
        encoded = model.encode(text, return_type="proto")
    except TypeError:  # before version 0.2.2
        encoded = model.encode(text, out_type="immutable_proto")
    return [piece.surface for piece in encoded.pieces]


def span_masks(
    caption: str, spans: Sequence[tuple[int, int]], offsets: torch.Tensor, special: torch.Tensor
) -> torch.Tensor:
    """Return which tokens of a caption lie in each of its spans, `(spans, tokens)` bool.

    Args:
        caption: The text.
        spans: (start, end) in characters.
        offsets: `(tokens, 2)`, the span of each token in the text.
        special: `(tokens,)`, 1 for BOS, EOS and padding.

    Raises:
        ValueError: A span is not part of the caption.
    """
    for start, end in spans:
        if not 0 <= start < end <= len(caption):
            raise ValueError(
                f"`start` and `end` must be a span of the {len(caption)} characters of the caption, got {start}, {end}."
            )
    bounds = torch.tensor(spans).reshape(-1, 2)
    return (offsets[:, 0] < bounds[:, 1:]) & (offsets[:, 1] > bounds[:, :1]) & (special == 0)


def require_tokens(tokenizer: Any) -> None:
    """Raise `ValueError` for a tokenizer without tokens; transformers makes one if the files are missing."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError("the tokenizer has no tokens: tokenizer.json, or vocab.json and merges.txt, is missing.")


def count_truncated(texts: Sequence[str], tokenizer: Any, limit: int) -> int:
    """Return how many texts have more than `limit` tokens, BOS and EOS included."""
    # Short texts need not be tokenized.
    candidates = [text for text in texts if _most_tokens(text) > limit]
    if not candidates:
        return 0
    ids = tokenizer(candidates, truncation=False, padding=False, verbose=False)["input_ids"]
    return sum(len(row) > limit for row in ids)


def _most_tokens(text: str) -> int:
    """Return an upper bound of the number of tokens of a text, without a tokenizer."""
    # A token covers at least one byte of the normalized text, except BOS, EOS and a mark for the start of a word.
    if text.isascii():
        return len(text) + 3
    # A character keeps its bytes or has those of NFKC. Lower case has at most half as many bytes more.
    return 3 * (len(text.encode()) + len(unicodedata.normalize("NFKC", text).encode())) // 2 + 3
