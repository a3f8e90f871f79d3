"""Counts the tokens of captions as a CLIP does, and says where it stops to read."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import checkpoint_fingerprint

TOKEN_LIMITS = (77, 248)  # of CLIP, and stretched as Long-CLIP does
# All of OpenAI's CLIPs, and most others, share one tokenizer.
USUAL_TOKENIZERS = ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32")


class TokenCounter:
    """Counts with the tokenizer of a CLIP, a folder or Hub id; `download` may ask the network for it.

    Raises:
        ValueError: The tokenizer is not there, has no tokens, or cannot be reached.
    """

    def __init__(self, name: str, download: bool = True) -> None:
        from transformers import AutoTokenizer

        from fastgoal.processing.tokens import require_tokens

        self.name = name
        way_out = (
            "Name another with --tokenizer, the folder of any CLIP will do, or leave the count out: --tokenizer none."
        )
        with loading(f"the tokenizer '{name}', which counts the captions' CLIP tokens,", way_out=way_out):
            self._tokenizer = AutoTokenizer.from_pretrained(
                name, local_files_only=not download, trust_remote_code=False
            )
            require_tokens(self._tokenizer)
        self._tokenizer.split_special_tokens = True  # as `FastGoalProcessor` reads captions

    def __call__(self, captions: Sequence[str]) -> list[int]:
        """The number of tokens of each caption, start and end marks included."""
        encoded = self._tokenizer(
            list(captions), truncation=False, padding=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in encoded["input_ids"]]

    def ends(self, caption: str) -> list[tuple[int, int]]:
        """(limit, end in characters of what is read) for those of `TOKEN_LIMITS` that cut the caption.

        Empty with a slow tokenizer, which does not know the places of its tokens.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            return []
        encoded = self._tokenizer(caption, truncation=False, return_offsets_mapping=True, verbose=False)
        places = [end for _, end in encoded["offset_mapping"]]
        # The last token read is the end mark, which takes the place of a word.
        return [(limit, places[limit - 2]) for limit in TOKEN_LIMITS if len(places) > limit]


def find_counter(name: str | None, manifest: Mapping[str, Any], folder: Path | None = None) -> TokenCounter | None:
    """The tokenizer asked for, else the first one at hand that is likely to be right; None where there is none.

    Args:
        name: Folder or Hub id, or "none"; None looks for that of the model that matched the pairs and for the one that
            OpenAI's CLIPs share, where one of them has been downloaded before.
        manifest: Of the pairs.
        folder: Of the pairs: the model may lie beside it, or in the working folder.

    Raises:
        ValueError: The one asked for cannot be loaded.
    """
    if name is not None:
        return None if name == "none" else TokenCounter(name)
    settings = manifest.get("settings")
    matcher = str(settings.get("model", "")) if isinstance(settings, Mapping) else ""
    if "#" in matcher:
        for place in (Path(), *([] if folder is None else [folder.resolve().parent])):
            beside = place / matcher.partition("#")[0]
            with contextlib.suppress(ValueError, OSError):
                if beside.is_dir() and checkpoint_fingerprint(str(beside)) == matcher:
                    return TokenCounter(str(beside))
    # The manifest names local weights `name#hash`, without their folder; only an OWNER/NAME can be found again.
    found_again = "/" in matcher and "#" not in matcher
    for usual in (*([matcher.partition("@")[0]] if found_again else []), *USUAL_TOKENIZERS):
        with contextlib.suppress(ValueError):
            return TokenCounter(usual, download=False)
    return None
