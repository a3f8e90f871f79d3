"""GOAL's joint test: global and local pairs in one gallery, scored by mean average precision (arXiv 2503.17782)."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.sources import Source
from fastgoal.processing.embedding import embed_images, embed_texts
from fastgoal.processing.geometry import crop_box
from fastgoal.processing.images import load_image
from fastgoal.processing.matching import best_pair
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.tokens import set_text_length
from fastgoal.trainer.batches.rows import TrainingRow

from .embeddings import EncodedSource
from .ranks import TIE, count_at_least, unit_rows
from .retrieval import DIRECTIONS

Box = Sequence[float]


@torch.no_grad()
def joint_map(
    image_embeds: Tensor,
    text_embeds: Tensor,
    group: Tensor | Sequence[int],
    is_global: Tensor | Sequence[bool],
    k: int = 10,
    chunk_size: int = 1024,
) -> dict[str, float]:
    """Compute mAP@k over a gallery of items. An item is an image, a full one or a region crop, with its text.

    Every text is a query for images and every image for texts. The right answers are the item's own counterpart and
    the counterparts of related items: for a global item its local items, for a local item its global item. AP@k is the
    sum of the precisions at the right answers among the first k, divided by the number of all right answers, even if
    there are more than k. Ties count against the model.

    GOAL's public script divides in the same way, but the paths in its published files make it count an item's own
    counterpart only. The keys with `own` measure that: mAP@k with one right answer, which is the mean of 1/rank, or 0
    for a rank above k.

    Args:
        image_embeds: `(items, width)`. They need not be normalized.
        text_embeds: `(items, width)`, the text of each image.
        group: `(items,)`, a number that the items of one image share.
        is_global: `(items,)`, whether an item is a full image with its caption. At most one item of a group is.
        k: Number of answers that count.
        chunk_size: Rows and columns of a tile of similarities. It affects memory and speed, not the result.

    Returns:
        `joint_D_mAP@k` and `joint_D_own_mAP@k`, where D is `text_to_image` and `image_to_text`.

    Raises:
        ValueError: The embeddings are not matrices of the same shape, are empty or not finite, or another argument
            does not fit them.
    """
    images, texts = unit_rows(image_embeds, "image_embeds"), unit_rows(text_embeds, "text_embeds")
    if images.shape != texts.shape:
        raise ValueError(
            "`image_embeds` and `text_embeds` must have the same shape, one row per item, got"
            f" {tuple(images.shape)} and {tuple(texts.shape)}."
        )
    check_positive(k=k, chunk_size=chunk_size)
    device = images.device
    texts = texts.to(device)
    relevant = _relevant(torch.as_tensor(group), torch.as_tensor(is_global), len(images)).to(device)
    valid = relevant >= 0

    # (items, m): similarity of each query to each of its right answers, padded with +inf, which nothing reaches.
    of_text = torch.full(relevant.shape, torch.inf, dtype=torch.float64, device=device)
    of_text[:, 0] = torch.linalg.vecdot(texts, images)  # column 0: the item's own counterpart
    of_image = of_text.clone()
    for column in range(1, relevant.shape[1]):
        queries = valid[:, column].nonzero().flatten()
        answers = relevant[queries, column]
        of_text[queries, column] = torch.linalg.vecdot(texts[queries], images[answers])
        of_image[queries, column] = torch.linalg.vecdot(images[queries], texts[answers])
    pairs = torch.stack([valid.nonzero()[:, 0], relevant[valid]], dim=1)  # the relation is symmetric
    before_text, before_image = count_at_least(texts, images, of_text, of_image, pairs, chunk_size)

    all_right, own = {}, {}
    for direction, similarity, before in zip(DIRECTIONS, (of_text, of_image), (before_text, before_image), strict=True):
        all_right[f"joint_{direction}_mAP@{k}"] = float(_average_precision(similarity, before, valid, k).mean())
        # If only its own counterpart is right, an item's other right answers count as wrong ones.
        others = similarity.where(valid, -torch.inf)[:, 1:]
        rank = 1 + before[:, 0] + (others >= similarity[:, :1] - TIE).sum(1)
        own[f"joint_{direction}_own_mAP@{k}"] = float(torch.where(rank <= k, 1 / rank.double(), 0.0).mean())
    return {**all_right, **own}


def _average_precision(similarity: Tensor, before: Tensor, valid: Tensor, k: int) -> Tensor:
    """Return AP@k, `(queries,)`, from the right answers' similarities and the number of wrong answers before each."""
    order = similarity.where(valid, -torch.inf).argsort(dim=1, descending=True)
    valid, before = valid.gather(1, order), before.gather(1, order)
    hits = torch.arange(1, order.shape[1] + 1, device=order.device)
    # Of two right answers within a tie, the later one may have fewer wrong answers before it; ranks must not decrease.
    rank = before.cummax(dim=1).values + hits
    precision = torch.where(valid & (rank <= k), hits / rank.double(), 0.0)
    return precision.sum(1) / valid.sum(1)


