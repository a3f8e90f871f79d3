"""Statistics of local pairs, or of images with captions: lengths, scores, regions, duplicates, and a sample of rows.

`inspect_pairs` reads the columns in batches and decodes no image. `fastgoal inspect` writes the dict that it returns as
JSON and as a page, and dataset cards contain some of it.
"""

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm.auto import tqdm

from .duplicates import CaptionDuplicates, equal_groups
from .pairs_dataset import TOKENS, PairsFolder
from .tokens import TOKEN_LIMITS, fitting_length
from .unmatched import UnmatchedRows

DEFAULT = "default"  # source of the five regions that every image gets
SHOWN_GROUPS = 5
SHOWN_NAMES = 8
SHOWN_PROBLEMS = 50
SHOWN_LABELS = 12
LOWEST = 3


def inspect_pairs(
    folder: PairsFolder | UnmatchedRows,
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    rows: int = 12,
    seed: int = 0,
    repetitions: bool = True,
    progress: bool = False,
    stored_tokens: bool = False,
) -> dict[str, Any]:
    """Compute the statistics of a folder of local pairs, or of rows without pairs.

    Args:
        folder: The folder, or rows without pairs.
        count_tokens: Returns the number of tokens of each caption, BOS and EOS included; None to count no tokens.
        rows: Number of rows to sample for display.
        seed: Seed of the sample.
        repetitions: Whether to look for duplicate captions and images, which reads all image files.
        progress: Whether to show progress bars.
        stored_tokens: Whether to use the numbers of tokens in the folder, if it has them, instead of counting.

    Returns:
        A dict of plain values: `matched` (whether the rows have pairs), `rows`, `shards`, `bytes`, `images`,
        `captions`, `pairs`, `regions`, `no_detection`, `skipped`, `problems`; with `repetitions` also
        `duplicate_captions`, `near_duplicate_captions` and `duplicate_images`; and `shown`, the rows of the sample
        (`sample`) and those with the lowest-scoring best pairs (`lowest`).

    Raises:
        ValueError: A file is broken.
    """
    stored_tokens = stored_tokens and folder.has_tokens
    measured = _Columns(count_tokens, folder, stored_tokens)
    duplicates = CaptionDuplicates() if repetitions else None
    columns = ["file_name", "caption", "width", "height", "regions", "sentences", "pairs"]
    columns += TOKENS if stored_tokens else ()
    with tqdm(total=len(folder), desc="columns", unit="row", disable=not progress) as bar:
        for batch in folder.batches(columns):
            captions = [caption or "" for caption in batch.column("caption").to_pylist()]
            measured.add(batch, captions)
            if duplicates is not None:
                duplicates.add(captions)
            bar.update(batch.num_rows)
    drawn = random.Random(seed).sample(range(len(folder)), min(rows, len(folder)))
    manifest = folder.manifest
    return {
        "matched": folder.matched,
        "settings": manifest.get("settings", {}),
        "source": manifest.get("source"),
        "versions": manifest.get("versions", {}),
        "finished": "summary" in manifest if manifest and folder.matched else None,
        "missing_shards": folder.missing,
        "rows": len(folder),
        "shards": len(folder.files),
        "bytes": sum(path.stat().st_size for path in folder.files),
        **measured.facts(),
        **({} if duplicates is None else _repetitions(folder, duplicates, measured.names, progress)),
        "skipped": folder.skipped,
        "shown": {"sample": sorted(drawn), "lowest": measured.lowest(LOWEST)},
    }


def _repetitions(
    folder: PairsFolder | UnmatchedRows, duplicates: CaptionDuplicates, names: Sequence[str], progress: bool
) -> dict[str, Any]:
    """Return the groups of duplicates, with the names of the largest ones; see `inspect_pairs`."""
    equal = duplicates.equal()
    near = duplicates.near(lambda rows: _captions(folder, rows))
    shown = [group[0] for group in equal[:SHOWN_GROUPS]]
    shown += [row for group in near[:SHOWN_GROUPS] for row in group.pair]
    texts = dict(zip(shown, _captions(folder, shown), strict=True))
    same_images, image_bytes = _equal_images(folder, progress)
    return {
        "duplicate_captions": {
            "groups": len(equal),
            "rows": sum(map(len, equal)),
            "worst": [
                {"times": len(group), "caption": texts[group[0]], "files": _names(names, group)}
                for group in equal[:SHOWN_GROUPS]
            ],
        },
        "near_duplicate_captions": {
            "jaccard": duplicates.threshold,
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
            "groups": len(same_images),
            "rows": sum(map(len, same_images)),
            "image_bytes": image_bytes,
            "worst": [{"times": len(group), "files": _names(names, group)} for group in same_images[:SHOWN_GROUPS]],
        },
    }


