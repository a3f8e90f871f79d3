"""Retrieval with shorter and quantized vectors, as vector stores keep them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cutoffs import FORMATS, KS
from .embeddings import EncodedSource
from .intervals import Difference, compare
from .ranks import TIE, unit_rows
from .retrieval import Ranks, ranks_by_product

FLOAT32, INT8, BINARY = FORMATS
RESCORED = "binary, rescored"
BITS = {FLOAT32: 32, INT8: 8, BINARY: 1, RESCORED: 1}
# With rescoring, this many of the nearest binary vectors are ranked again by the original vectors.
CANDIDATES = 100


@dataclass(frozen=True)
class Compressed:
    """Retrieval with compressed vectors, compared with the original ones on the same queries.

    Attributes:
        width: Number of dimensions that are kept.
        vectors: Format of the stored vectors: `float32`, `int8`, `binary`, or `binary, rescored`.
        bytes: Bytes of a stored vector, without the original that rescoring reads.
        differences: Metrics with compressed (`ours`) and original vectors (`theirs`), see `compare`.
    """

    width: int
    vectors: str
    bytes: int
    differences: dict[str, Difference]


def measure_compression(
    encoded: EncodedSource,
    ranks: Ranks,
    widths: Sequence[int] = (),
    formats: Sequence[str] = (FLOAT32,),
    ks: Sequence[int] = KS,
    resamples: int = 1000,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Compressed]:
    """Measure retrieval with the first dimensions of the embeddings, and with quantized vectors.

    Truncated embeddings are normalized again, as by `truncate_dim` of sentence-transformers. The formats:

    * `int8`: each dimension of the stored vectors is quantized to 256 steps between its lowest and its highest value
      over all stored vectors; the query is not quantized (as in `IndexScalarQuantizer` of FAISS, `QT_8bit`).
    * `binary`: the signs of the stored vectors and of the query, compared by the number of equal signs. It is measured
      alone, and with rescoring: the original vectors rank the nearest `CANDIDATES` again. Candidates as near as the
      last one count too, so that ties count against the model.

    Args:
        encoded: Embeddings of the data.
        ranks: Ranks with the original embeddings.
        widths: Numbers of dimensions to keep, besides all of them.
        formats: Formats of `FORMATS`.
        ks: Values of k, as for `retrieval_metrics`.
        resamples: Resamples for the intervals of the differences, as for `compare`.
        seed: Seed of the resamples.
        device: Device of the computation.

    Raises:
        ValueError: A width is larger than that of the embeddings.
    """
    full = encoded.image_embeds.shape[1]
    for width in widths:
        if width > full:
            raise ValueError(f"`truncate_dim` must be at most {full}, the width of the embeddings, got {width}.")
    owner = ranks.text_to_image_owner.to(device)
    result = []
    for width in [full, *(width for width in widths if width != full)]:
        images = unit_rows(encoded.image_embeds[:, :width].to(device), "image_embeds")
        texts = unit_rows(encoded.text_embeds[:, :width].to(device), "text_embeds")
        owner = owner.to(images.device)
        for name, compressed in _ranks_of_formats(images, texts, owner, formats):
            if (width, name) != (full, FLOAT32):
                differences = compare(compressed, ranks, ks, resamples, seed)
                result.append(Compressed(width, name, (width * BITS[name] + 7) // 8, differences))
    return result


def _ranks_of_formats(
    images: Tensor, texts: Tensor, owner: Tensor, formats: Sequence[str]
) -> Iterator[tuple[str, Ranks]]:
    """Yield the name and the ranks of each format."""
    if FLOAT32 in formats:
        yield FLOAT32, ranks_by_product(images, texts, owner)
    if INT8 in formats:
        # Each direction quantizes the side that is stored.
        by_text = ranks_by_product(to_int8(images), texts, owner).text_to_image
        yield INT8, Ranks(by_text, ranks_by_product(images, to_int8(texts), owner).image_to_text, owner)
    if BINARY in formats:
        image_signs, text_signs = signs(images), signs(texts)
        binary = ranks_by_product(image_signs, text_signs, owner)
        yield BINARY, binary
        own = torch.arange(len(images), device=owner.device)
        by_text = _rescored(texts, images, text_signs, image_signs, owner, own, binary.text_to_image)
        by_image = _rescored(images, texts, image_signs, text_signs, own, owner, binary.image_to_text)
        yield RESCORED, Ranks(by_text, by_image, owner)


def to_int8(stored: Tensor) -> Tensor:
    """Return vectors after quantization to 256 steps per dimension: the middle of each value's step, as in FAISS."""
    low = stored.amin(0)
    span = (stored.amax(0) - low).clamp_min(torch.finfo(stored.dtype).tiny)
    return low + (((stored - low) / span * 255).floor() + 0.5) / 255 * span


def signs(embeds: Tensor) -> Tensor:
    """Return +1 and -1 (also for 0), scaled to unit length, so that products are equal exactly where signs are."""
    return ((embeds > 0).to(embeds.dtype) * 2 - 1) / embeds.shape[1] ** 0.5


def _rescored(
    queries: Tensor,
    stored: Tensor,
    query_signs: Tensor,
    stored_signs: Tensor,
    query_group: Tensor,
    stored_group: Tensor,
    binary_ranks: Tensor,
    chunk_size: int = 256,
) -> Tensor:
    """Return the rank of every query after rescoring.

    Args:
        query_group: `(queries,)` the image of each query; vectors of the same image are the right answers.
        stored_group: `(stored,)` the image of each stored vector.
        binary_ranks: Ranks without rescoring, which stay where no right answer is a candidate.
    """
    count = min(CANDIDATES, len(stored))
    ranks = binary_ranks.clone()
    for start in range(0, len(queries), chunk_size):
        part = slice(start, start + chunk_size)
        near = query_signs[part] @ stored_signs.T
        is_right = query_group[part, None] == stored_group
        limit = near.topk(count).values[:, -1:] - TIE
        exact = queries[part] @ stored.T
        is_candidate = near >= limit
        best = exact.masked_fill(~(is_right & is_candidate), -torch.inf).amax(1, keepdim=True)
        before = (is_candidate & ~is_right & (exact >= best - TIE)).sum(1)
        # A query with a rank of 0 is no query.
        found = (binary_ranks[part] > 0) & (binary_ranks[part] <= count) & best[:, 0].isfinite()
        ranks[part] = torch.where(found, before + 1, ranks[part])
    return ranks
