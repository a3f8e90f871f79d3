"""The card of a pairs dataset: figures, settings, licenses, the model that wrote the captions, and sample rows."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from fastgoal.processing.data.forms.metadata import CAPTIONS_MANIFEST
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.pairs_dataset import MANIFEST, PairsFolder
from fastgoal.processing.data.statistics import inspect_pairs
from fastgoal.processing.data.tokens import TokenCounter
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.files import WORK_FOLDER, write_inside

from .access import check_repo_name
from .cards import (
    CARD,
    PAIRS_IMAGE,
    check_license,
    is_hub_id,
    pairs_image,
    public_name,
    public_weights,
    rename_card,
    render_card,
    spread,
)

SAMPLES = 3
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))
# Holds the hash of the card that was written. A card with another hash was edited, and is not overwritten.
CARD_MARK = f"{WORK_FOLDER}/card.json"
NOT_LISTED = ("source_rows", "source_fingerprint", "image_column", "caption_column")  # they tell where the data was


@dataclass(frozen=True)
class CaptionerFacts:
    """How the captions of a dataset were generated.

    Attributes:
        model: Hub id of the model, or the last name of its folder.
        prompt: The prompt.
        source: Where the images come from: a Hub id, or the last name of a folder.
        settings: Settings of `fastgoal caption` that the text depends on, by name.
        captions: Number of captions.
        cut: Number of captions that reached the token limit.
    """

    model: str
    prompt: str
    source: str
    settings: dict[str, Any]
    captions: int
    cut: int

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str]) -> "CaptionerFacts":
        """Read the facts of an output folder of `fastgoal caption`.

        Raises:
            ValueError: The folder is not one, or the command did not finish.
        """
        manifest = _read_finished(
            Path(folder) / CAPTIONS_MANIFEST,
            f"`captions` must be a finished output folder of `fastgoal caption`, got '{folder}'.",
        )
        settings, summary = manifest["settings"], manifest["summary"]
        sampling = "temperature {temperature}, top-p {top_p}, seed {seed}".format_map(settings)
        return cls(
            model=public_weights(settings["model"]),
            prompt=settings["prompt"],
            source=public_name(manifest["source"]),
            settings={
                "decoding": sampling if settings["temperature"] > 0 else "greedy",
                "max_new_tokens": settings["max_new_tokens"],
                "dtype": settings["dtype"],
            },
            captions=summary["images"],
            cut=summary["cut"],
        )


@dataclass(frozen=True)
class DataFacts:
    """What the card of a pairs dataset says.

    Attributes:
        name: Hub id, or the last name of the folder.
        source: Where images and captions come from: a Hub id, or the last name of a folder.
        figures: What `inspect_pairs` counts in the rows.
        settings: Settings of `fastgoal pairs`, by name.
        license: License of the dataset, an identifier of the Hub; None if nobody stated one.
        image_license: License of the images in words, if stated.
        caption_license: License of the captions in words, if stated.
        tokenizer: Name of the tokenizer that counted tokens, if one did.
        captioner: How the captions were generated, if `fastgoal caption` wrote them.
        pairs_image: Path inside the folder of an image that shows sample rows.
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
    pairs_image: str | None = None

    @classmethod
    def of_folder(
        cls, folder: PairsFolder, counter: TokenCounter | None = None, stored_tokens: bool = False, **facts: Any
    ) -> "DataFacts":
        """Gather the facts of an output folder of `fastgoal pairs`; `facts` are others, by attribute.

        Args:
            folder: The folder; see `open_finished`.
            counter: Counts the tokens of captions; None leaves them out.
            stored_tokens: Use the numbers of tokens in the folder, if it has them.
            **facts: Attributes.
        """
        captioner = facts.get("captioner")
        return cls(
            **{
                "name": public_name(str(folder.folder.resolve())),
                "source": captioner.source if captioner else public_name(folder.manifest["source"]),
                "figures": inspect_pairs(folder, counter, repetitions=False, stored_tokens=stored_tokens),
                "settings": _public_settings(folder.manifest["settings"]),
                "tokenizer": public_name(counter.name)
                if counter is not None
                else public_weights(str(folder.manifest["settings"]["model"])),
                **facts,
            }
        )