class _Columns:
    """Collects the columns of all rows in batches. It keeps a few numbers for each row, and its name."""

    def __init__(
        self,
        count_tokens: Callable[[list[str]], list[int]] | None,
        folder: PairsFolder | UnmatchedRows,
        stored_tokens: bool = False,
    ) -> None:
        self.count_tokens, self.stored_tokens = count_tokens, stored_tokens
        length = folder.manifest.get("summary", {}).get("text_length") if stored_tokens else None
        self.limits = sorted({*TOKEN_LIMITS, *([length] if isinstance(length, int) else [])})
        self.matched = folder.matched
        self.names: list[str] = []
        self.problems: list[str] = [*folder.problems]
        self._numbers: dict[str, list[NDArray[Any]]] = defaultdict(list)
        self._sources: dict[str, Counter[str]] = {name: Counter() for name in ("candidates", "chosen", "best")}
        self._labels: Counter[tuple[str, str]] = Counter()
        self._undetected: list[int] = []

    def add(self, batch: Any, captions: list[str]) -> None:
        count, start = batch.num_rows, len(self.names)
        self.names += [name or "" for name in batch.column("file_name").to_pylist()]
        self._keep("words", [len(caption.split()) for caption in captions])
        if self.stored_tokens:
            of_captions, of_sentences = (batch.column(name) for name in TOKENS)
            self._keep("tokens", pc.fill_null(of_captions, 0).to_numpy(zero_copy_only=False))
            self._keep("sentence_tokens", pc.list_flatten(of_sentences).to_numpy(zero_copy_only=False))
        elif self.count_tokens is not None:
            self._keep("tokens", self.count_tokens(captions))
        for name in ("width", "height"):
            self._keep(name, pc.fill_null(batch.column(name), 0).to_numpy(zero_copy_only=False))

        region_counts, regions = _flat(batch.column("regions"))
        sentence_counts, sentences = _flat(batch.column("sentences"))
        pair_counts, pairs = _flat(batch.column("pairs"))
        self._keep("regions", region_counts)
        self._keep("sentences", sentence_counts)
        sources, labels = _values(regions, "source", ""), _values(regions, "label", "")
        self._sources["candidates"].update(sources.tolist())
        region_rows = np.repeat(np.arange(count), region_counts)
        detected = np.bincount(region_rows[sources != DEFAULT], minlength=count)
        self._undetected += (start + np.flatnonzero(detected == 0)).tolist()

        of_row = np.repeat(np.arange(count), pair_counts)
        region = _values(pairs, "region", -1).astype(np.int64)
        sentence = _values(pairs, "sentence", -1).astype(np.int64)
        score, best = _values(pairs, "score", math.nan).astype(np.float64), _values(pairs, "best", False)
        fits = (region >= 0) & (region < region_counts[of_row]) & np.isfinite(score)
        fits &= (sentence >= 0) & (sentence < sentence_counts[of_row])
        chosen = (np.cumsum(region_counts) - region_counts)[of_row[fits]] + region[fits]
        self._sources["chosen"].update(sources[chosen].tolist())
        self._sources["best"].update(sources[chosen[best[fits]]].tolist())
        self._labels.update(zip(sources[chosen].tolist(), labels[chosen].tolist()))
        self._keep("scores", score[fits])
        self._keep("best_scores", score[fits & best])
        best_of_row = np.full(count, math.nan)
        best_of_row[of_row[fits & best]] = score[fits & best]
        self._keep("best_of_row", best_of_row)

        ends, starts = _values(sentences, "end", -1), _values(sentences, "start", -1)
        sentence_rows = np.repeat(np.arange(count), sentence_counts)
        lengths = np.array([len(caption) for caption in captions])[sentence_rows]
        wrong_spans = sentence_rows[(starts < 0) | (starts >= ends) | (ends > lengths)]
        best_counts = np.bincount(of_row[best], minlength=count)
        for rows, problem in (
            (np.flatnonzero([not caption.strip() for caption in captions]), "has no caption"),
            (np.unique(wrong_spans), "has a sentence outside of its caption"),
            (np.unique(of_row[~fits]), "has a pair without a region, a sentence or a score"),
            (np.flatnonzero(best_counts != int(self.matched)), "does not have exactly one best pair"),
        ):
            self.problems += [f"row {start + row} ({self.names[start + row]}) {problem}" for row in rows.tolist()]

    def lowest(self, count: int) -> list[int]:
        """Return the rows with the lowest scores of their best pairs, the lowest first."""
        scores = np.concatenate(self._numbers["best_of_row"])
        order = np.argsort(scores, kind="stable")  # NaN comes last
        return [row for row in order[:count].tolist() if not math.isnan(scores[row])]

    def facts(self) -> dict[str, Any]:
        """Return all statistics except for the duplicates; see `inspect_pairs`."""
        numbers = {name: np.concatenate(parts) for name, parts in self._numbers.items()}
        words, sentences, tokens = numbers["words"], numbers["sentences"], numbers.get("tokens")
        scores, best_scores = numbers["scores"], numbers["best_scores"]
        edges = nice_edges(float(scores.min()), float(scores.max())) if len(scores) else [0.0, 1.0]
        candidates = self._sources["candidates"]
        return {
            "images": {name: summary(numbers[name]) for name in ("width", "height")},
            "captions": {
                "words": summary(words),
                "words_histogram": histogram(words, length_edges(words)),
                "sentences": summary(sentences),
                "sentence_count": int(sentences.sum()),
                "sentences_histogram": histogram(sentences, count_edges(sentences)),
                "tokens": None if tokens is None else _token_lengths(tokens, self.limits),
                **({"sentence_tokens": summary(numbers["sentence_tokens"])} if self.stored_tokens else {}),
            },
            "pairs": {
                "count": len(scores),
                "scores": summary(scores),
                "best_scores": summary(best_scores),
                "histogram": histogram(scores, edges),
                "best_histogram": histogram(best_scores, edges),
            },
            "regions": {
                "count": candidates.total(),
                "per_image": summary(numbers["regions"]),
                "by_source": {
                    source: {name: counts[source] for name, counts in self._sources.items()}
                    for source in sorted(candidates, key=lambda source: (source != DEFAULT, -candidates[source]))
                },
                "chosen_labels": [
                    {"label": label, "source": source, "chosen": times}
                    for (source, label), times in self._labels.most_common(SHOWN_LABELS)
                ],
            },
            "no_detection": {
                "rows": len(self._undetected),
                "share": len(self._undetected) / len(self.names),
                "files": _names(self.names, self._undetected),
            },
            "problems": {"count": len(self.problems), "first": self.problems[:SHOWN_PROBLEMS]},
        }

    def _keep(self, name: str, values: Any) -> None:
        dtype = np.float32 if name in ("scores", "best_scores", "best_of_row") else np.int32
        self._numbers[name].append(np.asarray(values, dtype=dtype))


