"""From rows of images and captions to a dataset of local pairs on disk: the work behind `fastgoal pairs`.

Threads decode images, bring them to the detector's size and cut crops, while the main thread asks the detector and CLIP
about many images at once. Every shard depends on its own rows only, so it is the same file whether or not the run that
made it was one that had been killed before.
"""

import io
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.boxes import BOX_FORMS, column_regions
from fastgoal.processing.data.pairs_dataset import MANIFEST, SHORT_CAPTIONS, features, short_captions
from fastgoal.processing.data.sources import Source
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.embedding import TOKENS_PER_CROP, embed_crops, embed_texts
from fastgoal.processing.images import image_bytes, load_image
from fastgoal.processing.matching import pair_row
from fastgoal.processing.pixels import PixelReader
from fastgoal.processing.regions import Region
from fastgoal.processing.sentences import Sentence, check_language

from .engine import BadRow, Clock, Engine, Shard, Threads, check_run, decoding_threads, good_rows
from .shards import ParquetShards, RunFolder, refuse_skipped

STAGES = ("decode", "detect", "crop", "sentences", "image", "write")
COUNTS = ("images", "sentences", "pairs", "without_phrases")
# Images in one call of the detector: a fraction of the crops in a forward. A few times as many are held decoded.
IMAGES_PER_CROP_BATCH = 4
# Rows whose sentences are embedded together: many, so that those of like lengths meet, whatever the size of a shard.
ROWS_PER_BLOCK = 256


@dataclass(frozen=True)
class PairSettings:
    """What the rows depend on. A run is only continued with the same settings.

    Args:
        model: name of the matcher, with a mark that changes when its weights change; its number format is `dtype`.
        detector: what proposes regions, and which of them stay.
        split: split of the source, of which the first `limit` rows are used.
        shard_size: rows of the source in a shard.
        store_size: images whose shorter side has more pixels are kept shrunk to so many, as JPEG, with boxes to match;
            detector and matcher see them whole. None keeps the original files.
        language: of the captions, by its code.
        boxes: whether boxes that come with the data are in `pixels`, or `normalized`: fractions of width and height.
    """

    model: str
    detector: DetectorSpec = field(default_factory=DetectorSpec)
    dtype: str = "float32"
    split: str | None = None
    limit: int | None = None
    shard_size: int = 256
    store_size: int | None = None
    boxes: str = "pixels"
    language: str = "en"

    def __post_init__(self) -> None:
        if self.boxes not in BOX_FORMS:
            raise ValueError(f"boxes='{self.boxes}'; expected one of {', '.join(BOX_FORMS)}.")
        check_language(self.language)
        check_positive(limit=self.limit, shard_size=self.shard_size, store_size=self.store_size)

    @property
    def box_column(self) -> str | None:
        """The column that boxes come from, if they do."""
        return self.detector.name if self.detector.kind == "column" else None


def read_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """A manifest's settings in today's form: version 0.1 named the detector in one text, and had no other choices."""
    detector = asdict(DetectorSpec.from_settings(settings))
    return {"store_size": None, "boxes": "pixels", "language": "en", **settings, "detector": detector}


