"""Embed the images and captions of a source, with broken rows named or skipped."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.sources import Source, refuse_problems
from fastgoal.processing.embedding import embed_crops, embed_texts
from fastgoal.processing.pixels import PixelReader

from .retrieval import Ranks, retrieval_ranks

Row = tuple[Tensor | None, list[str], str]
"""The pixels of an image, `(1, 3, height, width)`, and its captions; or None, no captions, and what is wrong."""


@dataclass(frozen=True)
class EncodedSource:
    """The embeddings of all images and captions of a source.

    Attributes:
        image_embeds: `(images, dim)`, normalized, float32, on the CPU.
        text_embeds: `(captions, dim)`, in the same form.
        captions: The captions.
        text_to_image: The index of each caption's image.
        rows: The row of the source that each image comes from.
        skipped: The message of each skipped row (`on_error="skip"`).
    """

    image_embeds: Tensor
    text_embeds: Tensor
    captions: list[str]
    text_to_image: list[int]
    rows: list[int]
    skipped: list[str] = field(default_factory=list)

    def ranks(self, device: Any = "cpu") -> Ranks:
        """Compute the rank of every query on a device."""
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
    """Embed all images and captions of a source. Each caption of a row is a text of its own.

    Args:
        model: Any supported model, on its device and in its dtype.
        processor: The model's processor.
        source: What `load_source` returns.
        batch_size: Images in a forward pass, and four times as many captions.
        num_workers: Processes that read and resize images; 0 for this process.
        on_error: What to do with a row without a readable image or a caption: `"stop"` raises an error that names row
            and file, `"skip"` lists it in the result.
        progress: Show progress bars.

    Raises:
        ValueError: An argument is wrong, a row is broken (`on_error="stop"`), or no row is usable.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"`on_error` must be stop or skip, got {on_error!r}.")
    check_positive(batch_size=batch_size)
    if on_error == "stop":
        refuse_problems(source, way_out=" To skip such rows, use `on_error=skip`.")
    image_embeds: list[Tensor] = []
    captions: list[str] = []
    text_to_image: list[int] = []
    skipped: list[str] = []
    rows: list[int] = []
    number = 0
    for batch, embeds in _encode_batches(model, processor, source, batch_size, num_workers, progress):
        for row_captions, error in batch:
            if not error:
                captions += row_captions
                text_to_image += [len(rows)] * len(row_captions)
                rows.append(number)
            elif on_error == "skip":
                skipped.append(error)
            else:
                raise ValueError(f"{error} Repair or remove the row, or skip such rows with `on_error=skip`.")
            number += 1
        image_embeds.append(embeds)
    if not rows:
        reason = f" The first of {len(skipped)} errors: {skipped[0]}" if skipped else ""
        raise ValueError(f"{source.name} has no usable rows.{reason}")
    text_embeds = embed_texts(model, processor, captions, 4 * batch_size, progress=progress)
    return EncodedSource(torch.cat(image_embeds), text_embeds, captions, text_to_image, rows, skipped)


def encode_images(
    model: Any, processor: Any, source: Source, batch_size: int = 32, num_workers: int = 0, progress: bool = False
) -> Tensor:
    """Embed the images of all rows of a source, `(rows, dim)`. The arguments are those of `encode_source`.

    Raises:
        ValueError: A row has no readable image.
    """
    parts = []
    for batch, embeds in _encode_batches(model, processor, source, batch_size, num_workers, progress):
        for _, error in batch:
            if error:
                raise ValueError(f"{error} Repair or remove the row.")
        parts.append(embeds)
    return torch.cat(parts)


def _encode_batches(
    model: Any, processor: Any, source: Source, batch_size: int, num_workers: int, progress: bool
) -> Iterator[tuple[list[tuple[list[str], str]], Tensor]]:
    """Yield captions and messages of the rows of each batch, with the embeddings of its readable images."""
    reader = PixelReader(processor.image_processor)
    loader: Any = DataLoader(
        _Rows(source, reader),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # or the loader would draw from the global one
    )
    with tqdm(total=len(source), desc="images", unit="image", disable=not progress) as bar:
        for batch, embeds in embed_crops(model, reader, loader, batch_size):
            yield batch, embeds
            bar.update(len(batch))


class _Rows(Dataset[Row]):
    """Read the rows of a source in worker processes. A broken row becomes a message instead of an exception."""

    def __init__(self, source: Source, reader: PixelReader) -> None:
        self.source, self.reader = source, reader

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Row:
        row = None
        try:
            row = self.source[index]
            pixels = self.reader.read([(self.reader.open(row.image, row.name), None)])
        except (ValueError, OSError) as error:
            label = "" if row is None else f"{self.source.label(index)}: "  # errors of the source name the row
            return None, [], f"{label}{error}"
        return pixels, row.captions, ""


def _collate(rows: list[Row]) -> tuple[list[tuple[list[str], str]], Tensor]:
    """Return captions and messages of a batch, and all its pixels in one tensor, which workers hand over faster."""
    pixels = [pixels for pixels, _, _ in rows if pixels is not None]
    return [row[1:] for row in rows], torch.cat(pixels) if pixels else torch.empty(0)
