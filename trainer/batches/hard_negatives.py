"""Which training images look alike to the model that a training starts from, or to the one on its way: found once,
kept in the output folder."""

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers import TrainingArguments
from transformers.utils import logging

from fastgoal.modeling_fastgoal.towers_fastgoal import embedding_width
from fastgoal.processing.checkpoints.fingerprints import fingerprint
from fastgoal.processing.embedding import eval_mode
from fastgoal.processing.files import whole_file
from fastgoal.trainer.parallel.gather import gather_with_gradient

from .collator import FastGoalCollator
from .rows import captions_of

logger = logging.get_logger(__name__)

# In a folder of its own: safetensors beside the model's would be counted and pushed as weights.
FILE = Path("hard_negatives", "neighbors.safetensors")
NEIGHBORS = 50
SAME_PICTURE = 0.9999


def training_neighbors(
    model: Any,
    processor: Any,
    data: Any,
    accelerator: Accelerator,
    args: TrainingArguments,
    mark: str | None = None,
    is_renewal: bool = False,
) -> torch.Tensor:
    """The neighbors of every training image, by its embedding from the model as it is now.

    A file in the output folder keeps them, marked with weights and captions: a training that goes on from a checkpoint
    takes them from there, provided its trainer was made with the model that the training started from.

    Args:
        model: The model, not wrapped.
        processor: The model's `FastGoalProcessor`.
        data: The training data, rows by number.
        accelerator: The processes that share the work.
        args: The output folder, and how data are loaded.
        mark: What `mark_start` says of the model that the training started from; of this one by default.
        is_renewal: Keep the neighbors in another file, as those of the model on its way.

    Returns:
        `(rows, count)` on the CPU, as `nearest_rows` gives it; the same in every process.

    Raises:
        ValueError: An image cannot be read (the message names its row), the rows have no numbers, or there is no
            processor.
    """
    if isinstance(data, IterableDataset):
        raise ValueError("`hard_negatives` needs a dataset whose rows are read by number, got one that is streamed.")
    if processor is None:
        raise ValueError(
            "`hard_negatives` embeds the images: `processing_class` must be the FastGoalProcessor, got None."
        )
    main = accelerator.is_main_process
    file = neighbors_file(args, is_renewal)
    mark = (mark or mark_start(model, data)) if main else ""
    kept = _read(file, mark) if main else None
    is_kept = bool(broadcast(torch.tensor([kept is not None], device=args.device).long()))
    table = torch.empty(len(data), min(NEIGHBORS, max(len(data) - 1, 0)), dtype=torch.long) if kept is None else kept
    if not is_kept:
        start = time.monotonic()
        if main:
            logger.warning(f"Hard negatives: looking for the training images that look alike, {len(data):,} in all.")
        embeds = _image_embeds(model, processor, data, accelerator, args)
        if main:
            table = nearest_rows(embeds).cpu()
            _write(file, table, mark)
            logger.warning(f"Hard negatives: neighbors found in {time.monotonic() - start:.0f} s.")
    return broadcast(table.to(args.device)).cpu()


def neighbors_file(args: TrainingArguments, is_renewal: bool = False) -> Path:
    """Where a training keeps its neighbors."""
    file = Path(args.output_dir or ".") / FILE
    return file.with_stem(f"{file.stem}-renewed") if is_renewal else file


def nearest_rows(embeds: torch.Tensor, count: int = NEIGHBORS, chunk: int = 2048) -> torch.Tensor:
    """The most similar other rows of each row, by cosine, the nearest first.

    Rows that are the same picture (a cosine above 0.9999) are no neighbors: their captions are both right.

    Args:
        embeds: `(rows, dim)`, of any length.
        count: Neighbors wanted; with fewer other rows there are fewer.
        chunk: Rows compared with all others at a time: the memory is `chunk * rows` numbers.

    Returns:
        Row numbers `(rows, count)`, -1 where there is none.
    """
    embeds = F.normalize(embeds.float(), dim=-1)
    found = []
    for start in range(0, len(embeds), chunk):
        similarity = embeds[start : start + chunk] @ embeds.T
        similarity[similarity > SAME_PICTURE] = -torch.inf
        own = torch.arange(len(similarity), device=similarity.device)
        similarity[own, start + own] = -torch.inf
        values, rows = similarity.topk(min(count, max(len(embeds) - 1, 0)), dim=1)
        found.append(rows.masked_fill(values.isneginf(), -1))
    return torch.cat(found) if found else torch.empty(0, 0, dtype=torch.long)


@torch.no_grad()
def _image_embeds(
    model: Any, processor: Any, data: Any, accelerator: Accelerator, args: TrainingArguments
) -> torch.Tensor:
    """Embeddings of all images, `(rows, dim)` in every process, each of which embeds a share."""
    first, end = (len(data) * rank // args.world_size for rank in (args.process_index, args.process_index + 1))
    loader: DataLoader = DataLoader(
        Subset(data, range(first, end)),
        batch_size=args.per_device_eval_batch_size,
        collate_fn=FastGoalCollator(processor).pixel_values,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )
    parts = [torch.empty(0, embedding_width(model), device=args.device)]  # a share may be empty
    home = model.device  # not the device of the training where that cuts the model into shards later
    # A data loader draws a random number for its workers, which would change the training's.
    with torch.random.fork_rng(devices=[]), eval_mode(model.to(args.device)), accelerator.autocast():
        for pixels in loader:
            features = model.get_image_features(pixel_values=pixels.to(args.device, model.dtype))
            parts.append(features.pooler_output.float())
    model.to(home)
    return gather_with_gradient(torch.cat(parts))


def mark_start(model: nn.Module, data: Any) -> str:
    """Return a fingerprint of a model's weights and of all captions."""
    return fingerprint(model.state_dict(), captions_of(data))


def _read(file: Path, mark: str) -> torch.Tensor | None:
    """The neighbors in a file with this mark; None if there is none."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as kept:
            if (kept.metadata() or {}).get("mark") == mark:
                return kept.get_tensor("neighbors").long()
    except SafetensorError:
        pass
    logger.warning(f"{file} is not of this model and these captions, and is made anew: the order of rows will change.")
    return None


def _write(file: Path, neighbors: torch.Tensor, mark: str) -> None:
    with whole_file(file) as draft:
        draft.write(save({"neighbors": neighbors.int()}, {"mark": mark, "rows": str(len(neighbors))}))
