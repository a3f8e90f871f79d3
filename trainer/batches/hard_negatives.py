"""Find the training images that look similar, before a training and during it, and keep them in its checkpoints."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers import TrainingArguments
from transformers.utils import logging

from fastgoal.modeling_fastgoal.towers_fastgoal import embedding_width
from fastgoal.processing.embedding import embed_crops
from fastgoal.processing.pixels import PixelReader
from fastgoal.trainer.parallel.gather import gather_with_gradient

from .rows import TrainingData, TrainingRow

logger = logging.get_logger(__name__)

# In a folder of its own: a safetensors file next to the model would be loaded and pushed as weights.
FILE = Path("hard_negatives", "neighbors.safetensors")
NEIGHBORS = 50
SAME_IMAGE = 0.9999


def training_neighbors(
    model: Any, processor: Any, data: Any, accelerator: Accelerator, args: TrainingArguments
) -> torch.Tensor:
    """Find the neighbors of every training image by their embeddings from the model with its current weights.

    Args:
        model: The model, not wrapped.
        processor: The model's `FastGoalProcessor`.
        data: The training data, with rows by number.
        accelerator: The processes that share the work.
        args: The options of data loaders.

    Returns:
        `(rows, count)` on the CPU, see `nearest_rows`; the same in every process.

    Raises:
        ValueError: An image cannot be read (the message names its row), the rows have no numbers, or there is no
            processor.
    """
    if isinstance(data, IterableDataset):
        raise ValueError("`hard_negatives` needs a dataset with rows by number, got one that is iterated over.")
    if processor is None:
        raise ValueError(
            "`hard_negatives` embeds the images: `processing_class` must be the model's FastGoalProcessor, got None."
        )
    start, rows = time.monotonic(), TrainingData.of(data)
    if accelerator.is_main_process:
        logger.warning(f"Hard negatives: embedding {len(rows):,} training images to find similar ones.")
    embeds = _image_embeds(model, processor, rows, accelerator, args)
    if accelerator.is_main_process:
        table = nearest_rows(embeds)
        logger.warning(f"Hard negatives: neighbors found in {time.monotonic() - start:.0f} s.")
    else:
        table = torch.empty(len(rows), min(NEIGHBORS, max(len(rows) - 1, 0)), dtype=torch.long)
    return broadcast(table.to(args.device)).cpu()


def save_neighbors(checkpoint: Path, neighbors: torch.Tensor, is_renewed: bool) -> None:
    """Write the neighbors `(rows, count)` into a checkpoint, and whether a partly trained model has found them."""
    file = checkpoint / FILE
    file.parent.mkdir()
    save_file({"neighbors": neighbors.int()}, file, {"renewed": str(is_renewed)})


def load_neighbors(checkpoint: Path) -> tuple[torch.Tensor, bool]:
    """Return what `save_neighbors` wrote.

    Raises:
        ValueError: The file is missing or damaged.
    """
    try:
        with safe_open(checkpoint / FILE, "pt") as tensors:
            return tensors.get_tensor("neighbors").long(), tensors.metadata()["renewed"] == "True"
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(
            f"{checkpoint / FILE}, the hard negatives of the training, cannot be read ({error}). Use another "
            "checkpoint, or search for them again with `ignore_resume_mismatch=True`, which changes the order of rows."
        ) from None


def nearest_rows(embeds: torch.Tensor, count: int = NEIGHBORS, chunk: int = 2048) -> torch.Tensor:
    """Return the most similar other rows of each row by cosine, nearest first.

    Rows of the same image (a cosine above 0.9999) are not neighbors: either caption is right for both.

    Args:
        embeds: `(rows, dim)`, L2-normalized.
        count: Number of neighbors; at most the number of other rows.
        chunk: Number of rows that are compared with all rows at a time; takes memory for `chunk * rows` values.

    Returns:
        Row numbers `(rows, count)`, -1 for none.
    """
    nearest = []
    for start in range(0, len(embeds), chunk):
        similarity = embeds[start : start + chunk] @ embeds.T
        similarity[similarity > SAME_IMAGE] = -torch.inf
        own = torch.arange(len(similarity), device=similarity.device)
        similarity[own, start + own] = -torch.inf
        values, rows = similarity.topk(min(count, max(len(embeds) - 1, 0)), dim=1)
        nearest.append(rows.masked_fill(values.isneginf(), -1))
    return torch.cat(nearest) if nearest else torch.empty(0, 0, dtype=torch.long)


def _image_embeds(
    model: Any, processor: Any, rows: TrainingData, accelerator: Accelerator, args: TrainingArguments
) -> torch.Tensor:
    """Embed all images, `(rows, dim)` in every process; each process embeds a part."""
    first, end = (len(rows) * rank // args.world_size for rank in (args.process_index, args.process_index + 1))
    reader = PixelReader(processor.image_processor)
    loader: Any = DataLoader(
        Subset(rows, range(first, end)),
        batch_size=args.per_device_eval_batch_size,
        collate_fn=partial(_read_images, reader),
        num_workers=args.dataloader_num_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        generator=torch.Generator(),  # or the loader would change the random numbers of the training
    )
    device = model.device  # not the training's device if weights are sharded later
    model.to(args.device)
    with accelerator.autocast():
        parts = [embeds for _, embeds in embed_crops(model, reader, loader, args.per_device_eval_batch_size)]
    embeds = torch.cat([torch.empty(0, embedding_width(model)), *parts])  # a process's part may be empty
    model.to(device)
    return gather_with_gradient(embeds.to(args.device))


def _read_images(reader: PixelReader, rows: Sequence[TrainingRow]) -> tuple[int, torch.Tensor]:
    return len(rows), torch.cat([reader.read([(reader.open(row.image, row.name), None)]) for row in rows])
