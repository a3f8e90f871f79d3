"""Retrieval metrics: recall@k and ranks between images and their captions, both ways, without an N x N matrix."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Cosines in float64: what differs by less than this is the same number, summed in another order.
_TIE = 1e-9


@torch.no_grad()
def retrieval_metrics(
    image_embeds: Tensor,
    text_embeds: Tensor,
    text_to_image: Tensor | Sequence[int] | None = None,
    ks: Sequence[int] = (1, 5, 10, 25, 50),
    chunk_size: int = 1024,
) -> dict[str, float]:
    """Recall@k and ranks of text-to-image and image-to-text retrieval by cosine.

    The rank of a caption is the place of its image among all images, the rank of an image the place of the best of its
    captions among all captions, other captions of the same image left out. Ranks start at 1, and ties count against
    us: whatever is as similar as the right answer stands before it, so a model that maps everything to one point finds
    nothing.

    Similarities are computed in tiles of `chunk_size` x `chunk_size`, in float64, on the device of `image_embeds` (on
    the CPU for a device without float64).

    Args:
        image_embeds: `(images, width)`, of any scale: they are normalised here.
        text_embeds: `(captions, width)`, likewise.
        text_to_image: `(captions,)`, the index of each caption's image, in any order, with any number of captions an
            image. An image without a caption is a wrong answer for every caption, and asks no question itself. None
            means that caption j belongs to image j.
        ks: the k of recall@k. A k greater than the number of candidates (images for text to image, captions for image
            to text) says nothing, so its key is left out and a warning logged once.
        chunk_size: rows and columns of a tile; changes memory and speed, never the result.

    Returns:
        For both directions `D` of `text_to_image` and `image_to_text`: `D_R@k` for each k (fraction, 0 to 1),
        `D_mean_rank` and `D_median_rank`.

    Raises:
        ValueError: for embeddings that are empty, not matrices, of different widths, or not finite, and for a
            `text_to_image`, `ks` or `chunk_size` that does not fit.
    """
    images = _unit_rows(image_embeds, "image_embeds")
    texts = _unit_rows(text_embeds, "text_embeds").to(images.device)
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"image_embeds has width {images.shape[1]} and text_embeds has width {texts.shape[1]}; both must be"
            " projected embeddings of the same model."
        )
    owner = _owners(text_to_image, len(images), len(texts)).to(images.device)
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size!r}; it must be a positive integer.")
    if len(ks) == 0 or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks is {ks!r}; it must be a non-empty sequence of positive integers.")

    # (captions,) similarity of each caption to its own image; (images,) that of each image to its best caption.
    of_text = torch.cat(
        [
            (text_rows * images[owner_rows]).sum(-1)
            for text_rows, owner_rows in zip(texts.split(chunk_size), owner.split(chunk_size), strict=True)
        ]
    )
    of_image = images.new_full((len(images),), -torch.inf).scatter_reduce(0, owner, of_text, "amax")

    text_ranks = torch.ones(len(texts), dtype=torch.long, device=images.device)
    image_ranks = torch.ones(len(images), dtype=torch.long, device=images.device)
    for row in range(0, len(texts), chunk_size):
        rows = slice(row, row + chunk_size)
        for column in range(0, len(images), chunk_size):
            columns = slice(column, column + chunk_size)
            similarity = texts[rows] @ images[columns].T
            tile = torch.arange(column, column + similarity.shape[1], device=images.device)
            wrong = owner[rows, None] != tile
            text_ranks[rows] += (wrong & (similarity >= of_text[rows, None] - _TIE)).sum(1)
            image_ranks[columns] += (wrong & (similarity >= of_image[columns] - _TIE)).sum(0)

    asked = of_image.isfinite()
    if not bool(asked.all()):
        logger.warning_once(
            f"{int((~asked).sum())} of {len(images)} images have no caption: they are candidates for text-to-image"
            " retrieval and are left out of the image-to-text questions."
        )
    return {
        **_summary("text_to_image", text_ranks, ks, candidates=len(images)),
        **_summary("image_to_text", image_ranks[asked], ks, candidates=len(texts)),
    }


def _unit_rows(embeds: Tensor, name: str) -> Tensor:
    """`embeds` as a float64 matrix with rows of length 1."""
    embeds = torch.as_tensor(embeds).detach()
    if embeds.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(embeds.shape)}; it must be (rows, width).")
    if embeds.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(embeds.shape)}; there is nothing to retrieve.")
    if embeds.device.type == "mps":
        embeds = embeds.cpu()
    embeds = embeds.double()
    broken = (~embeds.isfinite().all(dim=1)).nonzero().flatten()
    if len(broken):
        raise ValueError(
            f"{name} has NaN or infinite values in {len(broken)} of {len(embeds)} rows, first in row {int(broken[0])};"
            " the model has diverged or overflowed. Evaluate an earlier checkpoint, or in float32."
        )
    return normalize(embeds, dim=-1)


def _owners(text_to_image: Tensor | Sequence[int] | None, images: int, texts: int) -> Tensor:
    """(captions,) index of the image of each caption."""
    if text_to_image is None:
        if images != texts:
            raise ValueError(
                f"image_embeds has {images} rows and text_embeds has {texts}; with several captions an image, give"
                " text_to_image, the image index of each caption."
            )
        return torch.arange(texts)
    owner: Any = torch.as_tensor(text_to_image)
    if owner.shape != (texts,):
        raise ValueError(
            f"text_to_image has shape {tuple(owner.shape)}; it must be ({texts},), one image index for each row of"
            " text_embeds."
        )
    if owner.is_floating_point() or owner.is_complex() or owner.dtype == torch.bool:
        raise ValueError(f"text_to_image has dtype {owner.dtype}; it must hold integer image indices.")
    owner = owner.long()
    outside = ((owner < 0) | (owner >= images)).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"text_to_image[{first}] is {int(owner[first])}; image indices must be from 0 to {images - 1}."
        )
    return owner


def _summary(direction: str, ranks: Tensor, ks: Sequence[int], candidates: int) -> dict[str, float]:
    """Recalls and mean and median rank of one direction."""
    metrics = {}
    for k in ks:
        if k > candidates:
            logger.warning_once(f"{direction}_R@{k} is left out: there are only {candidates} candidates.")
            continue
        metrics[f"{direction}_R@{k}"] = float((ranks <= k).double().mean())
    metrics[f"{direction}_mean_rank"] = float(ranks.double().mean())
    metrics[f"{direction}_median_rank"] = float(statistics.median(ranks.tolist()))
    return metrics
