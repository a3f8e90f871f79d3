"""What is in a folder of local pairs: counts, lengths, scores, sources of regions, repetitions, and a sample of rows.

`inspect_pairs` reads the columns a batch at a time and decodes no image; `mean_cosine` embeds a sample with a CLIP, the
quality check of FAST-GOAL's paper. Both give plain dicts that are written as JSON and laid out by `inspection_page`.
"""

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from fastgoal.processing.data.duplicates import CaptionDuplicates
from fastgoal.processing.data.pairs_dataset import PairsFolder

TOKEN_LIMITS = (77, 248)  # of CLIP, and stretched as Long-CLIP does
DEFAULT = "default"  # source of the five regions that every image gets
SHOWN_GROUPS = 5
SHOWN_NAMES = 8
SHOWN_PROBLEMS = 50
SHOWN_LABELS = 12
LOWEST = 3
PUBLISHED_COSINES = {"GLIT100k": 0.2434, "DOCCI": 0.2448}  # FAST-GOAL's paper, under Long-CLIP-L, 1,000 pairs each


def inspect_pairs(
    folder: PairsFolder,
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    rows: int = 12,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a folder of local pairs.

    Args:
        folder: The data.
        count_tokens: Gives the number of tokens of each caption, start and end marks included; None: not measured.
        rows: How many rows to draw at random for showing.
        seed: Of that draw.
        progress: Show a bar.

    Returns:
        Plain values by name: `rows`, `shards`, `bytes`, `images`, `captions`, `pairs`, `regions`, `no_detection`,
        `duplicate_captions`, `near_duplicate_captions`, `duplicate_images`, `skipped`, `problems`, and `shown`, the
        numbers of the rows drawn (`sample`) and of those whose best pair has the lowest score (`lowest`).
    """
    measured = _Columns(count_tokens)
    columns = ("file_name", "caption", "width", "height", "regions", "sentences", "pairs")
    with tqdm(total=len(folder), desc="columns", unit="row", disable=not progress) as bar:
        for batch in folder.batches(columns):
            measured.add(batch)
            bar.update(batch.num_rows)
    names = measured.names

    def read_captions(numbers: list[int]) -> list[str]:
        wanted, texts, start = set(numbers), {}, 0
        for batch in folder.batches(["caption"]):
            inside = [number for number in range(start, start + batch.num_rows) if number in wanted]
            if inside:
                column = batch.column("caption")
                texts.update({number: column[number - start].as_py() or "" for number in inside})
            start += batch.num_rows
        return [texts[number] for number in numbers]

    equal = measured.duplicates.equal()
    near = measured.duplicates.near(read_captions)
    shown_texts = [group[0] for group in equal[:SHOWN_GROUPS]]
    shown_texts += [row for group in near[:SHOWN_GROUPS] for row in group.pair]
    texts = dict(zip(shown_texts, read_captions(shown_texts), strict=True))
    image_groups, image_bytes = _equal_images(folder, progress)
    drawn = random.Random(seed).sample(range(len(folder)), min(rows, len(folder)))
    manifest = folder.manifest
    return {
        "settings": manifest.get("settings", {}),
        "source": manifest.get("source"),
        "versions": manifest.get("versions", {}),
        "finished": "summary" in manifest if manifest else None,
        "missing_shards": folder.missing,
        "rows": len(folder),
        "shards": len(folder.files),
        "bytes": sum(path.stat().st_size for path in folder.files),
        **measured.facts(),
        "duplicate_captions": {
            "groups": len(equal),
            "rows": sum(map(len, equal)),
            "worst": [
                {"times": len(group), "caption": texts[group[0]], "files": _names(names, group)}
                for group in equal[:SHOWN_GROUPS]
            ],
        },
        "near_duplicate_captions": {
            "jaccard": measured.duplicates.threshold,
            "groups": len(near),
            "rows": sum(len(group.rows) for group in near),
            "worst": [
                {
                    "times": len(group.rows),
                    "jaccard": group.similarity,
                    "captions": [texts[row] for row in group.pair],
                    "files": [names[row] for row in group.pair],
                }
                for group in near[:SHOWN_GROUPS]
            ],
        },
        "duplicate_images": {
            "groups": len(image_groups),
            "rows": sum(map(len, image_groups)),
            "image_bytes": image_bytes,
            "worst": [{"times": len(group), "files": _names(names, group)} for group in image_groups[:SHOWN_GROUPS]],
        },
        "skipped": folder.skipped,
        "shown": {"sample": sorted(drawn), "lowest": measured.lowest(LOWEST)},
    }


def mean_cosine(
    folder: PairsFolder,
    model: Any,
    processor: Any,
    name: str,
    sample: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Mean cosine of images and their whole captions under a CLIP (the quality check of FAST-GOAL's paper).

    Beside it stands the mean cosine of the same images with the caption of another image of the sample: what is left
    without any content in common.

    Args:
        folder: The data.
        model: A CLIP, on its device.
        processor: Its processor.
        name: What to call the model.
        sample: Rows to draw at random; all of them if there are fewer.
        seed: Of the draw.
        progress: Show a bar.

    Returns:
        `model`, `tokens` (that it reads), `rows`, `mean`, `interval` (95 %, from the standard error), `mismatched`
        (None with a single row), `histogram`, `mismatched_histogram`, and `broken`: what is wrong with images that
        were left out.

    Raises:
        ValueError: None of the images drawn can be read.
    """
    import torch

    from fastgoal.processing.images import load_image
    from fastgoal.trainer.evaluation.embeddings import encode_images, encode_texts, max_text_length

    if sample < 1:
        raise ValueError(f"sample is {sample}; it must be a positive integer.")
    drawn = random.Random(seed).sample(range(len(folder)), min(sample, len(folder)))
    images, texts, broken = [], [], []
    waiting: list[tuple[Any, str]] = []

    def encode() -> None:
        if waiting:
            images.append(encode_images(model, processor, [image for image, _ in waiting]))
            texts.append(encode_texts(model, processor, [caption for _, caption in waiting]))
            waiting.clear()

    with tqdm(total=len(drawn), desc="image-caption cosine", unit="row", disable=not progress) as bar:
        for number, row in folder.read(drawn):
            try:
                waiting.append((load_image(row["image"] or {}, name=row["file_name"]), row["caption"] or ""))
            except (ValueError, OSError) as error:
                broken.append(f"row {number}: {error}")
            if len(waiting) == 64:
                encode()
            bar.update()
        encode()
    if not images:
        raise ValueError(f"none of the {len(drawn)} images drawn for the cosine can be read; {broken[0]}")
    image_embeds, text_embeds = torch.cat(images), torch.cat(texts)
    cosines = (image_embeds * text_embeds).sum(dim=1).double().numpy()
    others = (image_embeds * text_embeds.roll(1, 0)).sum(dim=1).double().numpy() if len(cosines) > 1 else None
    mean = float(cosines.mean())
    half = 1.96 * float(cosines.std(ddof=1)) / math.sqrt(len(cosines)) if len(cosines) > 1 else None
    together = cosines if others is None else np.concatenate([cosines, others])
    edges = nice_edges(float(together.min()), float(together.max()))
    return {
        "model": name,
        "tokens": max_text_length(model),
        "rows": len(cosines),
        "mean": mean,
        "interval": None if half is None else [mean - half, mean + half],
        "mismatched": None if others is None else float(others.mean()),
        "histogram": histogram(cosines, edges),
        "mismatched_histogram": None if others is None else histogram(others, edges),
        "published": PUBLISHED_COSINES,
        "broken": broken,
    }


class _Columns:
    """Adds up the columns of all rows, a batch at a time; keeps a few numbers for each row, and no text but names."""

    def __init__(self, count_tokens: Callable[[list[str]], list[int]] | None) -> None:
        self.count_tokens = count_tokens
        self.duplicates = CaptionDuplicates()
        self.names: list[str] = []
        self.problems: list[str] = []
        self._numbers: dict[str, list[NDArray[Any]]] = defaultdict(list)
        self._candidates: Counter[str] = Counter()
        self._chosen: Counter[str] = Counter()
        self._best: Counter[str] = Counter()
        self._labels: Counter[tuple[str, str]] = Counter()
        self._undetected: list[int] = []

    def add(self, batch: Any) -> None:
        import pyarrow.compute as pc

        count, start = batch.num_rows, len(self.names)
        self.names += [name or "" for name in batch.column("file_name").to_pylist()]
        captions = [caption or "" for caption in batch.column("caption").to_pylist()]
        self.duplicates.add(captions)
        self._keep("words", [len(caption.split()) for caption in captions])
        if self.count_tokens is not None:
            self._keep("tokens", self.count_tokens(captions))
        for name in ("width", "height"):
            self._keep(name, pc.fill_null(batch.column(name), 0).to_numpy(zero_copy_only=False))

        region_counts, regions = _flat(batch.column("regions"))
        sentence_counts, sentences = _flat(batch.column("sentences"))
        pair_counts, pairs = _flat(batch.column("pairs"))
        self._keep("regions", region_counts)
        self._keep("sentences", sentence_counts)
        sources = np.array(pc.fill_null(pc.struct_field(regions, "source"), "").to_pylist(), dtype=object)
        labels = np.array(pc.fill_null(pc.struct_field(regions, "label"), "").to_pylist(), dtype=object)
        self._candidates.update(sources.tolist())
        region_rows = np.repeat(np.arange(count), region_counts)
        detected = np.bincount(region_rows[sources != DEFAULT], minlength=count)
        self._undetected += (start + np.flatnonzero(detected == 0)).tolist()

        of_row = np.repeat(np.arange(count), pair_counts)
        region = _values(pairs, "region", -1).astype(np.int64)
        sentence = _values(pairs, "sentence", -1).astype(np.int64)
        score, best = _values(pairs, "score", math.nan).astype(np.float64), _values(pairs, "best", False)
        fits = (region >= 0) & (region < region_counts[of_row]) & np.isfinite(score)
        fits &= (sentence >= 0) & (sentence < sentence_counts[of_row])
        places = (np.cumsum(region_counts) - region_counts)[of_row[fits]] + region[fits]
        self._chosen.update(sources[places].tolist())
        self._best.update(sources[places[best[fits]]].tolist())
        self._labels.update(zip(sources[places].tolist(), labels[places].tolist()))
        self._keep("scores", score[fits])
        self._keep("best_scores", score[fits & best])
        best_of_row = np.full(count, math.nan)
        best_of_row[of_row[fits & best]] = score[fits & best]
        self._keep("best_of_row", best_of_row)

        ends, starts = _values(sentences, "end", -1), _values(sentences, "start", -1)
        lengths = np.array([len(caption) for caption in captions])[np.repeat(np.arange(count), sentence_counts)]
        wrong_spans = np.repeat(np.arange(count), sentence_counts)[(starts < 0) | (starts >= ends) | (ends > lengths)]
        best_counts = np.bincount(of_row[best], minlength=count)
        for rows, what in (
            (np.flatnonzero([not caption.strip() for caption in captions]), "has no caption"),
            (np.unique(wrong_spans), "has a sentence that does not lie in its caption"),
            (np.unique(of_row[~fits]), "has a pair without a region, a sentence or a score"),
            (np.flatnonzero(best_counts != 1), "does not have exactly one best pair"),
        ):
            self.problems += [f"row {start + row} ({self.names[start + row]}) {what}" for row in rows.tolist()]

    def lowest(self, count: int) -> list[int]:
        """The rows whose best pair has the lowest score, the lowest first."""
        scores = self._all("best_of_row")
        order = np.argsort(scores, kind="stable")  # NaN comes last
        return [row for row in order[:count].tolist() if not math.isnan(scores[row])]

    def facts(self) -> dict[str, Any]:
        """Everything but the repetitions; see `inspect_pairs`."""
        count = len(self.names)
        scores, best_scores = self._all("scores"), self._all("best_scores")
        edges = nice_edges(float(scores.min()), float(scores.max())) if len(scores) else [0.0, 1.0]
        tokens = self._all("tokens") if self.count_tokens is not None else None
        captions: dict[str, Any] = {
            "words": summary(self._all("words")),
            "words_histogram": histogram(self._all("words"), length_edges(self._all("words"))),
            "sentences": summary(self._all("sentences")),
            "sentences_histogram": histogram(self._all("sentences"), count_edges(self._all("sentences"))),
            "tokens": None,
        }
        if tokens is not None:
            captions["tokens"] = {
                **summary(tokens),
                "histogram": histogram(tokens, length_edges(tokens)),
                "truncated": {
                    str(limit): {"rows": int((tokens > limit).sum()), "share": float((tokens > limit).mean())}
                    for limit in TOKEN_LIMITS
                },
            }
        order = sorted(self._candidates, key=lambda source: (source != DEFAULT, -self._candidates[source]))
        return {
            "images": {name: summary(self._all(name)) for name in ("width", "height")},
            "captions": captions,
            "pairs": {
                "count": len(scores),
                "scores": summary(scores),
                "best_scores": summary(best_scores),
                "histogram": histogram(scores, edges),
                "best_histogram": histogram(best_scores, edges),
            },
            "regions": {
                "count": sum(self._candidates.values()),
                "per_image": summary(self._all("regions")),
                "by_source": {
                    source: {
                        "candidates": self._candidates[source],
                        "chosen": self._chosen[source],
                        "best": self._best[source],
                    }
                    for source in order
                },
                "chosen_labels": [
                    {"label": label, "source": source, "chosen": times}
                    for (source, label), times in self._labels.most_common(SHOWN_LABELS)
                ],
            },
            "no_detection": {
                "rows": len(self._undetected),
                "share": len(self._undetected) / count,
                "files": _names(self.names, self._undetected),
            },
            "problems": {"count": len(self.problems), "first": self.problems[:SHOWN_PROBLEMS]},
        }

    def _keep(self, name: str, values: Any) -> None:
        kind = np.float32 if name in ("scores", "best_scores", "best_of_row") else np.int32
        self._numbers[name].append(np.asarray(values, dtype=kind))

    def _all(self, name: str) -> NDArray[Any]:
        parts = self._numbers[name]
        if len(parts) > 1:
            parts[:] = [np.concatenate(parts)]
        return parts[0]


def summary(values: NDArray[Any]) -> dict[str, float]:
    """Mean, median, the middle 90 % (`low` to `high`), least and greatest value; empty without values."""
    if not len(values):
        return {}
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "median": median,
        "low": low,
        "high": high,
        "min": float(values.min()),
        "max": float(values.max()),
    }


