"""Caption quality as a model sees it: the mean cosine of images and captions, as in FAST-GOAL's paper."""

import math
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.pairs_dataset import PairsFolder
from fastgoal.processing.data.statistics import histogram, nice_edges
from fastgoal.processing.data.unmatched import UnmatchedRows
from fastgoal.processing.embedding import embed_images, embed_texts
from fastgoal.processing.images import load_image

PUBLISHED_COSINES = {"GLIT100k": 0.2434, "DOCCI": 0.2448}  # FAST-GOAL's paper: with Long-CLIP-L, 1,000 pairs each
BATCH = 64  # rows decoded at a time


def mean_cosine(
    folder: PairsFolder | UnmatchedRows,
    model: Any,
    processor: Any,
    name: str,
    sample: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Compute the mean cosine similarity of images and their full captions, with 95 % interval and histogram.

    For comparison, the result holds the mean cosine of the same images with the caption of another image of the sample.

    Args:
        folder: The pairs dataset, or images with captions.
        model: Any supported model, on its device.
        processor: The model's processor.
        name: Name of the model in the result.
        sample: Number of rows to draw at random; all rows if there are fewer.
        seed: Seed of the draw.
        progress: Show a progress bar.

    Returns:
        `model`, `tokens` (text length of the model), `rows`, `mean`, `interval` (from the standard error),
        `mismatched`, `histogram`, `mismatched_histogram`, `published` and `broken`, the messages of images that cannot
        be read. With a single row, the interval and the mismatched values are None.

    Raises:
        ValueError: None of the drawn images can be read.
    """
    check_positive(sample=sample)
    drawn = random.Random(seed).sample(range(len(folder)), min(sample, len(folder)))
    images: list[torch.Tensor] = []
    texts: list[torch.Tensor] = []
    broken: list[str] = []

    def readable() -> Iterator[tuple[Any, str]]:
        for number, row in tqdm(
            folder.read(drawn), "image-caption cosine", len(drawn), unit="row", disable=not progress
        ):
            try:
                yield load_image(row["image"] or {}, name=row["file_name"]), row["caption"] or ""
            except (ValueError, OSError) as error:
                broken.append(f"row {row.get('row', number)}: {error}")

    rows = readable()
    while batch := list(islice(rows, BATCH)):
        images.append(embed_images(model, processor, [image for image, _ in batch]))
        texts.append(embed_texts(model, processor, [caption for _, caption in batch]))
    if not images:
        raise ValueError(
            f"None of the {len(drawn)} images drawn for the cosine can be read. The first error: {broken[0]}"
        )
    image_embeds, text_embeds = torch.cat(images), torch.cat(texts)
    cosines = (image_embeds * text_embeds).sum(dim=1).double().numpy()
    # A single row has no caption of another image, and no standard error.
    several = len(cosines) > 1
    others = (image_embeds * text_embeds.roll(1, 0)).sum(dim=1).double().numpy()
    mean, half = float(cosines.mean()), 1.96 * float(cosines.std(ddof=1 if several else 0)) / math.sqrt(len(cosines))
    both = np.concatenate([cosines, others])
    edges = nice_edges(float(both.min()), float(both.max()))
    return {
        "model": name,
        "tokens": text_positions(model),
        "rows": len(cosines),
        "mean": mean,
        "interval": [mean - half, mean + half] if several else None,
        "mismatched": float(others.mean()) if several else None,
        "histogram": histogram(cosines, edges),
        "mismatched_histogram": histogram(others, edges) if several else None,
        "published": PUBLISHED_COSINES,
        "broken": broken,
    }
