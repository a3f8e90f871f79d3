"""From rows of a pairs dataset to the batch that the model takes; runs in the data loader's workers."""

import copy
import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastgoal.processing.data.pairs_dataset import short_captions
from fastgoal.processing.geometry import ImageTransform, patch_mask, patch_span
from fastgoal.processing.pixels import OpenImage, PixelReader
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.tokens import pad_ids, span_masks

from .token_table import MADE_TOKENS, TokenTable, settings_of

PAIR_SAMPLING = {"best": 1, "top3": 3, "any": sys.maxsize}
"""Of how many of a row's pairs, the most similar first, one is drawn for a batch."""


EPOCH = "stream_epoch"
"""The key of a row that says which epoch it belongs to, in place of the collator's."""

NAMES = "row_names"
"""The key of a batch for the trainer that says what its rows are called in messages."""


class FastGoalCollator:
    """Load images, cut out one of each row's local pairs, and build the batch.

    A row is what `fastgoal pairs` writes: `image` (PIL image, file name or `{"bytes", "path"}`), `caption`,
    `regions` (dicts with `box` in pixels of the upright image), `sentences` (dicts with `start` and `end` in the
    caption) and `pairs` (dicts with `sentence`, `region`, `score`). Without local pairs `image` and `caption` do.

    As published, each row trains on its single best pair (FAST-GOAL, FLISM step 4): the highest score among the pairs
    that the model can see. A pair whose region falls outside the crop, or whose sentence truncation cut off, is taken
    only when the row has no other. `pair_sampling` can draw another one of them for every batch.

    Args:
        processor: Gives the input size, the crop and the length of captions.
        local_pairs: Whether to add the local pairs. False for training on whole images and captions alone.
        pair_sampling: `best`; `top3` draws one of the three best, `any` one of all, anew in every epoch.
        seed: Of the drawing. What is drawn depends on it, the epoch and the row's name and caption alone: it is the
            same in any process and worker, and after going on from a checkpoint.
        normalize: Whether pixels are normalized here. Without it they are uint8 where the processor allows it, a
            quarter of the bytes, and `PixelReader.normalize` ends the work on the device, as the trainer does.
        short_captions: Whether to add a short caption of each image: one of the row's `short_captions` (a text or
            several), drawn anew in every epoch, or the first sentence of its caption where there are none.

    Raises:
        ValueError: `pair_sampling` is none of these.
    """

    def __init__(
        self,
        processor: FastGoalProcessor,
        local_pairs: bool = True,
        pair_sampling: str = "best",
        seed: int = 0,
        normalize: bool = True,
        short_captions: bool = False,
    ):
        if pair_sampling not in PAIR_SAMPLING:
            raise ValueError(f"`pair_sampling` must be one of {', '.join(PAIR_SAMPLING)}, got {pair_sampling!r}.")
        self.processor = processor
        self.local_pairs = local_pairs
        self.pair_sampling = pair_sampling
        self.seed = seed
        self.normalize = normalize
        self.short_captions = short_captions
        self.named = False
        self.reader = PixelReader(processor.image_processor)
        # In shared memory: a data loader's workers may live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def raw(self, pair_sampling: str | None = None) -> "FastGoalCollator":
        """The trainer's: the same without normalizing, with `NAMES`, and another choice of pairs if one is given.

        Epochs are shared.
        """
        other = copy.copy(self)
        other.normalize, other.named, other.pair_sampling = False, True, pair_sampling or self.pair_sampling
        return other

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next batches belong to; the trainer calls it."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Build a batch.

        Returns:
            `pixel_values` `(batch, 3, height, width)`, `input_ids` and `attention_mask` `(batch, tokens)` padded to
            the longest caption of the batch; with local pairs also `local_pixel_values`, `local_input_ids` and
            `local_attention_mask` (padded to the longest sentence), `region_mask` `(batch, patches)` and
            `sentence_mask` `(batch, tokens)`; with short captions `short_input_ids` and `short_attention_mask`. Of
            SigLIP captions are padded to the model's length, other texts to 64 tokens where they fit, and have no masks
            of attention.

        Raises:
            ValueError: A row has no readable image, no caption or no local pairs; the message names the row.
        """
        captions, images = [_caption(row) for row in rows], self._images(rows)
        short = self._short_captions(rows, captions) if self.short_captions else {}
        if not self.local_pairs:
            batch = self._tokenize(captions, are_short=False)
            batch["pixel_values"] = self.reader.read([(image, None) for image in images])
            return self._finished(batch | short) | self._names(rows)

        batch = self._read_captions(rows, captions)
        offsets, special = batch.pop("offset_mapping"), batch.pop("special_tokens_mask")
        boxes, sentences, region_masks, sentence_masks = [], [], [], []
        for row, caption, image, *tokens in zip(rows, captions, images, offsets, special, strict=True):
            spans = [(sentence["start"], sentence["end"]) for sentence in row.get("sentences") or ()]
            masks = span_masks(caption, spans, *tokens)
            transform = ImageTransform.of(self.processor.image_processor, image.size)
            pair = self._choose_pair(row, caption, transform, masks.any(dim=1).tolist())
            start, end = spans[pair["sentence"]]
            boxes.append(row["regions"][pair["region"]]["box"])
            sentences.append(caption[start:end])
            region_masks.append(patch_mask(boxes[-1], transform, self.processor.require_patch_size()))
            sentence_masks.append(masks[pair["sentence"]])
        pixels = self.reader.read([*((image, None) for image in images), *zip(images, boxes, strict=True)])
        return self._finished(
            {
                **batch,
                **short,
                "pixel_values": pixels[: len(rows)],
                "local_pixel_values": pixels[len(rows) :],
                **{f"local_{name}": value for name, value in self._tokenize(sentences).items()},
                "region_mask": torch.stack(region_masks),
                "sentence_mask": torch.stack(sentence_masks),
            }
        ) | self._names(rows)

    def pixel_values(self, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """The whole images of the rows alone, `(batch, 3, height, width)`; raises as a batch does."""
        return self._finished({"pixel_values": self.reader.read([(image, None) for image in self._images(rows)])})[
            "pixel_values"
        ]

    def _choose_pair(
        self, row: Mapping[str, Any], caption: str, transform: ImageTransform, readable: Sequence[bool]
    ) -> Mapping[str, Any]:
        """The row's pair for this batch; `readable` tells of each sentence whether the model reads any of it."""
        pairs = sorted(row.get("pairs") or [], key=lambda pair: -pair["score"])
        if not pairs:
            raise ValueError(
                f"{_name(row)}: the row has no local pairs. Make them with `fastgoal pairs`, "
                "or train with the objective global or sparc, which need none."
            )
        patch_size = self.processor.require_patch_size()
        seen: list[Mapping[str, Any]] = []
        for pair in pairs:
            box = row["regions"][pair["region"]]["box"]
            if readable[pair["sentence"]] and patch_span(box, transform, patch_size) is not None:
                seen.append(pair)
            if len(seen) == PAIR_SAMPLING[self.pair_sampling]:
                break
        if not seen:
            return pairs[0]
        return seen[self._draw(len(seen), "pair", row, caption)]

    def _draw(self, count: int, what: str, row: Mapping[str, Any], caption: str) -> int:
        """A number below `count`, another one for each thing that is drawn, and in each epoch."""
        # The rows of a stream know their own epoch: workers do not go through it at the same time.
        key = (self.seed, row.get(EPOCH, self._epoch.item()), _name(row), caption)
        return _draw(count, *key, *(() if what == "pair" else (what,)))

    def _short_captions(self, rows: Sequence[Mapping[str, Any]], captions: list[str]) -> dict[str, torch.Tensor]:
        texts = []
        for row, caption in zip(rows, captions, strict=True):
            known = short_captions(row, _name(row)) or [self.processor.split_sentences(caption)[0].text]
            texts.append(known[self._draw(len(known), "short", row, caption)])
        return {f"short_{name}": value for name, value in self._tokenize(texts).items()}

    def _images(self, rows: Sequence[Mapping[str, Any]]) -> list[OpenImage]:
        return [self.reader.open(row["image"], _name(row)) for row in rows]

    def _read_captions(self, rows: Sequence[Mapping[str, Any]], captions: list[str]) -> dict[str, torch.Tensor]:
        """The captions' tokens, where each stands in its caption, and which are special."""
        tokenizer = self.processor.tokenizer
        tables, numbers = zip(*(row.get(MADE_TOKENS, (None, 0)) for row in rows), strict=True)
        table = tables[0]
        if not (table and table.settings == settings_of(tokenizer) and all(other is table for other in tables)):
            table, numbers = TokenTable(captions, tokenizer), tuple(range(len(captions)))
        return dict(table.batch(numbers, tokenizer))

    def _tokenize(self, texts: list[str], are_short: bool = True) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        return pad_ids(tokenizer, tokenizer(texts, truncation=True)["input_ids"], are_short)

    def _names(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {NAMES: [_name(row) for row in rows]} if self.named else {}

    def _finished(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.reader.normalize(batch) if self.normalize else batch


def _draw(count: int, *key: Any) -> int:
    """A number below `count` that the key alone tells."""
    digest = hashlib.blake2b(repr(key).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count


def _caption(row: Mapping[str, Any]) -> str:
    caption = row.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"{_name(row)}: `caption` must be a text that is not empty, got {caption!r}.")
    return caption


def _name(row: Mapping[str, Any]) -> str:
    """What to call a row in a message."""
    image = row.get("image")
    path = image.get("path") if isinstance(image, Mapping) else None
    return str(row.get("file_name") or path or "a row of the dataset")