def _token_lengths(tokens: NDArray[Any], limits: Sequence[int]) -> dict[str, Any]:
    """Return the statistics of lengths in tokens, the length that holds 99 %, and what each limit truncates."""
    cut = {str(limit): tokens > limit for limit in limits}
    return {
        **summary(tokens),
        "histogram": histogram(tokens, length_edges(tokens)),
        "fitting": fitting_length(tokens.tolist()),
        "truncated": {limit: {"rows": int(rows.sum()), "share": float(rows.mean())} for limit, rows in cut.items()},
    }


def summary(values: NDArray[Any]) -> dict[str, float]:
    """Return the mean, median, middle 90 % (`low` to `high`), minimum and maximum; an empty dict without values."""
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
    """Return the counts between edges. Values outside the edges count in the first or last bin."""
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], -math.inf))
    return {"edges": list(edges), "counts": np.histogram(inside, edges)[0].tolist()}


def nice_edges(low: float, high: float) -> list[float]:
    """Return round edges of about 36 equal bins from below `low` to above `high`."""
    step = nice_step((high - low) / 36 if high > low else 0.01)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    return [round(number * step, 10) for number in range(first, last + 1)]


def length_edges(values: NDArray[Any]) -> list[float]:
    """Return edges from 0 for lengths of texts. The longest 1 % count in the last bin if they are far longer."""
    high = min(float(values.max()), 1.3 * float(np.quantile(values, 0.99)))
    step = max(1.0, nice_step((high + 1) / 32))
    return [number * step for number in range(int(high / step) + 2)]


def count_edges(values: NDArray[Any]) -> list[float]:
    """Return edges of 8 to 40 bins for small integers, one for each; larger ones count in the last bin."""
    low = int(values.min())
    bins = min(max(int(values.max()) - low + 1, 8), 40)
    return [low + number - 0.5 for number in range(bins + 1)]


def nice_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, 50... (and 0.5, 0.2...) that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _flat(column: Any) -> tuple[NDArray[np.int64], Any]:
    """Return the lengths and the joined values of a column of lists; a missing list is empty."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64), pc.list_flatten(column)


def _values(structs: Any, field: str, missing: Any) -> NDArray[Any]:
    values: NDArray[Any] = pc.fill_null(pc.struct_field(structs, field), missing).to_numpy(zero_copy_only=False)
    return values


def _names(names: Sequence[str], rows: Sequence[int]) -> list[str]:
    return [names[row] for row in rows[:SHOWN_NAMES]]


def _captions(folder: PairsFolder | UnmatchedRows, rows: Sequence[int]) -> list[str]:
    """Read the captions of rows, in their order, and no other column."""
    wanted, texts, start = set(rows), {}, 0
    for batch in folder.batches(["caption"]):
        column, end = batch.column("caption"), start + batch.num_rows
        texts.update({row: column[row - start].as_py() or "" for row in range(start, end) if row in wanted})
        start = end
    return [texts[row] for row in rows]


def _equal_images(folder: PairsFolder | UnmatchedRows, progress: bool) -> tuple[list[list[int]], int]:
    """Return groups of rows with equal image files, the largest first, and the number of bytes of all image files."""
    digests: list[bytes | None] = []
    size = 0
    with tqdm(total=len(folder), desc="image files", unit="row", disable=not progress) as bar:
        for batch in folder.batches(["image.bytes"], 64):
            for scalar in pc.struct_field(batch.column("image"), "bytes"):
                buffer = scalar.as_buffer() if scalar.is_valid else b""
                size += len(buffer)
                digests.append(hashlib.blake2b(buffer, digest_size=16).digest() if scalar.is_valid else None)
            bar.update(batch.num_rows)
    return equal_groups(digests), size
