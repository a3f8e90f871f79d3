"""Does a sentence find its place in the image: sentence to patch hit rates from boxes (FAST-GOAL, evaluation).

A patch's embedding is its last-layer token, brought into the joint space by the tower's final norm and projection. All
patches of the image are ranked by cosine to the sentence; the sentence hits at k when a patch that its boxes cover is
among the first k. Ties count against us. The paper does not say more of its test than this; which sentence belongs to
which box is in `localization_queries`.
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
    """A sentence and the boxes (x1, y1, x2, y2 in pixels of the original image) of what it speaks of."""

    text: str
    boxes: list[Box]


@dataclass(frozen=True)
class Localization:
    """Result of `localize`.

    Attributes:
        hit_rate: Share of the sentences that hit at each k of `TOP`, `{5: 0.43, ...}`.
        chance: The same for patches in random order, from the sizes of the boxes.
        sentences: Sentences that were asked.
        outside: Sentences left out because the model's crop of the image shows nothing of their boxes.
        patches: Patches of an image.
    """

    hit_rate: dict[int, float]
    chance: dict[int, float]
    sentences: int
    outside: int
    patches: int


def localization_queries(row: SourceRow, boxes_column: str = "boxes") -> list[Query]:
    """The sentences of a row that have boxes.

    A row of a pairs dataset has them as `pairs` of `sentences` and `regions`. Any other row needs a column of boxes:
    a list of `{"bbox": (x1, y1, x2, y2)}` with either `sentence`, the text that is asked, or `label`: then every
    sentence of the captions that has the label as a word (or its plural) asks for all boxes of this label. Boxes with
    `iscrowd` are left out.

    Raises:
        ValueError: The row has neither.
    """
    columns = row.columns
    if all(isinstance(columns.get(name), list) for name in ("pairs", "sentences", "regions")):
        spans = [columns["sentences"][pair["sentence"]] for pair in columns["pairs"]]
        texts = [row.captions[0][span["start"] : span["end"]] for span in spans]
        regions = [columns["regions"][pair["region"]] for pair in columns["pairs"]]
        return [Query(text, [tuple(region["box"])]) for text, region in zip(texts, regions, strict=True)]
    boxes = columns.get(boxes_column)
    if not isinstance(boxes, list):
        raise ValueError(
            f"{row.name} has no column {boxes_column!r} with a list of boxes, nor is it of a pairs dataset; it has"
            f" {sorted(columns)}. Name the column with --boxes-column."
        )
    by_text: dict[str, list[Box]] = {}
    by_label: dict[str, list[Box]] = {}
    for number, entry in enumerate(boxes):
        if not isinstance(entry, Mapping) or "bbox" not in entry or not (entry.get("sentence") or entry.get("label")):
            raise ValueError(f"{row.name}: box {number} is {entry!r}; expected 'bbox', and 'sentence' or 'label'.")
        if not entry.get("iscrowd"):
            target = by_text if entry.get("sentence") else by_label
            target.setdefault(str(entry.get("sentence") or entry["label"]), []).append(tuple(entry["bbox"]))
    queries = [Query(text, found) for text, found in by_text.items()]
    for sentence in chain.from_iterable(map(split_sentences, row.captions)):
        for label, found in by_label.items():
            if re.search(rf"\b{re.escape(label)}(s|es)?\b", sentence.text, re.IGNORECASE):
                queries.append(Query(sentence.text, found))
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
    """Sentence to patch hit rates of the rows of a source that have boxes; arguments as for `encode_source`.

    Raises:
        ValueError: A box is not one of its image, a row has no boxes, or no sentence has one.
    """
    patch_size = int(model.config.vision_config.patch_size)
    hits = dict.fromkeys(TOP, 0)
    chance = dict.fromkeys(TOP, 0.0)
    asked = outside = patches = 0
    with tqdm(total=len(rows), desc="boxes", unit="image", disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            images, queries = [], []
            for number in rows[start : start + batch_size]:
                row = source[number]
                where = source.where(number)
                image = load_image(row.image, name=row.name)
                transform = ImageTransform.of(processor.image_processor, image.size)
                images.append(image)
                for query in localization_queries(row, boxes_column):
                    regions = regions_from_boxes(query.boxes, image.size, name=where)
                    masks = [patch_mask(region.box, transform, patch_size) for region in regions]
                    queries.append((len(images) - 1, query.text, torch.stack(masks).any(0)))
            tokens = embed_patches(model, processor, images)
            patches = tokens.shape[1]
            seen = [query for query in queries if bool(query[2].any())]
            outside += len(queries) - len(seen)
            if seen:
                texts = embed_texts(model, processor, [text for _, text, _ in seen], batch_size=4 * batch_size)
                covered = torch.stack([mask for _, _, mask in seen])
                similarity = (tokens[[image for image, _, _ in seen]] @ texts[:, :, None]).squeeze(-1)
                ranks = first_hit(similarity, covered)
                for k in TOP:
                    hits[k] += int((ranks <= k).sum())
                    chance[k] += sum(_chance(patches, int(mask.sum()), k) for mask in covered)
                asked += len(seen)
            bar.update(len(images))
    if not asked:
        raise ValueError(
            f"{source.name} has no sentence with a box that the model sees; sentences must name a box's label"
            " (or give boxes their 'sentence')."
        )
    return Localization({k: hits[k] / asked for k in TOP}, {k: chance[k] / asked for k in TOP}, asked, outside, patches)


def first_hit(similarity: Tensor, covered: Tensor) -> Tensor:
    """The rank `(queries,)`, from 1, of the best covered patch; others that are as similar stand before it.

    `similarity` and `covered` are `(queries, patches)`, the second with at least one True in each row.
    """
    best = similarity.masked_fill(~covered, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + ((similarity >= best) & ~covered).sum(1)


def _chance(patches: int, covered: int, k: int) -> float:
    """How likely k patches drawn at random include one of the covered ones."""
    k = min(k, patches)
    return 1.0 - math.comb(patches - covered, k) / math.comb(patches, k)
