"""GOAL's joint test: global and local pairs in one gallery, scored by mean average precision (arXiv 2503.17782)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgoal.processing.checks import check_positive
from fastgoal.processing.data.pairs_dataset import best_pair
from fastgoal.processing.data.sources import Source
from fastgoal.processing.embedding import embed_images, embed_texts
from fastgoal.processing.geometry import crop_box
from fastgoal.processing.images import load_image

from .embeddings import EncodedSource
from .ranks import TIE, count_at_least, unit_rows
from .retrieval import DIRECTIONS


@torch.no_grad()
def joint_map(
    image_embeds: Tensor,
    text_embeds: Tensor,
    group: Tensor | Sequence[int],
    is_global: Tensor | Sequence[bool],
    k: int = 10,
    chunk_size: int = 1024,
) -> dict[str, float]:
    """mAP@k over a gallery of N items, each an image (a whole one or a region crop) with its text.

    Every text asks for images and every image for texts. Right for an item is its own counterpart and, as the items of
    one picture belong together, for a global item those of its local items, for a local item that of its global one.
    AP@k is the sum of the precisions at the right answers among the first k, divided by the number of all right
    answers (also of more than k). Ties count against us. GOAL's public script divides in the same way; the paths in
    its published files lead it to count an item's own counterpart only, which is what the keys with `own` measure
    (mAP@k of one right answer: the mean of 1/rank, 0 past k).

    Args:
        image_embeds: `(items, width)`, of any scale.
        text_embeds: `(items, width)`, row by row the texts of the images.
        group: `(items,)`, a number for each item; items of one picture share it.
        is_global: `(items,)`, whether an item is a whole picture with its caption. At most one in a group.
        k: How far down the ranking an answer counts.
        chunk_size: Rows and columns of a tile of similarities; changes memory and speed, never the result.

    Returns:
        `joint_D_mAP@k` and `joint_D_own_mAP@k`, D being `text_to_image` and `image_to_text`.

    Raises:
        ValueError: Embeddings are not matrices of the same shape, are empty or not finite, or another argument does
            not fit them.
    """
    images, texts = unit_rows(image_embeds, "image_embeds"), unit_rows(text_embeds, "text_embeds")
    if images.shape != texts.shape:
        raise ValueError(
            f"image_embeds has shape {tuple(images.shape)} and text_embeds {tuple(texts.shape)}; an item has one image"
            " and one text, embedded by the same model."
        )
    check_positive(k=k, chunk_size=chunk_size)
    device = images.device
    texts = texts.to(device)
    relevant = _relevant(torch.as_tensor(group), torch.as_tensor(is_global), len(images)).to(device)
    valid = relevant >= 0

    # (items, m): similarity of each query to each of its right answers; past the last one +inf, which nothing reaches.
    of_text = torch.full(relevant.shape, torch.inf, dtype=torch.float64, device=device)
    of_text[:, 0] = torch.linalg.vecdot(texts, images)  # column 0 is the item's own counterpart
    of_image = of_text.clone()
    for column in range(1, relevant.shape[1]):
        asked = valid[:, column].nonzero().flatten()
        answers = relevant[asked, column]
        of_text[asked, column] = torch.linalg.vecdot(texts[asked], images[answers])
        of_image[asked, column] = torch.linalg.vecdot(images[asked], texts[answers])
    pairs = torch.stack([valid.nonzero()[:, 0], relevant[valid]], dim=1)  # the relation holds both ways
    before_text, before_image = count_at_least(texts, images, of_text, of_image, pairs, chunk_size)

    whole, own = {}, {}
    for way, similarity, before in zip(DIRECTIONS, (of_text, of_image), (before_text, before_image), strict=True):
        whole[f"joint_{way}_mAP@{k}"] = float(_average_precision(similarity, before, valid, k).mean())
        # For its own counterpart alone, an item's other right answers stand in the way.
        others = similarity.where(valid, -torch.inf)[:, 1:]
        rank = 1 + before[:, 0] + (others >= similarity[:, :1] - TIE).sum(1)
        own[f"joint_{way}_own_mAP@{k}"] = float(torch.where(rank <= k, 1 / rank.double(), 0.0).mean())
    return {**whole, **own}


def _average_precision(similarity: Tensor, before: Tensor, valid: Tensor, k: int) -> Tensor:
    """`(queries,)` AP@k from the right answers' similarities and the numbers of wrong ones that stand before them."""
    order = similarity.where(valid, -torch.inf).argsort(dim=1, descending=True)
    valid, before = valid.gather(1, order), before.gather(1, order)
    found = torch.arange(1, order.shape[1] + 1, device=order.device)
    # Of two right answers within a tie the later one may count a wrong answer less; the order of ranks is kept.
    rank = before.cummax(dim=1).values + found
    precision = torch.where(valid & (rank <= k), found / rank.double(), 0.0)
    return precision.sum(1) / valid.sum(1)


def _relevant(group: Tensor, is_global: Tensor, items: int) -> Tensor:
    """`(items, m)` the right answers of each item, its own counterpart first, filled up with -1."""
    for name, value in (("group", group), ("is_global", is_global)):
        if value.shape != (items,):
            raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be ({items},), one entry an item.")
    if group.is_floating_point() or group.dtype == torch.bool:
        raise ValueError(f"group has dtype {group.dtype}; it must hold integers.")
    members: dict[int, list[int]] = {}
    whole: dict[int, int] = {}
    items_of = list(zip(group.tolist(), is_global.bool().tolist(), strict=True))
    for item, (number, on_top) in enumerate(items_of):
        if on_top and whole.setdefault(number, item) != item:
            raise ValueError(f"group {number} has two global items, {whole[number]} and {item}; it may have one.")
        if not on_top:
            members.setdefault(number, []).append(item)
    rows = [
        [item, *(members.get(number, []) if on_top else [whole[number]] if number in whole else [])]
        for item, (number, on_top) in enumerate(items_of)
    ]
    longest = max(map(len, rows))
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])


class _Crops(Sequence[Any]):
    """The region crop of each row's training pair, cut when it is asked for."""

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.source[self.rows[index]]
        pair = best_pair(row.columns, self.source.where(self.rows[index]))
        return crop_box(load_image(row.image, name=row.name), row.columns["regions"][pair["region"]]["box"])


def evaluate_joint(
    model: Any,
    processor: Any,
    source: Source,
    encoded: EncodedSource,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """`joint_map` of what `fastgoal pairs` wrote: every image with its caption, its best region crop with its sentence.

    `encoded` are the source's images and captions; other arguments as for `encode_source`.

    Raises:
        ValueError: A row has no local pairs or several captions.
    """
    if len(encoded.captions) != len(encoded.rows):
        raise ValueError(
            f"{source.name} has {len(encoded.captions)} captions for {len(encoded.rows)} images; the joint test needs"
            " one caption an image, as a pairs dataset has."
        )
    sentences = []
    for number in encoded.rows:
        row = source[number]
        pair = best_pair(row.columns, source.where(number))
        span = row.columns["sentences"][pair["sentence"]]
        sentences.append(row.caption[span["start"] : span["end"]])
    crops = embed_images(model, processor, _Crops(source, encoded.rows), batch_size, num_workers, progress)
    texts = embed_texts(model, processor, sentences, 4 * batch_size, progress=progress)
    group = torch.arange(len(encoded.rows)).repeat(2)
    return joint_map(
        torch.cat([encoded.image_embeds, crops]).to(model.device),
        torch.cat([encoded.text_embeds, texts]).to(model.device),
        group,
        torch.arange(len(group)) < len(encoded.rows),
    )