def build_pairs(
    source: Source,
    output: str | os.PathLike[str],
    settings: PairSettings,
    load_matcher: Callable[[], tuple[Any, Any]],
    on_error: str = "stop",
    batch_size: int = 64,
    num_workers: int | None = None,
    progress: bool = True,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Write the local pairs of every row of `source` as shards of parquet, or continue such a folder.

    Args:
        source: rows to work on.
        output: folder for `data/*.parquet` and `fastgoal_pairs.json` (settings, versions, summary).
        load_matcher: returns (model, processor), the processor with its `detector` set; called only if there is work.
        on_error: `stop` at a row that cannot be used, or `skip` and list it in the summary.
        batch_size: crops in one forward of CLIP; a quarter as many images go to the detector at once. Another number
            changes scores by rounding errors.
        num_workers: threads that decode images and cut crops; by default one for each core, at most 16.
        progress: show a bar.
        engine: who makes the shards, see `cluster.open_engine`; by default this process.

    Returns:
        The summary: `images`, `skipped` (row and reason), `sentences`, `pairs`, `without_phrases` (images whose caption
        gave the detector nothing to look for), `regions` and `best_regions` by source, `seconds`, `images_per_second`,
        `stage_seconds` (of the main thread; `decode` and `crop` are the time spent waiting for the others) over all
        runs that made the folder, and `shards_made` by this call.

    Raises:
        ValueError: a row cannot be used, the folder holds something else, or another process writes it.
        OSError: a shard could not be written, for example on a full disk.
    """
    check_run(source, on_error, batch_size=batch_size, num_workers=num_workers)
    if settings.box_column is not None and settings.box_column not in source.columns:
        raise ValueError(
            f"detector='column:{settings.box_column}': {source.name} has no column '{settings.box_column}'; its "
            f"columns are {source.columns}."
        )
    output = Path(output)
    rows = range(len(source))[: settings.limit]
    starts = range(0, len(rows), settings.shard_size)
    shards = ParquetShards(output, len(starts))
    folder = RunFolder(output, MANIFEST, "fastgoal pairs", ["data/*.parquet"], read_settings)
    with folder.open(source, settings) as manifest:
        records = {i: record for i in range(shards.count) if (record := shards.read_record(i)) is not None}
        if on_error == "stop":
            refuse_skipped([entry for record in records.values() for entry in record["skipped"]])
        parts = [Shard(i, rows[start : start + settings.shard_size]) for i, start in enumerate(starts)]
        pending = [part for part in parts if part.number not in records]
        if not pending and "summary" in manifest:
            return {**manifest["summary"], "shards_made": 0}
        run = folder.read_run()

        def load_maker(cores: int) -> _PairMaker:
            folder.check_shared(run)
            threads = num_workers or decoding_threads(cores)
            return _PairMaker(source, settings, shards, *load_matcher(), on_error == "skip", batch_size, threads)

        records |= (engine or Engine()).run_shards(pending, load_maker, len(rows), "pairs", progress)
        summary = summarize([records[i] for i in range(shards.count)])
        folder.finish(manifest, summary)
    return {**summary, "shards_made": len(pending)}


def summarize(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the shards' records.

    `seconds` is the time during which any process was at work on a shard, over all runs that made the folder;
    `stage_seconds` are added up over the processes.
    """
    counts = {name: sum(record.get(name, 0) for record in records) for name in COUNTS}
    seconds = _covered([tuple(record["span"]) for record in records])
    stages = _added(records, "stage_seconds")
    return {
        **counts,
        "skipped": [entry for record in records for entry in record["skipped"]],
        "regions": _added(records, "regions"),
        "best_regions": _added(records, "best_regions"),
        "seconds": round(seconds, 2),
        "images_per_second": round(counts["images"] / seconds, 2) if seconds > 0 else 0.0,
        "stage_seconds": {name: round(stages[name], 2) for name in STAGES},
        "shards": len(records),
    }


def _added(records: list[dict[str, Any]], name: str) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for record in records:
        total.update(record[name])
    return dict(sorted(total.items()))


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of time spans."""
    total, until = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


@dataclass(frozen=True)
class LoadedRow:
    """A row that can be used."""

    image: Image.Image
    stored: dict[str, Any]  # the image as the dataset keeps it
    stored_size: tuple[int, int]  # its (width, height), upright
    name: str
    caption: str
    sentences: list[Sentence]
    regions: list[Region] | None  # the boxes of its column
    prepared: Any  # what the detector wants to see of it; None: there is none, or nothing to look for
    short_captions: list[str]


@dataclass
class _PairMaker:
    """Turns rows into finished rows, many images at a time, and counts what it saw."""

    source: Source
    settings: PairSettings
    shards: ParquetShards
    model: Any
    processor: Any
    skip: bool
    batch_size: int
    num_workers: InitVar[int]

    def __post_init__(self, num_workers: int) -> None:
        self.images_at_once = max(1, self.batch_size // IMAGES_PER_CROP_BATCH)
        self.ahead = 2 * self.images_at_once
        self.clock = Clock()
        self.threads = Threads(num_workers, overlaps(self.model.device))

    def load(self, row: int) -> LoadedRow | BadRow:
        """Read, decode and check one row."""
        try:
            found = self.source[row]
            stored = _stored_image(found.image, found.name)
            image = load_image(stored["bytes"], name=found.name)
            stored, stored_size = _shrunk(stored, image, self.settings.store_size)
            sentences = self.processor.split_sentences(found.caption)
            if not sentences:
                raise ValueError(f"the caption {found.caption!r} has no sentence.")
            regions = None
            if self.settings.box_column is not None:
                regions = column_regions(found.columns, self.settings.box_column, image.size, self.settings.boxes)
            short = short_captions(found.columns, found.name)
        except (ValueError, OSError) as error:
            return BadRow.of(self.source, row, error)
        detector = self.processor.detector
        prepared = None if detector is None or regions is not None else detector.prepare(image, found.caption)
        return LoadedRow(image, stored, stored_size, found.name, found.caption, sentences, regions, prepared, short)

    def make(self, shard: Shard, rows: Iterator[LoadedRow | BadRow], advance: Callable[[int], Any]) -> dict[str, Any]:
        """Make one shard and count what was in it."""
        start, before = time.time(), self.clock.read()
        rows = self.clock.timed("decode", rows)
        counts: Counter[str] = Counter()
        by_source: Counter[str] = Counter()
        best_by_source: Counter[str] = Counter()
        skipped: list[BadRow] = []
        with_short = SHORT_CAPTIONS in self.source.columns

        def finished() -> Iterator[dict[str, Any]]:
            for begin in range(0, len(shard.rows), ROWS_PER_BLOCK):
                block = shard.rows[begin : begin + ROWS_PER_BLOCK]
                with self.clock("sentences"):
                    texts = self._embed_sentences(block)
                left_out = len(skipped)
                for row, regions, embeds in self._embedded(self._detected(itertools.islice(rows, len(block)), skipped)):
                    similarity = torch.stack([texts[sentence.text] for sentence in row.sentences]) @ embeds.T
                    pairs = self.processor.pair_sentences(
                        row.caption, row.sentences, regions, row.image.size, similarity
                    )
                    unasked = self.processor.detector is not None and row.regions is None and row.prepared is None
                    counts.update(
                        images=1, sentences=len(row.sentences), pairs=len(pairs), without_phrases=int(unasked)
                    )
                    by_source.update(region.source for region in regions)
                    best_by_source.update(pair.region.source for pair in pairs if pair.best)
                    kept = _scaled(regions, row.image.size, row.stored_size)
                    made = pair_row(row.stored, row.name, row.caption, row.stored_size, row.sentences, kept, pairs)
                    yield {**made, SHORT_CAPTIONS: row.short_captions} if with_short else made
                    advance(1)
                advance(len(skipped) - left_out)

        def describe() -> dict[str, Any]:
            seconds = self.clock.read()
            return {
                "skipped": [asdict(row) for row in skipped],
                **counts,
                "regions": by_source,
                "best_regions": best_by_source,
                "span": [start, time.time()],
                "stage_seconds": {stage: seconds[stage] - before[stage] for stage in STAGES},
            }

        # What the other stages do not count is the time of writing.
        with self.clock("write"):
            return self.shards.write(shard.number, features(with_short), finished(), describe)

    def _embed_sentences(self, block: Sequence[int]) -> dict[str, torch.Tensor]:
        """The embedding `(dim,)` of every sentence of some rows."""
        texts: set[str] = set()
        for number in block:
            try:
                caption = self.source.caption(number)
            except (ValueError, OSError):
                continue  # reported when the row itself is loaded
            texts.update(sentence.text for sentence in self.processor.split_sentences(caption))
        if not texts:
            return {}
        embeds = embed_texts(self.model, self.processor, list(texts), self.batch_size, tokens_per_text=TOKENS_PER_CROP)
        return dict(zip(texts, embeds, strict=True))

    def _detected(
        self, rows: Iterator[LoadedRow | BadRow], skipped: list[BadRow]
    ) -> Iterator[tuple[LoadedRow, list[Region]]]:
        """The rows that can be used, with their candidate regions; the others are noted, or stop the run."""
        while chunk := list(itertools.islice(rows, self.images_at_once)):
            good = good_rows(chunk, skipped if self.skip else None)
            with self.clock("detect"):
                asked = [row.prepared for row in good if row.prepared is not None]
                found = iter(self.processor.detector.detect(asked) if asked else [])
                boxes = [row.regions or [] if row.prepared is None else next(found) for row in good]
                regions = self.processor.propose_regions(
                    [row.image for row in good], boxes=boxes, **self.settings.detector.box_limits
                )
            yield from zip(good, regions, strict=True)

    def _embedded(
        self, rows: Iterator[tuple[LoadedRow, list[Region]]]
    ) -> Iterator[tuple[LoadedRow, list[Region], torch.Tensor]]:
        """Rows with the embeddings `(regions, dim)` of their crops, which threads cut while others are embedded."""
        reader = PixelReader(self.processor.image_processor)

        def cut(item: tuple[LoadedRow, list[Region]]) -> tuple[tuple[LoadedRow, list[Region]], torch.Tensor]:
            row, regions = item
            return item, reader.read([(row.image, region.box) for region in regions])

        crops = self.clock.timed("crop", self.threads.map(cut, rows, self.images_at_once))
        for (row, regions), embeds in self.clock.timed(
            "image", embed_crops(self.model, reader, crops, self.batch_size)
        ):
            yield row, regions, embeds


def overlaps(device: torch.device) -> bool:
    """Whether threads have processor cores of their own while the models work on `device`."""
    return device.type != "cpu"


def _stored_image(image: Any, name: str) -> dict[str, Any]:
    """The image as `datasets` stores it: the bytes of the original file, so that nothing is lost by coding it again."""
    entry = image if isinstance(image, Mapping) else {"path": image}
    return {"bytes": entry.get("bytes") or image_bytes(entry["path"], name), "path": os.path.basename(name)}


def _shrunk(stored: dict[str, Any], image: Image.Image, side: int | None) -> tuple[dict[str, Any], tuple[int, int]]:
    """An image to be stored, its shorter side at most `side` pixels, and its size."""
    short = min(image.size)
    if side is None or short <= side:
        return stored, image.size
    width, height = (round(length * side / short) for length in image.size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return {"bytes": file.getvalue(), "path": os.path.splitext(stored["path"])[0] + ".jpg"}, (width, height)


def _scaled(regions: Sequence[Region], size: tuple[int, int], to: tuple[int, int]) -> Sequence[Region]:
    """Regions of an image as they lie in the same image of another size."""
    if size == to:
        return regions
    scale = [to[axis] / size[axis] for axis in (0, 1, 0, 1)]
    boxes = ([value * factor for value, factor in zip(region.box, scale, strict=True)] for region in regions)
    return [replace(region, box=(x1, y1, x2, y2)) for region, (x1, y1, x2, y2) in zip(regions, boxes, strict=True)]