def _relevant(group: Tensor, is_global: Tensor, items: int) -> Tensor:
    """Return the right answers of each item, `(items, m)`, its own counterpart first, padded with -1."""
    for name, value in (("group", group), ("is_global", is_global)):
        if value.shape != (items,):
            raise ValueError(f"`{name}` must have shape ({items},), one entry per item, got {tuple(value.shape)}.")
    if group.is_floating_point() or group.dtype == torch.bool:
        raise ValueError(f"`group` must hold integers, got dtype {group.dtype}.")
    locals_of: dict[int, list[int]] = {}
    global_of: dict[int, int] = {}
    items_of = list(zip(group.tolist(), is_global.bool().tolist(), strict=True))
    for item, (number, item_is_global) in enumerate(items_of):
        if not item_is_global:
            locals_of.setdefault(number, []).append(item)
        elif global_of.setdefault(number, item) != item:
            raise ValueError(
                f"`group` {number} has two global items, {global_of[number]} and {item}, but may have one."
            )
    rows = [
        [item, *(locals_of.get(number, []) if item_is_global else [global_of[number]] if number in global_of else [])]
        for item, (number, item_is_global) in enumerate(items_of)
    ]
    longest = max(map(len, rows))
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])


def evaluate_joint(
    model: Any,
    processor: Any,
    source: Source,
    encoded: EncodedSource,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Compute `joint_map` of a dataset that `fastgoal pairs` wrote: every image with its caption, and its best pair.

    The best pair is the one that the evaluated model would train on: the highest score among the pairs that it sees
    (see `best_pair`). Two models with different text lengths may therefore have different local items.

    Args:
        encoded: Embeddings of the source's images and captions. See `encode_source` for the other arguments.

    Raises:
        ValueError: A row has no local pairs, or several captions.
    """
    if len(encoded.captions) != len(encoded.rows):
        raise ValueError(
            f"{source.name} has {len(encoded.captions)} captions for {len(encoded.rows)} images. `joint` requires one"
            " caption per image, as a pairs dataset has."
        )
    tokenizer = copy.deepcopy(processor.tokenizer)
    set_text_length(tokenizer, text_positions(model))
    own_processor = FastGoalProcessor(processor.image_processor, tokenizer, model.config.vision_config.patch_size)
    pairs = [_best_pair_of_row(source, number, own_processor) for number in encoded.rows]
    boxes = _Crops(source, [(number, box) for number, (_, box) in zip(encoded.rows, pairs, strict=True)])
    crops = embed_images(model, processor, boxes, batch_size, num_workers, progress)
    sentences = [sentence for sentence, _ in pairs]
    texts = embed_texts(model, processor, sentences, 4 * batch_size, progress=progress)
    group = torch.arange(len(encoded.rows)).repeat(2)
    return joint_map(
        torch.cat([encoded.image_embeds, crops]).to(model.device),
        torch.cat([encoded.text_embeds, texts]).to(model.device),
        group,
        torch.arange(len(group)) < len(encoded.rows),
    )


def _best_pair_of_row(source: Source, number: int, processor: FastGoalProcessor) -> tuple[str, Box]:
    """Return the sentence and the box of a row's best pair."""
    source_row = source[number]
    columns, row = source_row.columns, TrainingRow.of(source_row)
    if not (row.pairs and row.sentences and row.regions):
        raise ValueError(f"{source.label(number)} has no local pairs. Make them with `fastgoal pairs`.")
    if {"width", "height"} <= columns.keys():
        size = columns["width"], columns["height"]
    else:
        size = load_image(row.image, name=row.name).size
    try:
        pair = best_pair(row, processor, size)
    except ValueError as error:
        raise ValueError(f"{source.label(number)}: {error}") from None
    span = row.sentences[pair["sentence"]]
    return row.caption[span["start"] : span["end"]], row.regions[pair["region"]]["box"]


class _Crops(Sequence[Any]):
    """Region crops of a source's rows, cut when they are asked for."""

    def __init__(self, source: Source, boxes: Sequence[tuple[int, Box]]) -> None:
        self.source, self.boxes = source, boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Any:
        number, box = self.boxes[index]
        row = self.source[number]
        return crop_box(load_image(row.image, name=row.name), box)
