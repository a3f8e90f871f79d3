"""The card of a pairs dataset: figures, settings, licenses, what wrote the captions, and a sheet of sample rows."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from fastgoal.processing.data.pairs_dataset import MANIFEST, PairsFolder
from fastgoal.processing.data.sources import CAPTIONS_MANIFEST, load_source
from fastgoal.processing.data.statistics import inspect_pairs
from fastgoal.processing.data.tokens import USUAL_TOKENIZERS, TokenCounter
from fastgoal.processing.detectors.spec import DetectorSpec

from .cards import CARD, card_name, is_hub_id, public_name, public_weights, rename_card, save_pairs_sheet, write_card

SAMPLES = 3
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))
# Hash of the card as it was written here: one with another hash has been worked on, and is not written over.
CARD_MARK = Path(".fastgoal", "card.json")
# Settings that say where the data lay, and those that are in the words for the detector.
NOT_LISTED = (
    *("source_rows", "source_fingerprint", "image_column", "caption_column"),
    *("min_score", "min_area", "max_area"),
)


@dataclass(frozen=True)
class CaptionerFacts:
    """What wrote the captions of a dataset.

    Attributes:
        model: Hub id or a folder's last name.
        prompt: What it was asked.
        source: Where the images come from: a Hub id or a folder's last name.
        settings: Of `fastgoal caption` that the text depends on, by name.
        captions: How many it wrote.
        cut: How many reached the token limit.
    """

    model: str
    prompt: str
    source: str
    settings: dict[str, Any]
    captions: int
    cut: int

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str]) -> "CaptionerFacts":
        """The facts of a folder that `fastgoal caption` wrote; a `ValueError` if it is none, or was not finished."""
        manifest = _finished(
            Path(folder) / CAPTIONS_MANIFEST, f"captions='{folder}' is not a finished folder of `fastgoal caption`."
        )
        settings, summary = manifest["settings"], manifest["summary"]
        sampled = "temperature {temperature}, top-p {top_p}, seed {seed}".format_map(settings)
        return cls(
            model=public_weights(settings["model"]),
            prompt=settings["prompt"],
            source=public_name(manifest["source"]),
            settings={
                "decoding": sampled if settings["temperature"] > 0 else "greedy",
                "most tokens": settings["max_new_tokens"],
                "number format": settings["dtype"],
            },
            captions=summary["images"],
            cut=summary["cut"],
        )


@dataclass(frozen=True)
class DataFacts:
    """What the card of a pairs dataset says.

    Attributes:
        name: Hub id, or the folder's last name.
        source: Where images and captions come from: a Hub id or a folder's last name.
        figures: Of `inspect_pairs`: what was counted in the rows.
        settings: Of `fastgoal pairs`, by name.
        license: Identifier as on the Hub; None if nobody stated it.
        image_license: Of the images, in words, where it was stated.
        caption_license: Likewise of the captions.
        tokenizer: Name of the tokenizer that counted, where one did.
        captioner: What wrote the captions, where `fastgoal caption` did.
        pictures: Path of a sheet of sample rows inside the folder.
    """

    name: str
    source: str
    figures: Mapping[str, Any]
    settings: Mapping[str, Any]
    license: str | None = None
    image_license: str | None = None
    caption_license: str | None = None
    tokenizer: str | None = None
    captioner: CaptionerFacts | None = None
    pictures: str | None = None

    @classmethod
    def of_folder(
        cls, folder: str | os.PathLike[str] | PairsFolder, counter: TokenCounter | None = None, **facts: Any
    ) -> "DataFacts":
        """The facts of what `fastgoal pairs` wrote, beside those given by name.

        Args:
            folder: A folder, or one from `open_finished`; see there for what is wrong with it.
            counter: Counts the captions' tokens; None leaves them out.
            **facts: Attributes.
        """
        opened = folder if isinstance(folder, PairsFolder) else open_finished(Path(folder))
        captioner = facts.get("captioner")
        return cls(
            **{
                "name": card_name(opened.folder.resolve().name),
                "source": captioner.source if captioner else public_name(opened.manifest["source"]),
                "figures": inspect_pairs(opened, counter, repetitions=False),
                "settings": _public_settings(opened.manifest["settings"]),
                "tokenizer": None if counter is None else public_name(counter.name),
                **facts,
            }
        )


def write_data_card(folder: str | os.PathLike[str], facts: DataFacts) -> Path:
    """Write `README.md`, with its metadata, into a pairs dataset's folder; returns its path."""
    data = DatasetCardData(
        license=facts.license,
        size_categories=[next((name for limit, name in SIZES if facts.figures["rows"] < limit), "n>10M")],
        task_categories=["zero-shot-image-classification", "image-feature-extraction"],
        tags=["image-text-retrieval", "long-captions", "fast-goal", "fastgoal"],
        pretty_name=facts.name.split("/")[-1],
        source_datasets=[facts.source] if is_hub_id(facts.source) else None,
        annotations_creators=["machine-generated"],
        # Said, not left to be guessed: there is a picture beside the data.
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    return write_card(folder, "data_card.md", data, facts)


def prepare_data_card(
    folder: str | os.PathLike[str],
    repo: str,
    license: str,
    image_license: str | None = None,
    caption_license: str | None = None,
    captions: str | os.PathLike[str] | None = None,
    tokenizer: str | None = USUAL_TOKENIZERS[0],
) -> bool:
    """Write the card of a folder that `fastgoal pairs` wrote, with figures, licenses and a sheet of sample rows.

    Args:
        folder: See `open_finished`.
        repo: Id on the Hub that the card names.
        license: Of the dataset as a whole: an identifier of the Hub such as `cc-by-4.0`.
        image_license: Of the images, in words, if it is another; likewise `caption_license`.
        caption_license: Of the captions.
        captions: See `find_captioner`.
        tokenizer: Folder or Hub id that CLIP's tokens are counted with; None leaves them out.

    Returns:
        Whether the card was written. One that somebody changed by hand is kept.

    Raises:
        ValueError: The folder, the license or the folder of captions is not what it should be.
        OSError: The tokenizer could not be loaded.
    """
    folder = Path(folder)
    if not LICENSE.fullmatch(license):
        raise ValueError(
            f"license='{license}'; expected an identifier of the Hub in small letters, such as cc-by-4.0, "
            "cc-by-nc-4.0, cc0-1.0 or other. Words go into image_license and caption_license (--image-license, "
            "--caption-license)."
        )
    opened = open_finished(folder)
    card, mark = folder / CARD, folder / CARD_MARK
    if card.exists() and _hash(card) != (json.loads(mark.read_bytes())["hash"] if mark.exists() else None):
        return False
    facts = DataFacts.of_folder(
        opened,
        None if tokenizer is None else TokenCounter(tokenizer),
        name=repo,
        license=license,
        image_license=image_license,
        caption_license=caption_license,
        captioner=find_captioner(opened, captions),
        pictures=save_pairs_sheet(folder, sample_rows(opened, SAMPLES)),
    )
    write_data_card(folder, facts)
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(json.dumps({"hash": _hash(card)}) + "\n", encoding="utf-8")
    return True


def open_finished(folder: Path) -> PairsFolder:
    """A folder that `fastgoal pairs` wrote; a `ValueError` if it is none, unfinished, or lacks rows that it had."""
    refusal = f"folder='{folder}' is not a finished dataset of `fastgoal pairs`; run that command first."
    images = _finished(folder / MANIFEST, refusal)["summary"]["images"]
    opened = PairsFolder(folder)
    if len(opened) != images:
        raise ValueError(
            f"folder='{folder}' has {len(opened)} rows in data/*.parquet, and its summary speaks of {images}. Run "
            "`fastgoal pairs` again: it makes the shards that are missing."
        )
    return opened


def find_captioner(pairs: PairsFolder, captions: str | os.PathLike[str] | None = None) -> CaptionerFacts | None:
    """What wrote the captions of a pairs dataset; None if its source is not there or has others.

    `captions` is a folder that `fastgoal caption` wrote, by default the source of the pairs. One that is given and is
    not what the pairs were made from is a `ValueError`.
    """
    source = Path(captions or pairs.manifest["source"])
    if captions is None and not (source / CAPTIONS_MANIFEST).is_file():
        return None
    facts = CaptionerFacts.of_folder(source)
    if load_source(source).fingerprint == pairs.manifest["settings"].get("source_fingerprint"):
        return facts
    if captions is None:
        return None
    raise ValueError(
        f"captions='{captions}' holds other captions or images than those that '{pairs.folder}' was made from. Name "
        "the folder that `fastgoal pairs` read, as it was then."
    )


def sample_rows(folder: PairsFolder, count: int) -> list[dict[str, Any]]:
    """Some rows of a pairs dataset, evenly spaced."""
    return [row for _, row in folder.read(range(0, len(folder), max(1, len(folder) // count))[:count])]


def _finished(path: Path, refusal: str) -> dict[str, Any]:
    """The manifest of a finished run; raises `ValueError` with the refusal where there is none."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        manifest = {}
    if "summary" not in manifest:
        raise ValueError(refusal)
    return manifest


def _public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a manifest that are worth telling, without names of folders; the detector in words."""
    detector = DetectorSpec.from_settings(settings)
    revision = detector.weights.partition("#")[0].partition("@")[2]
    told = {
        "model": public_weights(str(settings["model"])),
        "detector": f"{detector}, revision {revision}" if revision else str(detector),
    }
    return {
        name: told.get(name, value) for name, value in settings.items() if value is not None and name not in NOT_LISTED
    }


def _hash(card: Path) -> str:
    """Of a card's text, whichever repository it names: pushing puts the repository's full name into it."""
    return hashlib.sha256(rename_card(card.read_text(encoding="utf-8"), "owner/name").encode()).hexdigest()
