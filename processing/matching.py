"""Pair sentences with regions: FLISM's last step (FAST-GOAL, arXiv 2605.26615)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from .geometry import ImageTransform, patch_span
from .regions import Region
from .sentences import Sentence


@dataclass(frozen=True)
class LocalPair:
    """A sentence and the region that shows what the sentence describes.

    Attributes:
        sentence: The sentence, with its span in the caption.
        region: The region, its box in pixels of the original image.
        score: Cosine of the embeddings of the sentence and of the region's crop.
        best: Whether this is the image's best pair; see `best_pair`.
        sentence_index: Index of the sentence in the caption.
        region_index: Index of the region among the image's candidates.
    """

    sentence: Sentence
    region: Region
    score: float
    best: bool
    sentence_index: int
    region_index: int


def pair_up(
    processor: Any,
    caption: str,
    sentences: Sequence[Sentence],
    regions: Sequence[Region],
    image_size: tuple[int, int],
    similarity: torch.Tensor,
) -> list[LocalPair]:
    """Pair each sentence with its most similar region, and mark the image's best pair.

    Args:
        processor: The model's `FastGoalProcessor`, which tells what of each pair the model sees.
        image_size: (width, height) of the upright image.
        similarity: Cosines, `(sentences, regions)`. Of equal ones the first region wins.

    Returns:
        One pair per sentence, in order; exactly one is `best`.
    """
    scores, chosen = (values.tolist() for values in similarity.float().max(dim=1))
    readable = processor.sentence_masks(caption, [(s.start, s.end) for s in sentences]).any(dim=1).tolist()
    is_visible = _visibility(processor, image_size, readable)
    best = rank_pairs(scores, lambda index: is_visible(index, regions[chosen[index]].box), 1)[0]
    return [
        LocalPair(sentence, regions[chosen[i]], scores[i], i == best, i, chosen[i])
        for i, sentence in enumerate(sentences)
    ]


def rank_pairs(scores: Sequence[float], is_visible: Callable[[int], bool], count: int | None = None) -> list[int]:
    """Rank an image's pairs by score among those that the model sees. This is the only place that decides it.

    A model sees a pair if some token of the sentence is left after truncation and some patch of the region lies inside
    the crop, so the answer depends on the model's processor.

    Args:
        scores: The pairs' scores.
        is_visible: Whether the model sees the pair with this index.
        count: The number of pairs wanted; None for all.

    Returns:
        Indices of visible pairs, the highest score first and equal scores in their order. If the model sees none of
        the pairs: the index of the first one by score.
    """
    ranking = sorted(range(len(scores)), key=lambda index: -scores[index])
    return list(islice(filter(is_visible, ranking), count)) or ranking[:1]


def rank_row_pairs(
    row: Any, readable: Sequence[bool], processor: Any, image_size: tuple[int, int], count: int | None = None
) -> list[Mapping[str, Any]]:
    """Rank the pairs of a row of a pairs dataset, see `rank_pairs`.

    Args:
        row: Has `regions` (dicts with `box`) and `pairs` (dicts with `sentence`, `region` and `score`).
        readable: Whether any token of the sentence is left after truncation, for each sentence of the row.
        processor: The model's `FastGoalProcessor`.
        image_size: (width, height) of the upright image.
        count: The number of pairs wanted; None for all.
    """
    is_visible, pairs = _visibility(processor, image_size, readable), row.pairs
    scores = [pair["score"] for pair in pairs]
    boxes = [row.regions[pair["region"]]["box"] for pair in pairs]
    ranked = rank_pairs(scores, lambda index: is_visible(pairs[index]["sentence"], boxes[index]), count)
    return [pairs[index] for index in ranked]


def _visibility(
    processor: Any, image_size: tuple[int, int], readable: Sequence[bool]
) -> Callable[[int, Sequence[float]], bool]:
    """Return a function of a sentence's index and a box that tells whether the model sees both."""
    transform, patch_size = ImageTransform.of(processor.image_processor, image_size), processor.require_patch_size()
    return lambda sentence, box: readable[sentence] and patch_span(box, transform, patch_size) is not None


def best_pair(row: Any, processor: Any, image_size: tuple[int, int]) -> Mapping[str, Any]:
    """Return the pair that a model trains on with `pair_sampling="best"`, and that the joint test evaluates.

    Args:
        row: Has `caption`, `sentences` (dicts with `start` and `end`), `regions` and `pairs`, as a `TrainingRow`.
        processor: The model's `FastGoalProcessor`.
        image_size: (width, height) of the upright image.

    Raises:
        ValueError: A sentence is not a span of the caption.
        IndexError: The row has no pairs.
    """
    spans = [(sentence["start"], sentence["end"]) for sentence in row.sentences]
    readable = processor.sentence_masks(row.caption, spans).any(dim=1).tolist()
    return rank_row_pairs(row, readable, processor, image_size, 1)[0]


def pair_row(
    image: Any,
    file_name: str,
    caption: str,
    size: tuple[int, int],
    sentences: Sequence[Sentence],
    regions: Sequence[Region],
    pairs: Sequence[LocalPair],
) -> dict[str, Any]:
    """Return a row of a pairs dataset, as the collator reads it; `size` is the (width, height) of the upright image."""
    return {
        "image": image,
        "file_name": file_name,
        "caption": caption,
        "width": size[0],
        "height": size[1],
        "regions": [asdict(region) | {"box": list(region.box)} for region in regions],
        "sentences": [{"start": sentence.start, "end": sentence.end} for sentence in sentences],
        "pairs": [
            {"sentence": pair.sentence_index, "region": pair.region_index, "score": pair.score, "best": pair.best}
            for pair in pairs
        ],
    }
