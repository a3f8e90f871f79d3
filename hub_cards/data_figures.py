"""Figures of a pairs data set, counted in its parquet files, and the data card that tells of them.

Only the columns of text and numbers are read, never all images, so a large data set takes seconds and little memory.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from fastgoal.processing.data.sources import CAPTIONS_MANIFEST, open_source

from .cards import (
    CARD,
    CaptionerFacts,
    DataFacts,
    DataFigures,
    Spread,
    public_name,
    rename_card,
    save_pairs_sheet,
    write_data_card,
)

CLIP_TOKENIZER = "openai/clip-vit-base-patch16"
# What CLIP reads, and what it reads once stretched.
TOKEN_LIMITS = (77, 248)
SAMPLES = 3
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
# Hash of the card as it was written here: one with another hash has been worked on, and is not written over.
CARD_MARK = Path(".fastgoal", "card.json")


def prepare_data_card(
    folder: str | os.PathLike[str],
    repo: str,
    license: str,
    image_license: str | None = None,
    caption_license: str | None = None,
    captions: str | os.PathLike[str] | None = None,
    tokenizer: str | None = CLIP_TOKENIZER,
) -> bool:
    """Write the card of a folder that `fastgoal pairs` wrote, with figures, licences and a sheet of sample rows.

    Args:
        folder: What `fastgoal pairs` wrote; finished.
        repo: Id on the Hub that the card names.
        license: Of the data set as a whole: an identifier of the Hub such as `cc-by-4.0`.
        image_license: Of the images, in words, if it is another.
        caption_license: Of the captions, in words, if it is another.
        captions: Folder that `fastgoal caption` wrote; by default the one that the pairs were made from, if it is
            still there.
        tokenizer: Folder or Hub id that CLIP's tokens are counted with; None leaves them out.

    Returns:
        Whether the card was written. One that somebody changed by hand is kept.

    Raises:
        ValueError: The folder, the licence or the folder of captions is not what it should be.
        OSError: The tokenizer could not be loaded.
    """
    folder = Path(folder)
    if not LICENSE.fullmatch(license):
        raise ValueError(
            f"license='{license}'; expected an identifier of the Hub in small letters, such as cc-by-4.0, "
            "cc-by-nc-4.0, cc0-1.0 or other. Words go into image_license and caption_license (--image-license, "
            "--caption-license)."
        )
    facts = DataFacts.of_folder(folder)
    rows = sum(file.metadata.num_rows for file in _files(folder))
    if rows != facts.images:
        raise ValueError(
            f"folder='{folder}' has {rows} rows in data/*.parquet, and its summary speaks of {facts.images}. Run "
            "`fastgoal pairs` again: it makes the shards that are missing."
        )
    card, mark = folder / CARD, folder / CARD_MARK
    if card.exists() and _hash(card) != (json.loads(mark.read_bytes())["hash"] if mark.exists() else None):
        return False
    facts = DataFacts.of_folder(
        folder,
        license,
        name=repo,
        image_license=image_license,
        caption_license=caption_license,
        figures=measure(folder, None if tokenizer is None else load_counter(tokenizer), tokenizer),
        captioner=find_captioner(folder, captions),
        pictures=save_pairs_sheet(folder, sample_rows(folder, SAMPLES)),
    )
    write_data_card(folder, facts)
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(json.dumps({"hash": _hash(card)}) + "\n", encoding="utf-8")
    return True


def measure(
    folder: str | os.PathLike[str],
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    tokenizer: str | None = None,
) -> DataFigures:
    """Lengths of the captions and scores of the pairs of a folder that `fastgoal pairs` wrote.

    Args:
        folder: With `data/*.parquet`, not without a row.
        count_tokens: Gives the number of CLIP's tokens of each text, start and end included; None leaves them out.
        tokenizer: Name of what counts them.
    """
    words: list[int] = []
    sentences: list[int] = []
    tokens: list[int] = []
    scores: list[float] = []
    best: list[float] = []
    for file in _files(Path(folder)):
        for batch in file.iter_batches(columns=["caption", "sentences", "pairs"]):
            rows = batch.to_pylist()
            captions = [row["caption"] for row in rows]
            words += [len(caption.split()) for caption in captions]
            sentences += [len(row["sentences"]) for row in rows]
            if count_tokens is not None:
                tokens += count_tokens(captions)
            for row in rows:
                scores += [pair["score"] for pair in row["pairs"]]
                best += [pair["score"] for pair in row["pairs"] if pair["best"]]
    return DataFigures(
        words=_spread(words),
        sentences=_spread(sentences),
        score=fmean(scores),
        best_score=fmean(best),
        tokens=_spread(tokens) if tokens else None,
        tokenizer=public_name(tokenizer) if tokens and tokenizer else None,
        longer={limit: fmean(count > limit for count in tokens) for limit in TOKEN_LIMITS} if tokens else {},
    )


def load_counter(name: str) -> Callable[[list[str]], list[int]]:
    """Counts the tokens of texts, start and end included.

    Raises:
        OSError: The tokenizer is not there, or cannot be reached.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"the tokenizer '{name}', which counts the captions' CLIP tokens, could not be loaded: {reason} Name "
            "another with --tokenizer, the folder of any CLIP will do, or leave the count out: --tokenizer none."
        ) from None
    return lambda texts: [
        len(ids) for ids in tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    ]


def find_captioner(
    folder: str | os.PathLike[str], captions: str | os.PathLike[str] | None = None
) -> CaptionerFacts | None:
    """What wrote the captions of a pairs data set; None if its source is not there or has others.

    Args:
        folder: What `fastgoal pairs` wrote.
        captions: Folder that `fastgoal caption` wrote; by default the source of the pairs.

    Raises:
        ValueError: `captions` was given, and is not what the pairs were made from.
    """
    manifest = json.loads((Path(folder) / "fastgoal_pairs.json").read_bytes())
    source = Path(captions or manifest["source"])
    if captions is None and not (source / CAPTIONS_MANIFEST).is_file():
        return None
    facts = CaptionerFacts.of_folder(source)
    if open_source(source).fingerprint != manifest["settings"].get("source_fingerprint"):
        if captions is None:
            return None
        raise ValueError(
            f"captions='{captions}' holds other captions or images than those that '{folder}' was made from. Name the "
            "folder that `fastgoal pairs` read, as it was then."
        )
    return facts


def sample_rows(folder: str | os.PathLike[str], count: int) -> list[dict[str, Any]]:
    """Some rows of a pairs data set, evenly spaced, without reading more than the row groups that they are in."""
    files = _files(Path(folder))
    groups = [
        (file, group, row)
        for file in files
        for group in range(file.metadata.num_row_groups)
        for row in range(file.metadata.row_group(group).num_rows)
    ]
    chosen = groups[:: max(1, len(groups) // count)][:count]
    return [file.read_row_group(group).slice(row, 1).to_pylist()[0] for file, group, row in chosen]


def _files(folder: Path) -> list[Any]:
    import pyarrow.parquet

    return [pyarrow.parquet.ParquetFile(path) for path in sorted((folder / "data").glob("*.parquet"))]


def _spread(values: list[int]) -> Spread:
    return Spread(fmean(values), median(values), max(values))


def _hash(card: Path) -> str:
    """Of a card's text, whichever repository it names: pushing puts the repository's full name into it."""
    return hashlib.sha256(rename_card(card.read_text(encoding="utf-8"), "owner/name").encode()).hexdigest()
