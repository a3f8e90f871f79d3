"""Embeddings of whole data sets, and the retrieval evaluation of a model on a source of images with captions."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from fastgoal.processing.data.sources import Source, SourceRow
from fastgoal.processing.images import load_image
from fastgoal.processing.matching import eval_mode
from fastgoal.trainer.evaluation.retrieval import Ranks, retrieval_ranks

logger = logging.get_logger(__name__)

ON_ERROR = ("stop", "skip")


def encode_images(
    model: Any,
    processor: Any,
    images: Iterable[Any],
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = False,
) -> Tensor:
    """Embed images with the image tower.

    Args:
        model: A CLIP (`get_image_features`), on its device and in its dtype. Its training mode is restored.
        processor: Its processor; only `processor.image_processor` is used.
        images: Whatever `processing.images.load_image` reads: PIL images, file names, bytes. A sequence is read
            lazily, a batch at a time.
        batch_size: Images in a forward.
        num_workers: Processes that read and resize images beside this one.
        progress: Show a progress bar with images per second.

    Returns:
        `(images, width)`, normalised, float32, on the CPU.

    Raises:
        ValueError, OSError: An image cannot be read, or there are none.
    """
    rows = images if isinstance(images, Sequence) else list(images)
    if len(rows) == 0:
        raise ValueError("`images` is empty; give at least one image.")
    with eval_mode(model):
        batches = _image_batches(model, processor, rows, batch_size, num_workers, progress)
        return torch.cat([embeds for _, embeds in batches])


@torch.no_grad()
def encode_texts(
    model: Any,
    processor: Any,
    texts: Sequence[str],
    batch_size: int = 128,
    progress: bool = False,
    max_length: int | None = None,
) -> Tensor:
    """Embed captions with the text tower, cut at the model's text length.

    Captions of like length share a batch, which is padded to its own longest. A caption that occurs several times is
    encoded once, so that equal captions have equal embeddings.

    Args:
        model: A CLIP (`get_text_features`), on its device. Its training mode is restored.
        processor: Its processor; only `processor.tokenizer` is used.
        texts: Captions.
        batch_size: Captions in a forward.
        progress: Show a progress bar with captions per second.
        max_length: Cut captions at this many tokens, where it is less than the model reads.

    Returns:
        `(captions, width)` in the order of `texts`, normalised, float32, on the CPU.

    Raises:
        ValueError: There are no texts.
    """
    _check_positive("batch_size", batch_size)
    if isinstance(texts, str) or len(texts) == 0:
        raise ValueError(f"`texts` is {texts!r}; it must be a sequence of at least one caption.")
    unique = list(dict.fromkeys(texts))
    limit = max_text_length(model) if max_length is None else min(max_length, max_text_length(model))
    encoded = processor.tokenizer(unique, truncation=True, max_length=limit, padding=False)
    ids: list[list[int]] = encoded["input_ids"]
    order = sorted(range(len(unique)), key=lambda i: len(ids[i]), reverse=True)  # an out-of-memory error comes at once
    place = {unique[i]: row for row, i in enumerate(order)}
    embeds = []
    with eval_mode(model), tqdm(total=len(unique), desc="captions", unit="caption", disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            batch = [{"input_ids": ids[i]} for i in order[start : start + batch_size]]
            inputs = processor.tokenizer.pad(batch, padding=True, return_tensors="pt").to(model.device)
            features = model.get_text_features(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).pooler_output
            embeds.append(normalize(features.float(), dim=-1).cpu())
            bar.update(len(batch))
    return torch.cat(embeds)[[place[text] for text in texts]]


def max_text_length(model: Any) -> int:
    """Tokens that the text tower of a CLIP reads."""
    return int(model.config.text_config.max_position_embeddings)


def count_truncated(model: Any, processor: Any, texts: Sequence[str]) -> int:
    """How many texts have more tokens than the model reads."""
    ids = processor.tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
    limit = max_text_length(model)
    return sum(len(row) > limit for row in ids)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_source` measured.

    Args:
        metrics: Of `retrieval_metrics`.
        images: Images in the gallery.
        captions: Captions in the gallery.
        max_text_length: Tokens that the model reads.
        truncated_captions: Captions that have more tokens and were cut.
        seconds: Wall-clock time.
        skipped: The message of each row that was left out (`on_error="skip"`).
    """

    metrics: dict[str, float]
    images: int
    captions: int
    max_text_length: int
    truncated_captions: int
    seconds: float
    skipped: list[str] = field(default_factory=list)

    @property
    def truncated_share(self) -> float:
        """Share of the captions that were cut, 0 to 1."""
        return self.truncated_captions / self.captions


def evaluate_source(
    model: Any,
    processor: Any,
    source: Source,
    batch_size: int = 32,
    num_workers: int = 0,
    ks: Sequence[int] = (1, 5, 10, 25, 50),
    on_error: str = "stop",
    progress: bool = False,
) -> Evaluation:
    """Measure retrieval between all images and all captions of a source. Each caption of a row is a text of its own.

    Args:
        model: A CLIP, on its device and in its dtype.
        processor: Its processor.
        source: From `processing.sources.open_source`.
        batch_size: Images in a forward; four times as many captions.
        num_workers: Processes that read and resize images beside this one.
        ks: The k of recall@k.
        on_error: What to do with a row that has no readable image or no caption: `"stop"` with an error that names
            row and file, or `"skip"` it and list it in the result.
        progress: Show progress bars.

    Raises:
        ValueError: An argument is wrong, a row is broken (`on_error="stop"`), or no row is left.
    """
    started = time.perf_counter()
    encoded = encode_source(model, processor, source, batch_size, num_workers, on_error, progress)
    metrics = encoded.ranks(model.device).summary(ks)
    return Evaluation(
        metrics=metrics,
        images=len(encoded.image_embeds),
        captions=len(encoded.captions),
        max_text_length=max_text_length(model),
        truncated_captions=count_truncated(model, processor, encoded.captions),
        seconds=time.perf_counter() - started,
        skipped=encoded.skipped,
    )


