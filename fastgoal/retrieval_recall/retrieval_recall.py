"""Recall@k and ranks between images and captions as a metric of `evaluate`. It needs numpy only, as in a Space."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Recall@k, mean rank and median rank of text-to-image and image-to-text retrieval by cosine similarity. Images may have
any number of captions. Ties count against the model.
"""

_INPUTS = """\
Args:
    predictions: (captions, width) embeddings of the captions. They need not be normalized.
    references: (captions,) the index of each caption's image.
    image_embeds: (images, width) embeddings of the images. They need not be normalized.
    ks: values of k for recall@k. A k larger than the number of candidates is left out.
    chunk_size: captions compared at a time. It affects memory and speed, not the result.
Returns:
    text_to_image_R@k and image_to_text_R@k for each k (0 to 1), and mean_rank and median_rank of both directions.
"""

_TIE = 1e-9


class RetrievalRecall(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        image_embeds: Any = None,
        ks: Sequence[int] = (1, 5, 10, 25, 50),
        chunk_size: int = 512,
    ) -> dict[str, float]:
        if image_embeds is None:
            raise ValueError("`image_embeds` must be the embeddings of the images, (images, width), got None.")
        texts, images = _unit_rows(predictions, "predictions"), _unit_rows(image_embeds, "image_embeds")
        owner = np.asarray(references, dtype=np.int64)
        if texts.shape[1] != images.shape[1]:
            raise ValueError(
                "`predictions` and `image_embeds` must have the same width, got"
                f" {texts.shape[1]} and {images.shape[1]}."
            )
        if owner.min() < 0 or owner.max() >= len(images):
            raise ValueError(f"`references` must be image indices from 0 to {len(images) - 1}.")
        of_text = (texts * images[owner]).sum(1)
        of_image = np.full(len(images), -np.inf)
        np.maximum.at(of_image, owner, of_text)
        text_ranks = np.ones(len(texts), dtype=np.int64)
        image_ranks = np.ones(len(images), dtype=np.int64)
        for start in range(0, len(texts), chunk_size):
            rows = slice(start, start + chunk_size)
            similarity = texts[rows] @ images.T
            similarity[np.arange(len(similarity)), owner[rows]] = -np.inf
            text_ranks[rows] += (similarity >= of_text[rows, None] - _TIE).sum(1)
            image_ranks += (similarity >= of_image - _TIE).sum(0)
        metrics = {}
        for direction, ranks, candidates in (
            ("text_to_image", text_ranks, len(images)),
            ("image_to_text", image_ranks[np.isfinite(of_image)], len(texts)),
        ):
            metrics.update({f"{direction}_R@{k}": float((ranks <= k).mean()) for k in ks if k <= candidates})
            metrics[f"{direction}_mean_rank"] = float(ranks.mean())
            metrics[f"{direction}_median_rank"] = float(np.median(ranks))
        return metrics


def _unit_rows(values: Any, name: str) -> Any:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"`{name}` must be a non-empty matrix (rows, width), got shape {rows.shape}.")
    if not np.isfinite(rows).all():
        raise ValueError(f"`{name}` must be finite, got NaN or infinite values.")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
