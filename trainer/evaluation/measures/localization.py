"""Sentence-to-patch hit rates: does a sentence find its boxes in the image (FAST-GOAL, evaluation)?

A patch's embedding is its last-layer token after the tower's final norm and projection. All patches of an image are
ranked by cosine similarity to the sentence, which hits at k if one of the first k patches is covered by its boxes. Ties
count against the model. The paper does not say which sentence belongs to which box; see `localization_queries`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastgoal.processing.data.boxes import regions_from_boxes
from fastgoal.processing.data.sources import Source, SourceRow
from fastgoal.processing.embedding import embed_patches, embed_texts
from fastgoal.processing.geometry import ImageTransform, patch_mask
from fastgoal.processing.images import load_image
from fastgoal.processing.sentences import split_sentences

TOP = (5, 10, 15)
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Query:
    """A sentence and the boxes (x1, y1, x2, y2 in pixels of the original image) of what it describes."""

    text: str
    boxes: list[Box]


@dataclass(frozen=True)
class Localization:
    """The result of `localize`.

    Attributes:
        hit_rate: Fraction of the sentences that hit at each k of `TOP`, `{5: 0.43, ...}`.
        chance: Expected fraction if patches are ranked at random, computed from the sizes of the boxes.
        sentences: Number of sentences.
        outside: Number of sentences left out because their boxes lie outside the model's crop of the image.
        patches: Number of patches of an image.
    """

    hit_rate: dict[int, float]
    chance: dict[int, float]
    sentences: int
    outside: int
    patches: int


def localization_queries(row: SourceRow, boxes_column: str = "boxes") -> list[Query]:
    """Return the sentences of a row that have boxes.

    In a pairs dataset, they are the `pairs` of `sentences` and `regions`. Any other row needs a column of boxes, a list
    of `{"bbox": (x1, y1, x2, y2)}` with either `sentence`, the text of the query, or `label`. In the second case, each
    sentence of the captions that contains the label (or its plural) as a word gets all boxes of that label. Boxes with
    `iscrowd` are ignored.

    Raises:
        ValueError: The row has neither pairs nor boxes.
    """
    columns = row.columns
    if all(isinstance(columns.get(name), list) for name in ("pairs", "sentences", "regions")):
        queries = []
        for pair in columns["pairs"]:
            span, region = columns["sentences"][pair["sentence"]], columns["regions"][pair["region"]]
            queries.append(Query(row.captions[0][span["start"] : span["end"]], [tuple(region["box"])]))
        return queries
    boxes = columns.get(boxes_column)
    if not isinstance(boxes, list):
        raise ValueError(
            f"{row.name} has no local pairs and no list of boxes in the column {boxes_column!r}; its columns are"
            f" {sorted(columns)}. Name the column with `boxes_column`."
        )
    by_text: dict[str, list[Box]] = {}
    by_label: dict[str, list[Box]] = {}
    for number, entry in enumerate(boxes):
        if not isinstance(entry, Mapping) or "bbox" not in entry or not (entry.get("sentence") or entry.get("label")):
            raise ValueError(f"{row.name}: box {number} must have 'bbox', and 'sentence' or 'label', got {entry!r}.")
        if not entry.get("iscrowd"):
            target = by_text if entry.get("sentence") else by_label
            target.setdefault(str(entry.get("sentence") or entry["label"]), []).append(tuple(entry["bbox"]))
    queries = [Query(text, boxes_of_text) for text, boxes_of_text in by_text.items()]
    for sentence in chain.from_iterable(map(split_sentences, row.captions)):
        for label, boxes_of_label in by_label.items():
            if re.search(rf"\b{re.escape(label)}(s|es)?\b", sentence.text, re.IGNORECASE):
                queries.append(Query(sentence.text, boxes_of_label))
    return queries


def localize(
    model: Any,
    processor: Any,
    source: Source,
    rows: Sequence[int],
    boxes_column: str = "boxes",
    batch_size: int = 32,
    progress: bool = False,
) -> Localization:
    """Compute the sentence-to-patch hit rates of some rows of a source; see `encode_source` for the arguments.

    Raises:
        ValueError: A box lies outside its image, a row has no boxes, or no sentence has a box.
    """
    patch_size = int(model.config.vision_config.patch_size)
    hits = dict.fromkeys(TOP, 0)
    chance = dict.fromkeys(TOP, 0.0)
    sentences = outside = patches = 0
    with tqdm(total=len(rows), desc="boxes", unit="image", disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            images: list[Any] = []
            queries: list[tuple[int, str, Tensor]] = []
            for number in rows[start : start + batch_size]:
                row, label = source[number], source.label(number)
                image = load_image(row.image, name=row.name)
                transform = ImageTransform.of(processor.image_processor, image.size)
                for query in localization_queries(row, boxes_column):
                    regions = regions_from_boxes(query.boxes, image.size, name=label)
                    masks = [patch_mask(region.box, transform, patch_size) for region in regions]
                    queries.append((len(images), query.text, torch.stack(masks).any(0)))
                images.append(image)
            tokens = embed_patches(model, processor, images)
            patches = tokens.shape[1]
            visible = [query for query in queries if bool(query[2].any())]
            outside += len(queries) - len(visible)
            if visible:
                texts = embed_texts(model, processor, [text for _, text, _ in visible], batch_size=4 * batch_size)
                similarity = (tokens[[image for image, _, _ in visible]] @ texts[:, :, None]).squeeze(-1)
                covered = torch.stack([mask for _, _, mask in visible])
                ranks = first_hit(similarity, covered)
                for k in TOP:
                    hits[k] += int((ranks <= k).sum())
                    chance[k] += sum(_chance(patches, int(mask.sum()), k) for mask in covered)
                sentences += len(visible)
            bar.update(len(images))
    if not sentences:
        raise ValueError(
            f"{source.name} has no sentence with a box inside the model's crop. Give boxes a 'sentence', or a 'label'"
            " that occurs in the captions."
        )
    hit_rate = {k: hits[k] / sentences for k in TOP}
    return Localization(hit_rate, {k: chance[k] / sentences for k in TOP}, sentences, outside, patches)


def first_hit(similarity: Tensor, covered: Tensor) -> Tensor:
    """Return the rank, `(queries,)`, from 1, of the best covered patch; equally similar other patches rank before it.

    `similarity` and `covered` are `(queries, patches)`; `covered` has at least one True in each row.
    """
    best = similarity.masked_fill(~covered, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + ((similarity >= best) & ~covered).sum(1)


def _chance(patches: int, covered: int, k: int) -> float:
    """Return the probability that k random patches include a covered one."""
    k = min(k, patches)
    return 1.0 - math.comb(patches - covered, k) / math.comb(patches, k)