@dataclass(frozen=True)
class EncodedSource:
    """The embeddings of all images and all captions of a source.

    Attributes:
        image_embeds: `(images, width)`, normalised, float32, on the CPU.
        text_embeds: `(captions, width)`, likewise.
        captions: The captions.
        text_to_image: The image index of each caption.
        rows: The row of the source that each image comes from.
        skipped: The message of each row that was left out (`on_error="skip"`).
    """

    image_embeds: Tensor
    text_embeds: Tensor
    captions: list[str]
    text_to_image: list[int]
    rows: list[int]
    skipped: list[str] = field(default_factory=list)

    def ranks(self, device: Any = "cpu") -> Ranks:
        """The rank of every query, computed on a device."""
        return retrieval_ranks(self.image_embeds.to(device), self.text_embeds.to(device), self.text_to_image)


def encode_source(
    model: Any,
    processor: Any,
    source: Source,
    batch_size: int = 32,
    num_workers: int = 0,
    on_error: str = "stop",
    progress: bool = False,
) -> EncodedSource:
    """Embed all images and all captions of a source; arguments and errors as for `evaluate_source`."""
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error is {on_error!r}; it must be one of {', '.join(map(repr, ON_ERROR))}.")
    image_embeds: list[Tensor] = []
    captions: list[str] = []
    text_to_image: list[int] = []
    skipped: list[str] = []
    kept: list[int] = []
    number = 0
    with eval_mode(model):
        for rows, embeds in _image_batches(model, processor, source, batch_size, num_workers, progress):
            for row in rows:
                if row.error is None:
                    captions += row.captions
                    text_to_image += [len(kept)] * len(row.captions)
                    kept.append(number)
                elif on_error == "skip":
                    skipped.append(row.error)
                else:
                    raise ValueError(
                        f"{row.error} Mend or remove the row, or leave it out with on_error='skip' (--on-error skip)."
                    )
                number += 1
            image_embeds.append(embeds)
    if not kept:
        reason = f" The first of {len(skipped)} errors: {skipped[0]}" if skipped else ""
        raise ValueError(f"{source.name} has no usable rows.{reason}")
    text_embeds = encode_texts(model, processor, captions, batch_size=4 * batch_size, progress=progress)
    return EncodedSource(torch.cat(image_embeds), text_embeds, captions, text_to_image, kept, skipped)


@dataclass
class _Row:
    """An image ready for the model, or the message that says why there is none."""

    pixel_values: Tensor | None = None
    captions: list[str] = field(default_factory=list)
    error: str | None = None


class _Rows(Dataset[_Row]):
    """Reads and resizes images in worker processes. A broken row of a source becomes a message, not an exception."""

    def __init__(self, rows: Any, image_processor: Any) -> None:
        self.rows = rows
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> _Row:
        if not isinstance(self.rows, Source):
            return _Row(self._pixel_values(self.rows[index]))
        try:
            row: SourceRow = self.rows[index]
        except (ValueError, OSError) as error:
            return _Row(error=str(error))
        try:
            return _Row(self._pixel_values(row.image, row.name), row.captions)
        except (ValueError, OSError) as error:
            return _Row(error=f"{self.rows.where(index)}: {error}")

    def _pixel_values(self, image: Any, name: str | None = None) -> Tensor:
        inputs = self.image_processor(images=load_image(image, name=name), return_tensors="pt")
        pixel_values: Tensor = inputs["pixel_values"][0]
        return pixel_values


def _collate(rows: list[_Row]) -> tuple[list[_Row], Tensor | None]:
    """The rows without their pixels, and the pixels as one tensor, so that a worker hands over one and not many."""
    pixel_values = [row.pixel_values for row in rows if row.pixel_values is not None]
    for row in rows:
        row.pixel_values = None
    return rows, torch.stack(pixel_values) if pixel_values else None


@torch.no_grad()
def _image_batches(
    model: Any, processor: Any, rows: Any, batch_size: int, num_workers: int, progress: bool
) -> Iterator[tuple[list[_Row], Tensor]]:
    """Batches of rows, and the embeddings `(readable rows of the batch, width)` of their images, in order."""
    _check_positive("batch_size", batch_size)
    dataset = _Rows(rows, processor.image_processor)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=_collate)
    with tqdm(total=len(rows), desc="images", unit="image", disable=not progress) as bar:
        for batch, pixel_values in loader:
            if pixel_values is None:
                embeds = torch.empty(0, model.config.projection_dim)
            else:
                features = model.get_image_features(pixel_values=pixel_values.to(model.device, model.dtype))
                embeds = normalize(features.pooler_output.float(), dim=-1).cpu()
            yield batch, embeds
            bar.update(len(batch))


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive integer.")
