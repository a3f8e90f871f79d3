"""Build a dataset of local pairs from images and captions: the work behind `fastgoal pairs`.

Threads decode images, prepare them for the detector and cut crops, while the main thread runs the models on many images
at once. Every shard depends on its own rows only, so it is the same file whether or not an earlier run was killed.
"""

import copy
import io
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from fastgoal.processing.checkpoints.devices import choose_dtype
from fastgoal.processing.checkpoints.fingerprints import check_detector_file, checkpoint_fingerprint, fingerprint
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.checks import MAX_AREA, MIN_AREA, check_positive
from fastgoal.processing.data.boxes import check_box_options, column_regions
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.pairs_dataset import (
    IMAGE_GROUP,
    MANIFEST,
    SHORT_CAPTIONS,
    TOKENS,
    features,
    short_captions,
)
from fastgoal.processing.data.sources import Source, SourceRow
from fastgoal.processing.data.tokens import count_tokens
from fastgoal.processing.detectors.load import describe_detector, load_detector
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.flism import CROPS_PER_IMAGE, Clock, FlismRow, find_pairs
from fastgoal.processing.images import image_bytes, load_image
from fastgoal.processing.matching import pair_row
from fastgoal.processing.pixels import PixelReader
from fastgoal.processing.regions import Detector, Region, candidate_regions
from fastgoal.processing.sentences import Sentence, check_language

from .engine import Engine, Shard, Threads, build_shards, open_engine
from .shards import BadRow, ParquetShards, good_rows

STAGES = ("decode", "detect", "crop", "sentences", "image", "write")
COUNTS = ("images", "sentences", "pairs", "without_phrases")
# The sentences of this many rows are embedded together, so that sentences of similar lengths meet.
ROWS_PER_BLOCK = 256