def render_data_card(facts: DataFacts) -> str:
    """Return the text of a dataset card with its metadata."""
    data = DatasetCardData(
        license=facts.license,
        size_categories=[next((name for limit, name in SIZES if facts.figures["rows"] < limit), "n>10M")],
        task_categories=["zero-shot-image-classification", "image-feature-extraction"],
        tags=["image-text-retrieval", "long-captions", "fast-goal", "fastgoal"],
        pretty_name=facts.name.split("/")[-1],
        source_datasets=[facts.source] if is_hub_id(facts.source) else None,
        annotations_creators=["machine-generated"],
        # Without this, loaders might take the image of sample rows for data.
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    return render_card("data_card.md", data, facts)


def prepare_data_card(
    folder: str | os.PathLike[str],
    repo: str,
    license: str,
    image_license: str | None = None,
    caption_license: str | None = None,
    captions: str | os.PathLike[str] | None = None,
    tokenizer: str | None = None,
) -> dict[str, bytes]:
    """Make the card of an output folder of `fastgoal pairs`, with figures, licenses and an image of sample rows.

    Args:
        folder: See `open_finished`.
        repo: Hub id that the card names.
        license: License of the dataset, an identifier of the Hub such as `cc-by-4.0`.
        image_license: License of the images in words, if different.
        caption_license: License of the captions in words, if different.
        captions: See `find_captioner`.
        tokenizer: Folder or Hub id of the tokenizer that counts tokens, or "none" to leave them out. None for the
            numbers that `fastgoal pairs` stored.

    Returns:
        The files of the card by their paths in the folder, for `push` and `save_data_card`. Empty if the card of the
        folder was edited by hand: it stays unchanged.

    Raises:
        ValueError: The folder, the license or the folder of captions is not valid, or the tokenizer cannot be loaded.
    """
    folder = Path(folder)
    check_repo_name(repo)
    check_license(license, " Free text goes into `image_license` and `caption_license`.")
    opened = open_finished(folder)
    card, mark = folder / CARD, folder / CARD_MARK
    if card.exists() and _hash(card.read_bytes()) != (json.loads(mark.read_bytes())["hash"] if mark.exists() else None):
        return {}
    facts = DataFacts.of_folder(
        opened,
        None if tokenizer in (None, "none") else TokenCounter(str(tokenizer)),
        stored_tokens=tokenizer is None,
        name=repo,
        license=license,
        image_license=image_license,
        caption_license=caption_license,
        captioner=find_captioner(opened, captions),
        pairs_image=PAIRS_IMAGE,
    )
    return {CARD: render_data_card(facts).encode(), PAIRS_IMAGE: pairs_image(sample_rows(opened))}


def save_data_card(folder: str | os.PathLike[str], files: Mapping[str, bytes]) -> None:
    """Write the files of `prepare_data_card` into the folder.

    Raises:
        ValueError: A folder in it is a link that leads out of it.
    """
    mark = json.dumps({"hash": _hash(files[CARD])}).encode() + b"\n"
    for name, data in {**files, CARD_MARK: mark}.items():
        write_inside(folder, name, data)


def open_finished(folder: Path) -> PairsFolder:
    """Open an output folder of `fastgoal pairs`.

    Raises:
        ValueError: The folder is not one, the command did not finish, or rows are missing.
    """
    refusal = f"`folder` must be a finished output folder of `fastgoal pairs`, got '{folder}'. Run that command first."
    images = _read_finished(folder / MANIFEST, refusal)["summary"]["images"]
    opened = PairsFolder(folder)
    if len(opened) != images:
        raise ValueError(
            f"{folder}: data/*.parquet has {len(opened)} rows, but `fastgoal pairs` wrote {images}. Run that command "
            "again to write the missing files."
        )
    return opened


def find_captioner(pairs: PairsFolder, captions: str | os.PathLike[str] | None = None) -> CaptionerFacts | None:
    """Return how the captions of a pairs dataset were generated; None if that is unknown.

    Args:
        pairs: The dataset.
        captions: Output folder of `fastgoal caption`. None looks for it where `fastgoal pairs` read it.

    Raises:
        ValueError: `captions` is not such a folder, or the pairs were made from other captions.
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
        f"`captions` must be the folder that '{pairs.folder}' was made from, unchanged, got '{captions}' with other "
        "captions or images."
    )


def sample_rows(folder: PairsFolder) -> list[dict[str, Any]]:
    """Return some rows of a pairs dataset, evenly spaced."""
    return [row for _, row in folder.read(spread(range(len(folder)), SAMPLES))]


def _read_finished(path: Path, refusal: str) -> dict[str, Any]:
    """Read the manifest of a finished run; raise a `ValueError` with the refusal if there is none."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        manifest = {}
    if "summary" not in manifest:
        raise ValueError(refusal)
    return manifest


def _public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a manifest for the card, without names of folders and with the detector in words."""
    detector = DetectorSpec.from_settings(settings)
    revision = detector.weights.partition("#")[0].partition("@")[2]
    shown = {
        **settings,
        "model": public_weights(str(settings["model"])),
        "detector": f"{detector}, revision {revision}" if revision else str(detector),
    }
    return {name: value for name, value in shown.items() if value is not None and name not in NOT_LISTED}


def _hash(card: bytes) -> str:
    """Hash the text of a card without the name of its repository, which a push completes."""
    return hashlib.sha256(rename_card(card.decode("utf-8"), "owner/name").encode()).hexdigest()
