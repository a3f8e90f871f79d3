"""Counting the tokens of captions, and finding where a model truncates them."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastgoal.modeling_fastgoal.families_fastgoal import CLIP
from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import checkpoint_fingerprint

TOKEN_LIMITS = (CLIP.positions, CLIP.default_length)
# All CLIP models of OpenAI, and most others, share one tokenizer.
USUAL_TOKENIZERS = ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32")


def fitting_length(lengths: Sequence[int], share: float = 0.99) -> int:
    """Return the text length, a multiple of 8, that holds a share of the captions.

    Args:
        lengths: Number of tokens of each caption, at least one.
        share: Share of the captions, from 0 to 1.
    """
    ordered = sorted(lengths)
    longest = int(ordered[math.ceil(share * len(ordered)) - 1])
    return -(-longest // 8) * 8


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, BOS and EOS included, without truncation."""
    encoded = tokenizer(list(texts), truncation=False, padding=False, return_attention_mask=False, verbose=False)
    return [len(ids) for ids in encoded["input_ids"]]


class TokenCounter:
    """Counts tokens with the tokenizer of a model.

    Args:
        name: Folder or Hub id of the model.
        download: Whether to download the tokenizer if it is not in the cache.

    Raises:
        ValueError: The tokenizer cannot be loaded, or has no tokens.
    """

    def __init__(self, name: str, download: bool = True) -> None:
        from transformers import AutoTokenizer

        from fastgoal.processing.tokens import require_tokens

        self.name = name
        way_out = "Name the folder of another model, or use `tokenizer=none` to count no tokens."
        with loading(f"`tokenizer={name}`", way_out=way_out):
            self._tokenizer = AutoTokenizer.from_pretrained(
                name, local_files_only=not download, trust_remote_code=False
            )
            require_tokens(self._tokenizer)
        self._tokenizer.split_special_tokens = True  # as `FastGoalProcessor` reads captions

    def __call__(self, captions: Sequence[str]) -> list[int]:
        """Return the number of tokens of each caption, BOS and EOS included."""
        return count_tokens(self._tokenizer, captions)

    def ends(self, caption: str) -> list[tuple[int, int]]:
        """Return (limit, end in characters of what is read) for each of `TOKEN_LIMITS` that truncates the caption.

        The list is empty for slow tokenizers, which do not know the spans of their tokens.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            return []
        encoded = self._tokenizer(caption, truncation=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in encoded["offset_mapping"]]
        # The last token that is read is EOS.
        return [(limit, ends[limit - 2]) for limit in TOKEN_LIMITS if len(ends) > limit]


def find_counter(
    name: str | None, manifest: Mapping[str, Any], folder: Path | None = None, only_matcher: bool = False
) -> TokenCounter | None:
    """Return the counter for a tokenizer, or for the first likely one that is available without a download.

    Args:
        name: Folder or Hub id of a model, or "none" for no counter. By default that of the model that matched the
            pairs, or the one that OpenAI's CLIP models share.
        manifest: Manifest of the pairs.
        folder: Folder of the pairs. The model is looked for next to it, and in the working folder.
        only_matcher: Look only for the tokenizer of the model that matched the pairs.

    Returns:
        The counter; None if no tokenizer is available.

    Raises:
        ValueError: The tokenizer `name` cannot be loaded.
    """
    if name is not None:
        return None if name == "none" else TokenCounter(name)
    settings = manifest.get("settings")
    matcher = str(settings.get("model", "")) if isinstance(settings, Mapping) else ""
    if "#" in matcher:
        for parent in (Path(), *([] if folder is None else [folder.resolve().parent])):
            model = parent / matcher.partition("#")[0]
            with contextlib.suppress(ValueError, OSError):
                if model.is_dir() and checkpoint_fingerprint(str(model)) == matcher:
                    return TokenCounter(str(model))
    # The manifest names files here `NAME#HASH`, without their folder.
    is_hub_id = "/" in matcher and "#" not in matcher
    others = () if only_matcher else USUAL_TOKENIZERS
    for likely in (*([matcher.partition("@")[0]] if is_hub_id else []), *others):
        with contextlib.suppress(ValueError):
            return TokenCounter(likely, download=False)
    return None