def histogram(values: NDArray[Any], edges: Sequence[float]) -> dict[str, list[float]]:
    """Counts between edges; what lies outside counts in the first or last bin."""
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], -math.inf))
    return {"edges": list(edges), "counts": np.histogram(inside, edges)[0].tolist()}


def nice_edges(low: float, high: float, bins: int = 36) -> list[float]:
    """Round edges of about so many equal bins from below `low` to above `high`."""
    step = nice_step((high - low) / bins if high > low else 0.01)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    return [round(place * step, 10) for place in range(first, last + 1)]


def length_edges(values: NDArray[Any], bins: int = 32) -> list[float]:
    """Edges from 0 for lengths of texts; the longest hundredth counts in the last bin when it lies far out."""
    high = min(float(values.max()), 1.3 * float(np.quantile(values, 0.99)))
    step = max(1.0, nice_step((high + 1) / bins))
    return [place * step for place in range(int(high / step) + 2)]


def count_edges(values: NDArray[Any], least: int = 8, most: int = 40) -> list[float]:
    """Edges for small whole numbers: a bin for each, around it; those above `most` count in the last bin."""
    low = int(values.min())
    bins = min(max(int(values.max()) - low + 1, least), most)
    return [low + place - 0.5 for place in range(bins + 1)]


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50... (and 0.5, 0.2...) that is not less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _flat(column: Any) -> tuple[NDArray[np.int64], Any]:
    """Lengths and joined values of a column of lists; a missing list is an empty one."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64), pc.list_flatten(column)


def _values(structs: Any, field: str, missing: Any) -> NDArray[Any]:
    import pyarrow.compute as pc

    values: NDArray[Any] = pc.fill_null(pc.struct_field(structs, field), missing).to_numpy(zero_copy_only=False)
    return values


def _names(names: Sequence[str], rows: Sequence[int]) -> list[str]:
    return [names[row] for row in rows[:SHOWN_NAMES]]


def _equal_images(folder: PairsFolder, progress: bool) -> tuple[list[list[int]], int]:
    """Groups of rows with the same image file, the largest first, and the bytes of all image files."""
    import pyarrow.compute as pc

    rows, number, size = defaultdict(list), 0, 0
    with tqdm(total=len(folder), desc="image files", unit="row", disable=not progress) as bar:
        for batch in folder.batches(["image.bytes"], 64):
            for scalar in pc.struct_field(batch.column("image"), "bytes"):
                if scalar.is_valid:
                    buffer = scalar.as_buffer()
                    size += buffer.size
                    rows[hashlib.blake2b(buffer, digest_size=16).digest()].append(number)
                number += 1
            bar.update(batch.num_rows)
    return sorted((group for group in rows.values() if len(group) > 1), key=len, reverse=True), size
