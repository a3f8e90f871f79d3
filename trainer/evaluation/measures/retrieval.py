"""Recall@k and ranks between images and their captions, in both directions."""

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
from .ranks import count_at_least, unit_rows

logger = logging.get_logger(__name__)

DIRECTIONS = ("text_to_image", "image_to_text")


@dataclass(frozen=True)
class Ranks:
    """The rank of the right answer to every query, in both directions. Ranks start at 1.

    Attributes:
        text_to_image: `(captions,)` int64, the rank of each caption's image among all images.
        image_to_text: `(images,)` int64, the rank of the best caption of each image among all captions; 0 for an image
            without captions, which is not a query.
        text_to_image_owner: `(captions,)` int64, the image of each caption.
    """

    text_to_image: Tensor
    image_to_text: Tensor
    text_to_image_owner: Tensor

    def summary(self, ks: Sequence[int] = KS) -> dict[str, float]:
        """Return the metrics of `retrieval_metrics`."""
        check_ks(ks)
        is_query = self.image_to_text > 0
        if not bool(is_query.all()):
            logger.warning_once(
                f"{int((~is_query).sum())} of {len(is_query)} images have no caption: they are candidates for"
                " text-to-image retrieval, but not queries for image-to-text retrieval."
            )
        return {
            **_summary("text_to_image", self.text_to_image, ks, len(self.image_to_text)),
            **_summary("image_to_text", self.image_to_text[is_query], ks, len(self.text_to_image)),
        }


def retrieval_metrics(
    image_embeds: Tensor,
    text_embeds: Tensor,
    text_to_image: Tensor | Sequence[int] | None = None,
    ks: Sequence[int] = KS,
    chunk_size: int = 1024,
) -> dict[str, float]:
    """Compute recall@k and ranks of text-to-image and image-to-text retrieval by cosine similarity.

        metrics = retrieval_metrics(image_embeds, text_embeds, text_to_image=[0, 0, 1, 1], ks=(1, 5))
        metrics["text_to_image_R@1"]

    The rank of a caption is the rank of its image among all images. The rank of an image is the rank of its best
    caption among all captions of other images. Ties count against the model: a candidate that is as similar as the
    right answer ranks before it. A model that maps everything to one point therefore has a recall of 0, and if two
    images have the same caption, neither ranks first.

    Similarities are compared in float64, on the device of `image_embeds` (on the CPU if the device lacks float64).

    Args:
        image_embeds: `(images, width)`. They need not be normalized.
        text_embeds: `(captions, width)`. They need not be normalized.
        text_to_image: `(captions,)`, the index of each caption's image, in any order, with any number of captions per
            image. An image without captions is a candidate for every caption, but not a query. None means that
            caption j belongs to image j.
        ks: Values of k for recall@k. A k larger than the number of candidates is left out with a warning.
        chunk_size: Rows and columns of a tile of similarities. It affects memory and speed, not the result.

    Returns:
        For both directions `D`, `text_to_image` and `image_to_text`: `D_R@k` for each k (a fraction, 0 to 1),
        `D_mean_rank` and `D_median_rank`.

    Raises:
        ValueError: The embeddings are empty, not matrices, of different widths or not finite, or `text_to_image`,
            `ks` or `chunk_size` does not fit.
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
    """Return the rank of every query; see `retrieval_metrics` for arguments and errors."""
    images, texts = unit_rows(image_embeds, "image_embeds"), unit_rows(text_embeds, "text_embeds")
    texts = texts.to(images.device)
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            "`image_embeds` and `text_embeds` must be projected embeddings of the same model, got widths"
            f" {images.shape[1]} and {texts.shape[1]}."
        )
    owner = _owners(text_to_image, len(images), len(texts)).to(images.device)
    check_positive(chunk_size=chunk_size)

    return ranks_by_product(images, texts, owner, chunk_size)


@torch.no_grad()
def ranks_by_product(images: Tensor, texts: Tensor, owner: Tensor, chunk_size: int = 1024) -> Ranks:
    """Return the rank of every query by the inner product of float64 rows, which need not have unit length.

    Args:
        images: `(images, width)` float64.
        texts: `(captions, width)` float64, on the same device.
        owner: `(captions,)` int64, the image of each caption.
        chunk_size: Rows and columns of a tile of similarities.
    """
    # (captions,): similarity of each caption to its image; (images,): similarity of each image to its best caption.
    chunks = zip(texts.split(chunk_size), owner.split(chunk_size), strict=True)
    of_text = torch.cat([(text_rows * images[owner_rows]).sum(-1) for text_rows, owner_rows in chunks])
    of_image = images.new_full((len(images),), -torch.inf).scatter_reduce(0, owner, of_text, "amax")
    right = torch.stack([torch.arange(len(texts), device=owner.device), owner], dim=1)
    is_query = of_image.isfinite()
    before_text, before_image = count_at_least(
        texts, images, of_text[:, None], of_image.where(is_query, torch.inf)[:, None], right, chunk_size
    )
    return Ranks(before_text[:, 0] + 1, (before_image[:, 0] + 1).where(is_query, 0), owner)


def _owners(text_to_image: Tensor | Sequence[int] | None, images: int, texts: int) -> Tensor:
    """Return the index of the image of each caption, `(captions,)`."""
    if text_to_image is None:
        if images != texts:
            raise ValueError(
                "`text_to_image`, the image index of each caption, is required if images have several captions; got"
                f" {images} rows of `image_embeds` and {texts} of `text_embeds`."
            )
        return torch.arange(texts)
    owner: Any = torch.as_tensor(text_to_image)
    if owner.shape != (texts,):
        raise ValueError(
            f"`text_to_image` must have shape ({texts},), one image index per row of `text_embeds`, got shape"
            f" {tuple(owner.shape)}."
        )
    if owner.is_floating_point() or owner.is_complex() or owner.dtype == torch.bool:
        raise ValueError(f"`text_to_image` must hold integer image indices, got dtype {owner.dtype}.")
    owner = owner.long()
    outside = ((owner < 0) | (owner >= images)).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"`text_to_image` must hold image indices from 0 to {images - 1}, got {int(owner[first])} in row {first}."
        )
    return owner


def _summary(direction: str, ranks: Tensor, ks: Sequence[int], candidates: int) -> dict[str, float]:
    metrics = {f"{direction}_R@{k}": float((ranks <= k).double().mean()) for k in ks if k <= candidates}
    if left_out := [f"R@{k}" for k in ks if k > candidates]:
        verb = "is" if len(left_out) == 1 else "are"
        logger.warning_once(f"{', '.join(left_out)} {verb} left out: there are only {candidates} candidates.")
    metrics[f"{direction}_mean_rank"] = float(ranks.double().mean())
    metrics[f"{direction}_median_rank"] = float(statistics.median(ranks.tolist()))
    return metrics


def retrieval_of_predictions(prediction: EvalPrediction) -> dict[str, float]:
    """Return the retrieval metrics of a Trainer's evaluation, in which image i belongs to caption i.

    Recalls are in percent, as they are meant for the log.
    """
    image_embeds, text_embeds = cast(Any, prediction.predictions)
    ks = [k for k in (1, 5, 10) if k <= len(image_embeds)]
    metrics = retrieval_metrics(torch.as_tensor(image_embeds), torch.as_tensor(text_embeds), ks=ks)
    return {name: round(100 * value, 2) if "_R@" in name else value for name, value in metrics.items()}
