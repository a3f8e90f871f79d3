"""The page of `fastgoal inspect`, which presents the statistics of `inspect_pairs`."""

import os
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from fastgoal.hub_cards.card_images import Frame, color_at, plain_label, row_figure
from fastgoal.hub_cards.cards import public_name, public_weights
from fastgoal.hub_cards.wording import count, number, percent
from fastgoal.pages.charts import histogram
from fastgoal.pages.render import render
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.pairs_dataset import PairsFolder, is_pairs_folder
from fastgoal.processing.data.statistics import DEFAULT, inspect_pairs
from fastgoal.processing.data.tokens import find_counter
from fastgoal.processing.data.unmatched import UnmatchedRows
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.images import load_image
from fastgoal.trainer.evaluation.measures.caption_quality import mean_cosine

MAX_LINES = 50  # of a list of skipped rows
SOURCE_NAMES = {DEFAULT: "default regions", "column": "boxes in the data", "": "unknown"}

TokenEnds = Callable[[str], list[tuple[int, int]]]


def inspect_dataset(
    source: str | os.PathLike[str],
    *,
    form: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    captions: str | None = None,
    boxes_column: str | None = None,
    box_format: str | None = None,
    box_units: str | None = None,
    language: str | None = None,
    limit: int | None = None,
    allow_outside_files: bool = False,
    tokenizer: str | None = None,
    model: str | None = None,
    rows: int = 12,
    sample: int = 1000,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> tuple[dict[str, Any], str]:
    """Return the statistics of a dataset and the page that shows them with sample rows.

    Args:
        source: Folder that `fastgoal pairs` wrote, or images with captions that `load_source` reads. The other
            arguments up to `limit` are for the latter only.
        form: As for `load_source`, like the next five arguments and `allow_outside_files`. With `form=parquet`, a
            folder that `fastgoal pairs` wrote is read without its pairs.
        boxes_column: Column of boxes to count and to draw. Default: `boxes`, else `objects`, if there is one.
        box_format: `xyxy` or `xywh`; see `regions_from_boxes`. Default: that of the form of the data.
        box_units: `pixels` (default) or `fractions`.
        language: Language code of the captions; by default en.
        limit: Use the first rows only.
        tokenizer: Folder or Hub id of the tokenizer that counts tokens, or "none". By default the numbers that
            `fastgoal pairs` stored, or for other data the tokenizer of `find_counter`.
        model: Model to measure the mean cosine similarity of images and captions with: a folder or a Hub id.
        rows: Number of sample rows.
        sample: Number of rows to measure with the model.
        seed: Seed of both samples.
        device: Device of the model.
        progress: Show progress bars.

    Raises:
        ValueError: The data cannot be read, no row can be used, an argument does not apply to them, or the tokenizer
            or the model cannot be loaded.
    """
    folder, name = Path(source), page_name(Path(source))
    options = {
        "split": split,
        "image_column": image_column,
        "caption_column": caption_column,
        "image_folder": image_folder,
        "captions": captions,
        "boxes_column": boxes_column,
        "box_format": box_format,
        "box_units": box_units,
        "language": language,
        "limit": limit,
    }
    pairs: PairsFolder | UnmatchedRows
    if form is None and is_pairs_folder(folder):
        for option, value in options.items():
            if value is not None:
                raise ValueError(
                    f"`{option}` must be left out for {folder}, which `fastgoal pairs` wrote, got {value!r}. To read "
                    "it without its pairs, use `form=parquet`."
                )
        pairs = PairsFolder(folder)
    else:
        loaded_source = load_source(
            source,
            form=form,
            split=split,
            image_column=image_column,
            caption_column=caption_column,
            image_folder=image_folder,
            captions=captions or "join",
            allow_outside_files=allow_outside_files,
        )
        pairs = UnmatchedRows(
            loaded_source, boxes_column, box_format, box_units or "pixels", language or "en", limit, progress
        )
    stored = pairs.has_tokens and tokenizer is None and model is None
    counter = find_counter(tokenizer or model, pairs.manifest, folder, only_matcher=stored)
    loaded = None if model is None else load_model(model, device)
    facts: dict[str, Any] = {"name": name, "seed": seed, "tokenizer": None if counter is None else counter.name}
    if stored:
        facts["tokenizer"] = public_weights(str(pairs.manifest.get("settings", {}).get("model", "unknown")))
    facts.update(inspect_pairs(pairs, counter, rows, seed, progress=progress, stored_tokens=stored))
    if loaded is not None:
        facts["cosine"] = mean_cosine(pairs, *loaded, str(model), sample, seed, progress=progress)
    facts["broken_images"] = []
    shown = dict(pairs.read(shown_rows(facts)))
    page = inspection_page(name, facts, shown, facts["broken_images"], None if counter is None else counter.ends)
    return facts, page


def inspection_page(
    name: str,
    facts: Mapping[str, Any],
    rows: Mapping[int, Mapping[str, Any]],
    broken: list[str],
    token_ends: TokenEnds | None = None,
) -> str:
    """Return the page.

    Args:
        name: Name of the dataset.
        facts: Statistics of `inspect_pairs`, optionally with `cosine` (of `mean_cosine`) and `tokenizer` (its name).
        rows: The rows in `facts["shown"]` by number, with images as `{"bytes", "path"}`.
        broken: Receives a message for each image of those rows that cannot be read. The page shows a placeholder.
        token_ends: Returns (limit, length in characters of the part that is read) for each limit in tokens that
            truncates a caption.
    """
    cards = {index: _card(index, row, broken, token_ends) for index, row in rows.items()}
    pairs, captions, sources = facts["pairs"], facts["captions"], facts["regions"]["by_source"]
    tokenizer = facts.get("tokenizer")
    return render(
        "inspect",
        title=f"{'Local image-text pairs' if facts['matched'] else 'Images and captions'}: {name}",
        facts=facts,
        limits=_limits(captions),
        source=public_name(str(facts["source"])) if facts["source"] else None,
        model=public_weights(str(facts["settings"].get("model"))) if facts["settings"] else None,
        detector=str(DetectorSpec.from_settings(facts["settings"])) if facts["settings"] else None,
        detected=any(source != DEFAULT for source in sources),
        tiles=_tiles(facts),
        broken=broken,
        sample=[cards[index] for index in facts["shown"]["sample"]],
        lowest=[cards[index] for index in facts["shown"]["lowest"] if index in cards],
        scores=_two("all pairs", pairs["histogram"], "best pairs", pairs["best_histogram"], "sentence and region crop"),
        score_rows=[
            (title, pairs[key]) for title, key in (("all pairs", "scores"), ("best pairs", "best_scores")) if pairs[key]
        ],
        sentences=_chart("images", captions["sentences_histogram"], "sentences in the caption", whole=True),
        lengths=_chart(
            "captions",
            (captions["tokens"] or {"histogram": captions["words_histogram"]})["histogram"],
            f"{'tokens of' if captions['tokens'] else 'words in'} the caption",
            marks=[(limit, str(limit)) for limit in _limits(captions)],
        ),
        tokenizer=public_weights(tokenizer) if tokenizer else None,
        totals={key: sum(row[key] for row in sources.values()) for key in ("candidates", "chosen", "best")},
        cosine=_cosine(facts["cosine"]) if "cosine" in facts else None,
        near=[(group, _differences(*group["captions"])) for group in facts["near_duplicate_captions"]["worst"]],
        skipped=[_without_folder(entry.get("reason", entry), facts) for entry in facts["skipped"]],
        problems=[_without_folder(problem, facts) for problem in facts["problems"]["first"]],
        max_lines=MAX_LINES,
        settings=_settings(facts),
        source_names=SOURCE_NAMES,
        plain_label=plain_label,
    )


def shown_rows(facts: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the rows that the page shows."""
    return sorted({*facts["shown"]["sample"], *facts["shown"]["lowest"]})


def page_name(folder: Path) -> str:
    """Return the name of the dataset in a folder."""
    return folder.resolve().name or str(folder)


def _limits(captions: Mapping[str, Any]) -> list[int]:
    """Return the limits in tokens that the statistics have."""
    return [int(limit) for limit in captions["tokens"]["truncated"]] if captions["tokens"] else []


def _tiles(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the most important numbers with their descriptions."""
    captions, sources = facts["captions"], facts["regions"]["by_source"]
    best = sum(row["best"] for row in sources.values())
    detected = best - sources.get(DEFAULT, {"best": 0})["best"]
    tiles = [
        (f"{facts['rows']:,}", "image" if facts["rows"] == 1 else "images"),
        (f"{facts['pairs']['count']:,}", "sentence-region pairs")
        if facts["matched"]
        else (f"{facts['regions']['count']:,}", "boxes in the data"),
        (
            number(captions["words"]["mean"]),
            f"words, {number(captions['sentences']['mean'], 1)} sentences per caption",
        ),
    ]
    for limit in _limits(captions):
        share = captions["tokens"]["truncated"][str(limit)]["share"]
        tiles.append((percent(share), f"of the captions are truncated at {limit} tokens"))
    if facts["matched"]:
        tiles.append((percent(detected / best) if best else "-", "of the best pairs have a detected region"))
    if facts["matched"] and any(source != DEFAULT for source in sources):
        tiles.append((percent(facts["no_detection"]["share"]), "of the images have no detection"))
    if "cosine" in facts:
        cosine = facts["cosine"]
        tiles.append((number(cosine["mean"], 4), f"mean image-caption cosine, {public_weights(cosine['model'])}"))
    return tiles


def _card(index: int, row: Mapping[str, Any], broken: list[str], token_ends: TokenEnds | None) -> dict[str, Any]:
    """Return what the page shows of a row: the image or its error, with frames, and the sentences."""
    number = row.get("row", index)  # its number in data without pairs, where some rows may be left out
    frames, lines = row_figure(row)
    boxes = _boxes(row) if "row" in row else []
    image, error = None, ""
    try:
        image = load_image(row["image"] or {}, name=row["file_name"])
    except (ValueError, OSError) as problem:
        error = str(problem)
        broken.append(f"row {number}: {error}")
    texts = _sentence_parts(row, token_ends(row["caption"] or "") if token_ends else [])
    frames += [frame for frame, _ in boxes]
    card = {"row": row, "index": number, "frames": frames, "lines": lines, "texts": texts, "boxes": boxes}
    return {**card, "image": image, "error": error}


def _without_folder(message: object, facts: Mapping[str, Any]) -> str:
    """Return a message without the folder of the data: a page may be shared, and must not name folders."""
    folder = str(facts["source"] or "").rstrip("/")
    return str(message).replace(f"{folder}/", "") if folder else str(message)


def _boxes(row: Mapping[str, Any]) -> list[tuple[Frame, str]]:
    """Return the frame and the label of each box of a row without pairs."""
    return [
        (Frame(index, region["box"], (), (color_at(index),)), plain_label(region["label"] or "box"))
        for index, region in enumerate(row["regions"])
    ]


def _sentence_parts(
    row: Mapping[str, Any], token_ends: Sequence[tuple[int, int]]
) -> list[list[tuple[str, int | None]]]:
    """Return each sentence in parts, with the limit in tokens that truncates the caption after the part, or None."""
    caption, ends = row["caption"] or "", sorted(token_ends, key=lambda end: end[1])
    texts = []
    for sentence in row["sentences"] or []:
        parts: list[tuple[str, int | None]] = []
        read = sentence["start"]
        while ends and ends[0][1] <= sentence["end"]:
            limit, end = ends.pop(0)
            parts.append((caption[read:end], limit))
            read = max(read, end)
        texts.append([*parts, (caption[read : sentence["end"]], None)])
    return texts


def _chart(name: str, counted: Mapping[str, Any], label: str, **options: Any) -> dict[str, Any]:
    return histogram({name: counted["counts"]}, counted["edges"], label, **options)


def _two(one: str, first: Mapping[str, Any], other: str, second: Mapping[str, Any], label: str) -> dict[str, Any]:
    return histogram({one: first["counts"], other: second["counts"]}, first["edges"], f"cosine of {label}")


def _cosine(cosine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the mean cosine with its chart."""
    own, other = cosine["histogram"], cosine["mismatched_histogram"]
    if other:
        chart = _two("image and another caption", other, "image and its caption", own, "image and caption")
    else:
        chart = _chart("image and its caption", own, "cosine of image and caption")
    published = " and ".join(f"{number(value, 4)} for {name}" for name, value in cosine["published"].items())
    return {**cosine, "chart": chart, "published": published, "model": public_weights(cosine["model"])}


def _differences(one: str, other: str) -> list[list[tuple[str, bool]]]:
    """Return both texts in parts, with whether a part is in only one of them."""
    first, second = one.split(), other.split()
    parts: list[list[tuple[str, bool]]] = [[], []]
    for change, a, b, c, d in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        for words, target in ((first[a:b], parts[0]), (second[c:d], parts[1])):
            if words:
                target.append((" ".join(words), change != "equal"))
    return parts


def _settings(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return sizes and settings as texts."""
    width, height = facts["images"]["width"], facts["images"]["height"]
    files = f" in {count(facts['shards'], 'file')}, {number(facts['bytes'] / 1e6, 1)} MB"
    entries = {
        "rows": f"{facts['rows']:,}" + (files if facts["matched"] else ""),
        "image size": f"median {number(width['median'])} x {number(height['median'])} pixels, up to"
        f" {number(width['max'])} x {number(height['max'])}",
    }
    for key, value in facts["settings"].items():
        if key == "model":
            entries[key] = public_weights(str(value))
        elif key == "detector":
            entries[key] = str(DetectorSpec.from_settings(facts["settings"]))
        elif value is not None and key not in ("source_fingerprint", "source_rows"):
            # A page may be shared, so it must not name folders of this machine.
            entries[key.replace("_", " ")] = public_name(str(value)) if "/" in str(value) else str(value)
    if facts["versions"]:
        entries["versions"] = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return entries
