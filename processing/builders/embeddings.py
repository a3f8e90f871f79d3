"""Embed the images or the captions of a source, and write the vectors as parquet files: the work of `fastgoal embed`.

    DIR/data/train-00000-of-00012.parquet   `file_name`, `caption` and `vector`
    DIR/fastgoal_embeddings.json            settings and versions; at the end the summary

Every shard depends on its own rows only, so it is the same file whether or not an earlier run was killed.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import InitVar, asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from fastgoal.modeling_fastgoal.towers_fastgoal import embedding_width
from fastgoal.processing.checkpoints.devices import choose_dtype
from fastgoal.processing.checkpoints.fingerprints import checkpoint_fingerprint, embedder_fingerprint
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.embeddings_folder import EMBEDDINGS_MANIFEST, VECTOR_TYPES
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.image_folder import open_images
from fastgoal.processing.data.sources import Source
from fastgoal.processing.embedding import embed_crops, embed_texts
from fastgoal.processing.pixels import PixelReader

from .engine import Shard, Threads, build_shards, open_engine
from .shards import BadRow, ParquetShards, good_rows

if TYPE_CHECKING:
    import datasets

ROW_GROUP = 4096


def build_embeddings(
    source: str | os.PathLike[str] | Source,
    output: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    texts: bool = False,
    vector_type: str = "float16",
    form: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    allow_outside_files: bool = False,
    shard_size: int = 4096,
    on_error: str = "stop",
    batch_size: int = 64,
    num_workers: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    progress: bool = True,
) -> dict[str, Any]:
    """Embed the images or the captions of a source, and write the vectors as a dataset of parquet files.

        fastgoal.build_embeddings("photos/", "vectors/", model="outputs/")
        vectors = datasets.load_dataset("vectors/", split="train").with_format("numpy")["vector"]

    A run that was interrupted continues where it stopped when it is called again with the same arguments.

    Args:
        source: A folder of images, or what `load_source` reads, or a loaded source.
        output: Folder for the dataset, new or to be continued.
        model: Folder or Hub id of the model.
        texts: Embed the captions, a row for each, instead of the images.
        vector_type: `float16` or `float32`. Half precision changes a cosine by less than 0.0005.
        form: As for `load_source`, like the next four arguments and `allow_outside_files`. With `caption_column`, the
            rows of images have the captions, too.
        limit: Use the first rows only.
        shard_size: Rows of the source in an output file.
        on_error: At a row that cannot be used: `stop`, or `skip` it and list it in the summary.
        batch_size: Images or texts in a forward pass.
        num_workers: Threads that decode images; by default one per core, at most 16.
        workers: Processes that share the work, each with a GPU where there are GPUs; needs the package ray.
        ray: Address of a Ray cluster that shares the work, `HOST:PORT` or `auto`.
        device: Device of the model; by default the accelerator if there is one.
        dtype: Number format of the model: `float32`, `float16`, `bfloat16`, or `auto` for float16 on CUDA.
        progress: Show a progress bar.

    Returns:
        The summary: `rows`, `skipped` (row and reason), `width` of the vectors, `model_fingerprint`, `shards`,
        `seconds`, and `shards_made` by this call. The rows of the dataset have `file_name`, `caption` (None for images
        without `caption_column`) and `vector`, L2-normalized.

    Raises:
        ValueError: An argument is wrong, the model cannot be loaded, a row cannot be used (`on_error="stop"`), the
            output of the model is not finite, the folder holds other files, data or settings, or another process
            writes to it.
        OSError: A file cannot be written, for example because the disk is full.
        ImportError: A package that an argument needs is missing.
    """
    if vector_type not in VECTOR_TYPES:
        raise ValueError(f"`vector_type` must be one of {', '.join(VECTOR_TYPES)}, got {vector_type!r}.")
    check_positive(limit=limit, shard_size=shard_size)
    if not isinstance(source, Source):
        options: dict[str, Any] = {
            "form": form,
            "split": split,
            "image_column": image_column,
            "image_folder": image_folder,
            "allow_outside_files": allow_outside_files,
        }
        if texts or caption_column is not None:
            source = load_source(source, caption_column=caption_column, **options)
        else:
            source = open_images(source, **options)
    if texts and source.caption_column is None:
        raise ValueError(f"`texts` needs a source with captions, and {source.name} was loaded without.")
    name, opened = os.fspath(model), source
    with open_engine(workers, ray) as engine:
        device = engine.choose_device(device)
        dtype = choose_dtype(dtype, device)
        settings = EmbeddingSettings(checkpoint_fingerprint(name), texts, vector_type, dtype, split, limit, shard_size)

        def load_maker(shards: ParquetShards, threads: int) -> _VectorMaker:
            # The fingerprint is that of the weights in float32, whatever format computes the vectors.
            loaded, processor = load_model(name, device, "float32")
            mark = embedder_fingerprint(loaded, processor)
            loaded = loaded.to(getattr(torch, dtype))
            skip = on_error == "skip"
            return _VectorMaker(opened, settings, shards, loaded, processor, mark, skip, batch_size, threads)

        return build_shards(
            opened,
            output,
            EMBEDDINGS_MANIFEST,
            "fastgoal embed",
            settings,
            load_maker,
            _summarize,
            on_error,
            batch_size,
            num_workers,
            progress,
            engine,
        )


@dataclass(frozen=True)
class EmbeddingSettings:
    """The settings that the rows depend on. A folder is only continued with the same settings.

    Attributes:
        model: The model's name, with a mark that changes with its weights.
        The others are arguments of `build_embeddings`.
    """

    model: str
    texts: bool = False
    vector_type: str = "float16"
    dtype: str = "float32"
    split: str | None = None
    limit: int | None = None
    shard_size: int = 4096


def _summarize(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the records of the shards."""
    return {
        "rows": sum(record["rows"] for record in records),
        "skipped": [entry for record in records for entry in record["skipped"]],
        "width": records[0]["width"],
        "model_fingerprint": records[0]["model_fingerprint"],
        "shards": len(records),
        "seconds": round(sum(record["seconds"] for record in records), 2),
    }


