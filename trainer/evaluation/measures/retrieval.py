"""Retrieval metrics: recall@k and ranks between images and their captions, both ways, without an N x N matrix."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import EvalPrediction
from transformers.utils import logging

from fastgoal.processing.checks import check_positive

from .cutoffs import KS, check_ks
from .rivals import count_rivals, unit_rows

logger = logging.get_logger(__name__)

WAYS = ("text_to_image", "image_to_text")


@dataclass(frozen=True)
class Ranks:
    """The rank of every query of a retrieval, both ways. Ranks start at 1.

    Attributes:
        text_to_image: `(captions,)` int64, the place of each caption's image among all images.
        image_to_text: `(images,)` int64, the place of the best of each image's captions among all captions; 0 for an
            image that has no caption and asks nothing.
        text_to_image_owner: `(captions,)` int64, the image of each caption.
    """

    text_to_image: Tensor
    image_to_text: Tensor
    text_to_image_owner: Tensor

    def summary(self, ks: Sequence[int] = KS) -> dict[str, float]:
        """What `retrieval_metrics` returns."""
        check_ks(ks)
        asked = self.image_to_text > 0
        if not bool(asked.all()):
            logger.warning_once(
                f"{int((~asked).sum())} of {len(asked)} images have no caption: they are candidates for text-to-image"
                " retrieval and are left out of the image-to-text questions."
            )
        return {
            **_summary("text_to_image", self.text_to_image, ks, len(self.image_to_text)),
            **_summary("image_to_text", self.image_to_text[asked], ks, len(self.text_to_image)),
        }


def retrieval_metrics(
    image_embeds: Tensor,
    text_embeds: Tensor,
    text_to_image: Tensor | Sequence[int] | None = None,
    ks: Sequence[int] = KS,
    chunk_size: int = 1024,
) -> dict[str, float]:
    """Recall@k and ranks of text-to-image and image-to-text retrieval by cosine.

    The rank of a caption is the place of its image among all images, the rank of an image the place of the best of its
    captions among all captions, other captions of the same image left out. Ranks start at 1, and ties count against
    us: whatever is as similar as the right answer stands before it, so a model that maps everything to one point finds
    nothing, and of two images with the same caption neither is found first.

    Similarities are compared as in float64, on the device of `image_embeds` (on the CPU for one without float64).

    Args:
        image_embeds: `(images, width)`, of any scale: they are normalized here.
        text_embeds: `(captions, width)`, likewise.
        text_to_image: `(captions,)`, the index of each caption's image, in any order, with any number of captions an
            image. An image without a caption is a wrong answer for every caption, and asks no question itself. None
            means that caption j belongs to image j.
        ks: the k of recall@k. A k greater than the number of candidates (images for text to image, captions for image
            to text) says nothing, so its key is left out and a warning logged once.
        chunk_size: rows and columns of a tile of similarities; changes memory and speed, never the result.

    Returns:
        For both directions `D` of `text_to_image` and `image_to_text`: `D_R@k` for each k (fraction, 0 to 1),
        `D_mean_rank` and `D_median_rank`.

    Raises:
        ValueError: for embeddings that are empty, not matrices, of different widths, or not finite, and for a
            `text_to_image`, `ks` or `chunk_size` that does not fit.
    """
    check_ks(ks)
    return retrieval_ranks(image_embeds, text_embeds, text_to_image, chunk_size).summary(ks)


@torch.no_grad()
def retrieval_ranks(
    image_embeds: Tensor,
    text_embeds: Tensor,
    text_to_image: Tensor | Sequence[int] | None = None,
    chunk_size: int = 1024,
) -> Ranks:
    """The ranks that `retrieval_metrics` sums up, one per query; arguments and errors as there."""
    images, texts = unit_rows(image_embeds, "image_embeds"), unit_rows(text_embeds, "text_embeds")
    texts = texts.to(images.device)
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"image_embeds has width {images.shape[1]} and text_embeds has width {texts.shape[1]}; both must be"
            " projected embeddings of the same model."
        )
    owner = _owners(text_to_image, len(images), len(texts)).to(images.device)
    check_positive(chunk_size=chunk_size)

    # (captions,) similarity of each caption to its own image; (images,) that of each image to its best caption.
    chunks = zip(texts.split(chunk_size), owner.split(chunk_size), strict=True)
    of_text = torch.cat([(text_rows * images[owner_rows]).sum(-1) for text_rows, owner_rows in chunks])
    of_image = images.new_full((len(images),), -torch.inf).scatter_reduce(0, owner, of_text, "amax")
    own = torch.stack([torch.arange(len(texts), device=owner.device), owner], dim=1)
    asked = of_image.isfinite()
    before_text, before_image = count_rivals(
        texts, images, of_text[:, None], of_image.where(asked, torch.inf)[:, None], own, chunk_size
    )
    return Ranks(before_text[:, 0] + 1, (before_image[:, 0] + 1).where(asked, 0), owner)


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
    metrics = {}
    for k in ks:
        if k > candidates:
            logger.warning_once(f"{direction}_R@{k} is left out: there are only {candidates} candidates.")
            continue
        metrics[f"{direction}_R@{k}"] = float((ranks <= k).double().mean())
    metrics[f"{direction}_mean_rank"] = float(ranks.double().mean())
    metrics[f"{direction}_median_rank"] = float(statistics.median(ranks.tolist()))
    return metrics


def retrieval_of_predictions(prediction: EvalPrediction) -> dict[str, float]:
    """Retrieval metrics of a Trainer's evaluation, in which row i of the images belongs to row i of the captions.

    Unlike `retrieval_metrics` in percent: they are to be read in a log.
    """
    image_embeds, text_embeds = cast(Any, prediction.predictions)
    ks = [k for k in (1, 5, 10) if k <= len(image_embeds)]
    metrics = retrieval_metrics(torch.as_tensor(image_embeds), torch.as_tensor(text_embeds), ks=ks)
    return {name: round(100 * value, 2) if "_R@" in name else value for name, value in metrics.items()}
