"""Embeddings of whole datasets: images, captions, and both of a source."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import tee
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.sources import Source
from fastgoal.processing.images import load_image
from fastgoal.processing.matching import cut_crops, embed_crop_stream, embed_texts, eval_mode

from .retrieval import Ranks, retrieval_ranks

Row = tuple[Tensor | None, list[str], str | None]
"""An image of the model's size, `(1, 3, height, width)`, and its captions, or the message that says why it is none."""


def encode_images(
    model: Any,
    processor: Any,
    images: Iterable[Any],
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = False,
) -> Tensor:
    """Embed images with the image tower; what is not named here, as for `encode_source`.

    Args:
        processor: Only its `image_processor` is used.
        images: Whatever `processing.images.load_image` reads: PIL images, file names, bytes. A sequence is read
            lazily, a batch at a time.

    Returns:
        `(images, width)`, normalized, float32, on the CPU.

    Raises:
        ValueError, OSError: An image cannot be read, or there are none.
    """
    rows = images if isinstance(images, Sequence) else list(images)
    if len(rows) == 0:
        raise ValueError("`images` is empty; give at least one image.")
    with eval_mode(model):
        batches = _image_batches(model, processor, rows, batch_size, num_workers, progress)
        return torch.cat([embeds for _, embeds in batches])


def encode_texts(
    model: Any,
    processor: Any,
    texts: Sequence[str],
    batch_size: int = 128,
    progress: bool = False,
    max_length: int | None = None,
) -> Tensor:
    """Embed captions with the text tower, cut at the model's text length; see `embed_texts` for which go together.

    Args:
        model: A CLIP, on its device.
        processor: Only its `tokenizer` is used.
        texts: Captions.
        batch_size: Captions of the model's length in a forward; of shorter ones as many as have so many tokens.
        progress: Show a progress bar with captions per second.
        max_length: Cut captions at this many tokens, where it is less than the model reads.

    Returns:
        `(captions, width)` in the order of `texts`, normalized, float32, on the CPU.

    Raises:
        ValueError: There are no texts.
    """
    check_positive(batch_size=batch_size)
    if isinstance(texts, str) or len(texts) == 0:
        raise ValueError(f"`texts` is {texts!r}; it must be a sequence of at least one caption.")
    limit = text_positions(model) if max_length is None else min(max_length, text_positions(model))
    with eval_mode(model), tqdm(total=len(set(texts)), desc="captions", unit="caption", disable=not progress) as bar:
        return embed_texts(texts, model, processor.tokenizer, batch_size, limit, limit, bar.update)


@dataclass(frozen=True)
class EncodedSource:
    """The embeddings of all images and all captions of a source.

    Attributes:
        image_embeds: `(images, width)`, normalized, float32, on the CPU.
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
    """Embed all images and all captions of a source. Each caption of a row is a text of its own.

    Args:
        model: A CLIP, on its device and in its dtype.
        processor: Its processor.
        source: From `processing.data.sources.load_source`.
        batch_size: Images in a forward; four times as many captions.
        num_workers: Processes that read and resize images beside this one.
        on_error: At a row that has no readable image or no caption: `"stop"` with an error that names row and file,
            or `"skip"` it and list it in the result.
        progress: Show progress bars.

    Raises:
        ValueError: An argument is wrong, a row is broken (`on_error="stop"`), or no row is left.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error is {on_error!r}; it must be one of 'stop', 'skip'.")
    image_embeds: list[Tensor] = []
    captions: list[str] = []
    text_to_image: list[int] = []
    skipped: list[str] = []
    kept: list[int] = []
    number = 0
    with eval_mode(model):
        for rows, embeds in _image_batches(model, processor, source, batch_size, num_workers, progress):
            for row_captions, error in rows:
                if error is None:
                    captions += row_captions
                    text_to_image += [len(kept)] * len(row_captions)
                    kept.append(number)
                elif on_error == "skip":
                    skipped.append(error)
                else:
                    raise ValueError(
                        f"{error} Mend or remove the row, or leave it out with on_error='skip' (--on-error skip)."
                    )
                number += 1
            image_embeds.append(embeds)
    if not kept:
        reason = f" The first of {len(skipped)} errors: {skipped[0]}" if skipped else ""
        raise ValueError(f"{source.name} has no usable rows.{reason}")
    text_embeds = encode_texts(model, processor, captions, batch_size=4 * batch_size, progress=progress)
    return EncodedSource(torch.cat(image_embeds), text_embeds, captions, text_to_image, kept, skipped)


class _Rows(Dataset[Row]):
    """Reads and resizes images in worker processes. A broken row of a source becomes a message, not an exception."""

    def __init__(self, rows: Any, image_processor: Any) -> None:
        self.rows = rows
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        if not isinstance(self.rows, Source):
            return self._pixels(self.rows[index]), [], None
        row = None
        try:
            row = self.rows[index]
            return self._pixels(row.image, row.name), row.captions, None
        except (ValueError, OSError) as error:
            where = "" if row is None else f"{self.rows.where(index)}: "  # the source's own errors say it
            return None, [], f"{where}{error}"

    def _pixels(self, image: Any, name: str | None = None) -> Tensor:
        whole = load_image(image, name=name)
        return cut_crops(whole, [(0, 0, *whole.size)], self.image_processor)


def _collate(rows: list[Row]) -> tuple[list[tuple[list[str], str | None]], Tensor]:
    """The rows without their pixels, and the pixels as one tensor, so that a worker hands over one and not many."""
    pixels = [pixels for pixels, _, _ in rows if pixels is not None]
    return [row[1:] for row in rows], torch.cat(pixels) if pixels else torch.empty(0)


def _image_batches(
    model: Any, processor: Any, rows: Any, batch_size: int, num_workers: int, progress: bool
) -> Iterator[tuple[list[tuple[list[str], str | None]], Tensor]]:
    """Batches of rows, and the embeddings `(readable rows of the batch, width)` of their images, in order."""
    check_positive(batch_size=batch_size)
    dataset = _Rows(rows, processor.image_processor)
    batches, ahead = tee(DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=_collate))
    stream = embed_crop_stream((pixels for _, pixels in ahead), model, processor.image_processor, batch_size)
    with tqdm(total=len(rows), desc="images", unit="image", disable=not progress) as bar:
        for (batch, _), embeds in zip(batches, stream, strict=True):
            yield batch, embeds
            bar.update(len(batch))