@dataclass(frozen=True)
class _LoadedRow:
    """A row of the source: the pixels of its image, or its captions."""

    name: str
    captions: list[str]
    pixels: torch.Tensor


@dataclass
class _VectorMaker:
    """Make shards of vectors."""

    source: Source
    settings: EmbeddingSettings
    shards: ParquetShards
    model: Any
    processor: Any
    fingerprint: str
    skip: bool
    batch_size: int
    num_workers: InitVar[int]

    def __post_init__(self, num_workers: int) -> None:
        self.ahead = 2 * self.batch_size
        self.threads = Threads(num_workers, self.model.device.type != "cpu")
        self.reader = PixelReader(self.processor.image_processor)
        self.width = embedding_width(self.model.config)

    def load(self, number: int) -> _LoadedRow | BadRow:
        """Read one row, and decode its image if images are embedded."""
        try:
            if self.settings.texts:
                row = self.source[number]
                return _LoadedRow(row.name, row.captions, torch.empty(0))
            row = self.source[number]
            pixels = self.reader.read([(self.reader.open(row.image, name=row.name), None)])
            return _LoadedRow(row.name, [row.caption] if row.captions else [], pixels)
        except (ValueError, OSError) as error:
            return BadRow.of(self.source, number, error)

    def make(self, shard: Shard, rows: Iterator[_LoadedRow | BadRow], advance: Callable[[int], Any]) -> dict[str, Any]:
        """Make one shard and return its record."""
        start = time.time()
        skipped: list[BadRow] = []

        def good() -> Iterator[_LoadedRow]:
            for row in rows:
                yield from good_rows([row], skipped if self.skip else None)
                advance(1)

        def described() -> dict[str, Any]:
            return {
                "skipped": [asdict(row) for row in skipped],
                "width": self.width,
                "model_fingerprint": self.fingerprint,
                "seconds": time.time() - start,
            }

        vectors = self._of_texts(good()) if self.settings.texts else self._of_images(good())
        return self.shards.write(shard.number, self._features(), self._checked(vectors), described, ROW_GROUP)

    def _of_images(self, rows: Iterator[_LoadedRow]) -> Iterator[tuple[str, str | None, torch.Tensor]]:
        pixels = ((row, row.pixels) for row in rows)
        for row, embeds in embed_crops(self.model, self.reader, pixels, self.batch_size):
            yield row.name, row.captions[0] if row.captions else None, embeds[0]

    def _of_texts(self, rows: Iterator[_LoadedRow]) -> Iterator[tuple[str, str | None, torch.Tensor]]:
        captions = [(row.name, caption) for row in rows for caption in row.captions]
        if captions:
            embeds = embed_texts(self.model, self.processor, [text for _, text in captions], self.batch_size)
            for (name, caption), vector in zip(captions, embeds, strict=True):
                yield name, caption, vector

    def _checked(self, vectors: Iterator[tuple[str, str | None, torch.Tensor]]) -> Iterator[dict[str, Any]]:
        for name, caption, vector in vectors:
            if not vector.isfinite().all():
                raise ValueError(
                    f"{name}: the embedding has NaN or infinite values. Load the model with `dtype=float32`."
                )
            values = vector.numpy().astype(self.settings.vector_type)
            yield {"file_name": name, "caption": caption, "vector": values}

    def _features(self) -> "datasets.Features":
        import datasets

        vector = datasets.List(datasets.Value(self.settings.vector_type), length=self.width)
        return datasets.Features(
            {"file_name": datasets.Value("string"), "caption": datasets.Value("string"), "vector": vector}
        )