def build_pairs(
    source: str | os.PathLike[str] | Source,
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] | PreTrainedModel,
    detector: str | os.PathLike[str] | Detector | None = "yolo11n.pt",
    *,
    processor: Any = None,
    regions: str = "objects",
    min_score: float | None = None,
    min_area: float = MIN_AREA,
    max_area: float = MAX_AREA,
    box_format: str | None = None,
    box_units: str = "pixels",
    form: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    captions: str = "join",
    limit: int | None = None,
    allow_outside_files: bool = False,
    language: str = "en",
    max_text_length: int | None = None,
    shard_size: int = 256,
    store_size: int | None = None,
    on_error: str = "stop",
    batch_size: int = 64,
    num_workers: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Match the sentences of captions to regions of their images, and write the pairs as a dataset of parquet files.

        fastgoal.build_pairs("photos/", "pairs/", model="openai/clip-vit-base-patch16", detector="yolo11n.pt")
        data = datasets.load_dataset("pairs/", split="train")

    A run that was interrupted continues where it stopped when it is called again with the same arguments.

    Args:
        source: Images with captions: what `load_source` reads, or a loaded source.
        output: Folder for the dataset, new or to be continued.
        model: The model that scores crops and sentences: a folder, a Hub id, or a loaded model with its `processor`.
        detector: Proposes regions: a local ultralytics `.pt` file, a folder or Hub id of a transformers detector,
            `column:NAME` for boxes in the data, a `Detector`, or `none` for the five default regions only.
        processor: The `FastGoalProcessor` of a loaded `model`.
        regions: `objects` for the boxes of the detector; `sam` for the boxes of the masks of a SAM detector (GOAL).
        min_score: Lowest detection score; by default 0.25, and 0.1 for OWL, whose scores are low.
        min_area: Smallest region (of a SAM: smallest mask), as a fraction of the image.
        max_area: Largest region (of a SAM: largest mask), as a fraction of the image.
        box_format: Format of the boxes of `column:NAME`: `xyxy` for (x1, y1, x2, y2), `xywh` for (x1, y1, width,
            height). Default: that of the form of the data, which is `xyxy` except for COCO.
        box_units: Unit of these boxes: `pixels`, or `fractions` of width and height.
        form: As for `load_source`, like the next five arguments and `allow_outside_files`.
        limit: Use the first rows only.
        language: Language code of the captions.
        max_text_length: Number of tokens that a `model` given by name reads, as for `FastGoalModel.from_base`. Pairs of
            sentences beyond it are stored too, but are the best pair of a row only if there is no other.
        shard_size: Rows of the source in an output file.
        store_size: Store images whose shorter side is longer than this number of pixels shrunk to it, as JPEG with
            boxes to match. The models see the original images. By default the original files are stored.
        on_error: At a row that cannot be used: `stop`, or `skip` it and list it in the summary.
        batch_size: Crops in a forward pass, and a quarter as many images in a call of the detector. Another size
            changes scores by rounding errors.
        num_workers: Threads that decode images and cut crops; by default one per core, at most 16.
        workers: Processes that share the work, each with a GPU where there are GPUs; needs the package ray.
        ray: Address of a Ray cluster that shares the work, `HOST:PORT` or `auto`.
        device: Device of models given by name; by default the accelerator if there is one.
        dtype: Number format of a `model` given by name: `float32`, `float16`, `bfloat16`, or `auto` for float16 on
            CUDA and float32 elsewhere.
        progress: Show a progress bar.

    Returns:
        The summary: `images`, `skipped` (row and reason), `sentences`, `pairs`, `without_phrases` (images whose caption
        named nothing that the detector could look for), `regions` and `best_regions` by source, `text_length` (tokens
        that the model reads), `shards`, `seconds`, `images_per_second` and `stage_seconds` (of the main thread;
        `decode` and `crop` are the time spent waiting for threads) over all runs, and `shards_made` by this call.

    Raises:
        ValueError: An argument is wrong, a model cannot be loaded, a row cannot be used (`on_error="stop"`), the folder
            holds other files, data or settings, or another process writes to it.
        OSError: A file cannot be written, for example because the disk is full.
        ImportError: A package that an argument needs is missing.
    """
    if regions not in ("objects", "sam"):
        raise ValueError(f"`regions` must be objects or sam, got {regions!r}.")
    folder = source.base if isinstance(source, Source) else os.fspath(source)
    # The source first: its mistakes are more common than those of a detector, and take no time to find.
    if not isinstance(source, Source):
        source = load_source(
            source,
            form=form,
            split=split,
            image_column=image_column,
            caption_column=caption_column,
            image_folder=image_folder,
            captions=captions,
            allow_outside_files=allow_outside_files,
        )
    limits: dict[str, Any] = {"min_score": min_score, "min_area": min_area, "max_area": max_area}
    if isinstance(detector, str | os.PathLike | None):
        name = "none" if detector is None else os.fspath(detector)
        check_detector_file(name, str(folder), str(output))
        spec = describe_detector(name, **limits)
    else:
        name, spec = None, detector.spec
    if regions == "sam" and spec.kind != "sam":
        raise ValueError(
            f"`regions=sam` needs a SAM checkpoint, got `detector={detector}`. Name a folder or Hub id, for example "
            "facebook/sam-vit-huge."
        )
    with open_engine(workers, ray) as engine:
        checkpoint = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        if (checkpoint is None) == (processor is None):
            got = "None" if processor is None else "one with a `model` given by name"
            raise ValueError(f"`processor` must be the FastGoalProcessor of a loaded `model`, got {got}.")
        if checkpoint is not None:
            device = engine.choose_device(device)
            dtype, mark = choose_dtype(dtype, device), checkpoint_fingerprint(checkpoint)
        elif (workers, ray) != (None, None):
            raise ValueError("`workers` and `ray` need a `model` given by name, which every process loads itself.")
        elif max_text_length is not None:
            raise ValueError(
                "`max_text_length` needs a `model` given by name, got a loaded one. Use "
                "`FastGoalModel.from_base(model, max_text_length)`."
            )
        else:
            given: Any = model
            device, dtype = device or str(given.device), str(given.dtype).removeprefix("torch.")
            mark = f"{os.path.basename(str(given.name_or_path))}#{fingerprint(given.state_dict())[:32]}"

        def load_matcher() -> tuple[Any, Any]:
            # The detector first: it takes less time to fail.
            loaded: Any = detector
            if name is not None:
                loaded = load_detector("none" if spec.kind == "column" else name, device, **limits)
            matcher, own = model, copy.copy(processor)
            if checkpoint is not None:
                matcher, own = load_model(checkpoint, device, dtype, stretch=True, max_text_length=max_text_length)
            own.detector, own.language = loaded, language
            return matcher, own

        settings = PairSettings(
            mark,
            spec,
            dtype,
            split,
            limit,
            shard_size,
            store_size,
            box_format or source.box_format,
            box_units,
            language,
            max_text_length,
        )
        return write_pairs(source, output, settings, load_matcher, on_error, batch_size, num_workers, progress, engine)


@dataclass(frozen=True)
class PairSettings:
    """The settings that the rows depend on. A folder is only continued with the same settings.

    Attributes:
        model: The model's name, with a mark that changes with its weights.
        detector: The detector and the limits of its regions.
        The others are arguments of `build_pairs`.
    """

    model: str
    detector: DetectorSpec = field(default_factory=DetectorSpec)
    dtype: str = "float32"
    split: str | None = None
    limit: int | None = None
    shard_size: int = 256
    store_size: int | None = None
    box_format: str = "xyxy"
    box_units: str = "pixels"
    language: str = "en"
    max_text_length: int | None = None

    def __post_init__(self) -> None:
        check_box_options(self.box_format, self.box_units)
        check_language(self.language)
        check_positive(limit=self.limit, shard_size=self.shard_size, store_size=self.store_size)

    @property
    def box_column(self) -> str | None:
        """The column with boxes, where the detector is one."""
        return self.detector.name if self.detector.kind == "column" else None


def write_pairs(
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
    """Do the work of `build_pairs`, which see for the other arguments, the summary and the errors.

    Args:
        load_matcher: Returns (model, processor), the processor with its `detector` set; called only if there is work.
        engine: Runs the shards, by default in this process.
    """
    if settings.box_column is not None and settings.box_column not in source.columns:
        raise ValueError(
            f"`detector=column:{settings.box_column}`: {source.name} has no column '{settings.box_column}'. Its "
            f"columns are {', '.join(source.columns)}."
        )

    def load_maker(shards: ParquetShards, threads: int) -> _PairMaker:
        if on_error == "stop" and not shards.record_path(0).exists():
            _check_first_row(source, settings)
        return _PairMaker(source, settings, shards, *load_matcher(), on_error == "skip", batch_size, threads)

    return build_shards(
        source,
        output,
        MANIFEST,
        "fastgoal pairs",
        settings,
        load_maker,
        summarize,
        on_error,
        batch_size,
        num_workers,
        progress,
        engine,
    )


def _check_first_row(source: Source, settings: PairSettings) -> None:
    """Raise `ValueError` if the first row cannot be used, before a model is loaded: the others are often like it."""
    try:
        row = source[0]
        stored = _stored_image(row.image, row.name)
        _column_regions(row, load_image(stored["bytes"], name=row.name).size, settings)
        short_captions(row.columns, row.name)
    except (ValueError, OSError) as error:
        good_rows([BadRow.of(source, 0, error)], None)


def _column_regions(row: SourceRow, size: tuple[int, int], settings: PairSettings) -> list[Region] | None:
    """Return the candidate regions of the boxes in the row, if they are the detector; else None."""
    column = settings.box_column
    if column is None:
        return None
    boxes = column_regions(row.columns, column, size, settings.box_format, settings.box_units)
    return candidate_regions(boxes, size, **settings.detector.box_limits)


def summarize(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the records of the shards.

    `seconds` is the time during which any process worked on a shard, over all runs; `stage_seconds` is the sum over
    the processes.
    """
    counts = {name: sum(record.get(name, 0) for record in records) for name in COUNTS}
    seconds = _covered([tuple(record["span"]) for record in records])
    stages = _added(records, "stage_seconds")
    return {
        **counts,
        "skipped": [entry for record in records for entry in record["skipped"]],
        "regions": _added(records, "regions"),
        "best_regions": _added(records, "best_regions"),
        "text_length": records[0]["text_length"],
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
    """Return the length of the union of time spans."""
    total, until = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


@dataclass
class LoadedRow(FlismRow):
    """A row of the source with its image decoded; its sentences are added when its block is matched.

    Attributes:
        number: Number of the row in the source.
        name: The image's file name.
        stored: The image as the dataset stores it.
        stored_size: Its (width, height), upright.
        short_captions: The row's short captions.
        image_group: The row's image, if several rows can have the same one.
    """

    number: int = 0
    name: str = ""
    stored: dict[str, Any] = field(default_factory=dict)
    stored_size: tuple[int, int] = (0, 0)
    short_captions: list[str] = field(default_factory=list)
    image_group: int | None = None


@dataclass
class _PairMaker:
    """Make shards, many images at a time, and count what is in them."""

    source: Source
    settings: PairSettings
    shards: ParquetShards
    model: Any
    processor: Any
    skip: bool
    batch_size: int
    num_workers: InitVar[int]

    def __post_init__(self, num_workers: int) -> None:
        self.ahead = 2 * max(1, self.batch_size // CROPS_PER_IMAGE)
        self.clock = Clock()
        self.threads = Threads(num_workers, overlaps(self.model.device))
        # Detectors and the storing of smaller images need PIL's; crops do not.
        needs_pil = self.processor.detector is not None or self.settings.store_size is not None
        self.open: Callable[..., Any] = load_image if needs_pil else PixelReader(self.processor.image_processor).open

    def load(self, number: int) -> LoadedRow | BadRow:
        """Read, decode and check one row."""
        detector, prepared = self.processor.detector, None
        try:
            row = self.source[number]
            stored = _stored_image(row.image, row.name)
            image = self.open(stored["bytes"], name=row.name)
            stored, stored_size = _shrunk(stored, image, self.settings.store_size)
            regions = _column_regions(row, image.size, self.settings)
            short = short_captions(row.columns, row.name)
        except (ValueError, OSError) as error:
            return BadRow.of(self.source, number, error)
        if regions is None and detector is not None:
            prepared = detector.prepare(image, row.caption)
        group = row.columns.get(IMAGE_GROUP)
        return LoadedRow(image, row.caption, (), regions, prepared, number, row.name, stored, stored_size, short, group)

    def make(self, shard: Shard, rows: Iterator[LoadedRow | BadRow], advance: Callable[[int], Any]) -> dict[str, Any]:
        """Make one shard and return its record."""
        start, before = time.time(), self.clock.read()
        rows = self.clock.timed("decode", rows)
        counts: Counter[str] = Counter()
        by_source: Counter[str] = Counter()
        best_by_source: Counter[str] = Counter()
        skipped: list[BadRow] = []
        with_short, with_groups = (column in self.source.columns for column in (SHORT_CAPTIONS, IMAGE_GROUP))

        def good(sentences: Mapping[int, list[Sentence]]) -> Iterator[LoadedRow]:
            for loaded in itertools.islice(rows, len(sentences)):
                row: LoadedRow | BadRow = loaded
                if isinstance(row, LoadedRow):
                    row.sentences = sentences[row.number]
                    if not row.sentences:
                        row = BadRow.of(self.source, row.number, f"the caption {row.caption!r} has no sentence.")
                usable = good_rows([row], skipped if self.skip else None)
                yield from usable
                advance(1 - len(usable))

        def finished() -> Iterator[dict[str, Any]]:
            for begin in range(0, len(shard.rows), ROWS_PER_BLOCK):
                with self.clock("sentences"):
                    sentences = {row: self._sentences(row) for row in shard.rows[begin : begin + ROWS_PER_BLOCK]}
                matched = find_pairs(
                    self.processor,
                    self.model,
                    good(sentences),
                    (sentence.text for spans in sentences.values() for sentence in spans),
                    self.batch_size,
                    self.settings.detector.box_limits,
                    self.threads.map,
                    self.clock,
                )
                for row, regions, pairs in matched:
                    unasked = self.processor.detector is not None and row.prepared is None
                    counts.update(
                        images=1, sentences=len(row.sentences), pairs=len(pairs), without_phrases=int(unasked)
                    )
                    by_source.update(region.source for region in regions)
                    best_by_source.update(pair.region.source for pair in pairs if pair.best)
                    kept = _scaled(regions, row.image.size, row.stored_size)
                    stored = pair_row(row.stored, row.name, row.caption, row.stored_size, row.sentences, kept, pairs)
                    texts = [row.caption, *(sentence.text for sentence in row.sentences)]
                    of_caption, *of_sentences = count_tokens(self.processor.tokenizer, texts)
                    stored |= dict(zip(TOKENS, (of_caption, of_sentences), strict=True))
                    if with_short:
                        stored[SHORT_CAPTIONS] = row.short_captions
                    if with_groups:
                        stored[IMAGE_GROUP] = row.image_group
                    yield stored
                    advance(1)

        def describe() -> dict[str, Any]:
            seconds = self.clock.read()
            return {
                "skipped": [asdict(row) for row in skipped],
                **counts,
                "regions": by_source,
                "best_regions": best_by_source,
                "text_length": self.processor.tokenizer.model_max_length,
                "span": [start, time.time()],
                "stage_seconds": {stage: seconds[stage] - before[stage] for stage in STAGES},
            }

        # The time that no other stage counts is the time of writing.
        with self.clock("write"):
            return self.shards.write(
                shard.number, features(with_short, with_groups, with_tokens=True), finished(), describe
            )

    def _sentences(self, number: int) -> list[Sentence]:
        """Return the sentences of a row's caption; none for a row that `load` cannot use either."""
        try:
            return list(self.processor.split_sentences(self.source.captions([number])[0]))
        except (ValueError, OSError):
            return []


def overlaps(device: torch.device) -> bool:
    """Return whether threads have processor cores of their own while the models run on `device`."""
    return device.type != "cpu"


def _stored_image(image: Any, name: str) -> dict[str, Any]:
    """Return the image as `datasets` stores it, with the bytes of the original file."""
    entry = image if isinstance(image, Mapping) else {"path": image}
    return {"bytes": entry.get("bytes") or image_bytes(entry["path"], name), "path": os.path.basename(name)}


def _shrunk(stored: dict[str, Any], image: Image.Image, side: int | None) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return the stored image with a shorter side of at most `side` pixels, and its size."""
    short = min(image.size)
    if side is None or short <= side:
        return stored, image.size
    width, height = (round(length * side / short) for length in image.size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return {"bytes": file.getvalue(), "path": os.path.splitext(stored["path"])[0] + ".jpg"}, (width, height)


def _scaled(regions: Sequence[Region], size: tuple[int, int], to: tuple[int, int]) -> Sequence[Region]:
    """Return the regions of an image in the same image of another size."""
    if size == to:
        return regions
    scale = [to[axis] / size[axis] for axis in (0, 1, 0, 1)]
    boxes = ([value * factor for value, factor in zip(region.box, scale, strict=True)] for region in regions)
    return [replace(region, box=(x1, y1, x2, y2)) for region, (x1, y1, x2, y2) in zip(regions, boxes, strict=True)]
