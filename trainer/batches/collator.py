"""Build the batch that the model takes from typed rows. This runs in the workers of a data loader."""

import copy
import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastgoal.processing.data.pairs_dataset import short_captions
from fastgoal.processing.matching import rank_row_pairs
from fastgoal.processing.pixels import PixelReader
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.tokens import pad_ids, span_masks

from .rows import TrainingRow
from .token_table import TokenTable, pad_tokens

PAIR_SAMPLING = {"best": 1, "top3": 3, "any": sys.maxsize}
"""Number of a row's top-scoring pairs to sample from."""


class FastGoalCollator:
    """Load images, crop the region of one local pair per row, and build the batch.

        collator = FastGoalCollator(processor)
        outputs = model(**collator(rows), return_loss=True)

    Rows are dicts as `fastgoal pairs` and `FastGoalProcessor.pair_rows` write them: `image` (PIL image, file name or
    `{"bytes", "path"}`), `caption`, `regions` (dicts with `box` in pixels of the upright image), `sentences` (dicts
    with `start` and `end` in characters of the caption) and `pairs` (dicts with `sentence`, `region` and `score`).
    With `local_pairs=False`, `image` and `caption` are enough.

    The trainer's data loaders pass `TrainingRow`s instead. The pixels of their batches are uint8 if the image processor
    allows it, which takes a quarter of the bytes, and `reader.normalize` converts them on the device. `names` lists
    the names of the rows.

    As published, each row trains on its best pair (FAST-GOAL, FLISM step 4): the one with the highest score among those
    that the model sees; see `processing.matching.rank_pairs`.

    Args:
        processor: The model's processor, which sets the input size, the crop and the length of captions.
        local_pairs: Whether to add local pairs. Set it to False to train on whole images and captions only.
        pair_sampling: `best` takes the best pair, `top3` draws one of the three best, and `any` one of all pairs that
            the model sees. Each epoch draws again; evaluation uses the best pair.
        seed: Random seed. A draw depends only on the seed and on the row's epoch, name and caption, so it is the same
            in any worker and process and after a resume. Rows given as dicts draw as in epoch 0.
        short_captions: Whether to add a short caption of each image: one of the row's `short_captions`, drawn in each
            epoch, or the first sentence of its caption if it has none. Evaluation uses the first one.
        crop_size: Side of the region crops in pixels, a multiple of the patch size; the model's image size by default.
        pad_to_multiple_of: Number that the padded lengths of texts are multiples of, so that `torch.compile` sees few
            shapes. They never exceed the length of the model.

    Attributes:
        reader: The `PixelReader` of whole images.
        crop_reader: The one of region crops.

    Raises:
        ValueError: `pair_sampling` is unknown, or `crop_size` does not fit the model.
    """

    def __init__(
        self,
        processor: FastGoalProcessor,
        local_pairs: bool = True,
        pair_sampling: str = "best",
        seed: int = 0,
        short_captions: bool = False,
        crop_size: int | None = None,
        pad_to_multiple_of: int = 1,
    ):
        if pair_sampling not in PAIR_SAMPLING:
            raise ValueError(f"`pair_sampling` must be one of {', '.join(PAIR_SAMPLING)}, got {pair_sampling!r}.")
        self.processor = processor
        self.local_pairs = local_pairs
        self.pair_sampling = pair_sampling
        self.seed = seed
        self.short_captions = short_captions
        self.pad_to_multiple_of = pad_to_multiple_of
        self.reader = PixelReader(processor.image_processor)
        self.crop_reader = self.reader
        if crop_size is not None:
            check_crop_size(crop_size, self.reader.side, processor.require_patch_size())
            self.crop_reader = self.reader.at_size(crop_size)

    def __call__(self, rows: Sequence[TrainingRow | Mapping[str, Any]]) -> dict[str, Any]:
        """Build a batch.

        Returns:
            `pixel_values` `(batch, 3, height, width)`, and `input_ids` and `attention_mask` `(batch, tokens)` padded to
            the longest caption of the batch. With local pairs also `local_pixel_values`, `local_input_ids` and
            `local_attention_mask` (padded to the longest sentence), `region_mask` `(batch, patches)` and
            `sentence_mask` `(batch, tokens)`. With short captions also `short_input_ids` and `short_attention_mask`.
            If rows have an `image_group`, also `image_groups` `(batch,)`.
            For SigLIP there are no attention masks; captions are padded to the model's length, and other texts to 64
            tokens if they fit.

        Raises:
            TypeError: A row is not a dict.
            ValueError: A row has no readable image, no caption or no local pairs; the message names the row.
        """
        typed = [row if isinstance(row, TrainingRow) else TrainingRow.of(row, epoch=0) for row in rows]
        images = [self.reader.open(row.image, row.name) for row in typed]
        whole: list[Any] = [(image, None) for image in images]
        crops: list[Any] = []
        if self.local_pairs:
            batch, boxes = self._local_inputs(typed, [image.size for image in images])
            crops = [*zip(images, boxes, strict=True)]
        else:
            batch = self._tokenize([row.caption for row in typed], are_short=False)
        if self.short_captions:
            batch |= _prefixed("short", self._tokenize([self._short_caption(row) for row in typed]))
        if any(row.image_group is not None for row in typed):
            groups = [-1 if row.image_group is None else row.image_group for row in typed]
            batch["image_groups"] = torch.tensor(groups, dtype=torch.long)
        if self.crop_reader is self.reader:
            pixels = self.reader.read(whole + crops)
            batch["pixel_values"], local_pixels = pixels[: len(typed)], pixels[len(typed) :]
        else:
            batch["pixel_values"] = self.reader.read(whole)
            local_pixels = self.crop_reader.read(crops)
        if self.local_pairs:
            batch["local_pixel_values"] = local_pixels
        if isinstance(rows[0], TrainingRow):
            return {**batch, "names": [row.name for row in typed]}
        return self.reader.normalize(batch)

    def without_pairs(self) -> "FastGoalCollator":
        """Return the same collator without local pairs, for rows that have none."""
        collator = copy.copy(self)
        collator.local_pairs, collator.crop_reader = False, collator.reader
        return collator

    def _local_inputs(
        self, rows: Sequence[TrainingRow], sizes: Sequence[tuple[int, int]]
    ) -> tuple[dict[str, torch.Tensor], list[Sequence[float]]]:
        """Choose the rows' pairs. Return all inputs but pixels, and the boxes of the regions."""
        tokenizer = self.processor.tokenizer
        tokens = [row.tokens for row in rows if row.tokens is not None]
        if len(tokens) < len(rows):
            tokens = [*TokenTable([row.caption for row in rows], tokenizer)]
        batch = pad_tokens(tokens, tokenizer, self.pad_to_multiple_of)
        offsets, special = batch.pop("offset_mapping"), batch.pop("special_tokens_mask")
        boxes, sentences, region_masks, sentence_masks = [], [], [], []
        for row, size, *caption_tokens in zip(rows, sizes, offsets, special, strict=True):
            spans = [(sentence["start"], sentence["end"]) for sentence in row.sentences]
            masks = span_masks(row.caption, spans, *caption_tokens)
            pair = self._choose_pair(row, masks.any(dim=1).tolist(), size)
            start, end = spans[pair["sentence"]]
            boxes.append(row.regions[pair["region"]]["box"])
            sentences.append(row.caption[start:end])
            region_masks.append(self.processor.region_mask(boxes[-1], size))
            sentence_masks.append(masks[pair["sentence"]])
        batch |= _prefixed("local", self._tokenize(sentences))
        return batch | {"region_mask": torch.stack(region_masks), "sentence_mask": torch.stack(sentence_masks)}, boxes

    def _choose_pair(self, row: TrainingRow, readable: Sequence[bool], size: tuple[int, int]) -> Mapping[str, Any]:
        """Return the row's pair for this batch; `readable` says which sentences are not truncated away."""
        if not row.pairs:
            raise ValueError(
                f"{row.name}: the row has no local pairs. Make them with `fastgoal pairs`, or train with the objective "
                "global or sparc, which need none."
            )
        count = 1 if row.epoch is None else PAIR_SAMPLING[self.pair_sampling]
        pairs = rank_row_pairs(row, readable, self.processor, size, count)
        return pairs[self._draw(len(pairs), row)]

    def _short_caption(self, row: TrainingRow) -> str:
        texts = short_captions(vars(row), row.name)
        texts = texts or [self.processor.split_sentences(row.caption)[0].text]
        return texts[self._draw(len(texts), row, "short")]

    def _draw(self, count: int, row: TrainingRow, *subject: str) -> int:
        """Draw a number below `count` for a row and a subject; 0 for evaluation."""
        if row.epoch is None:
            return 0
        key = (self.seed, row.epoch, row.name, row.caption, *subject)
        digest = hashlib.blake2b(repr(key).encode(errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") % count

    def _tokenize(self, texts: list[str], are_short: bool = True) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        ids = tokenizer(texts, truncation=True)["input_ids"]
        return pad_ids(tokenizer, ids, are_short, self.pad_to_multiple_of)


def check_crop_size(crop_size: int, side: int, patch: int) -> None:
    """Raise `ValueError` unless crops consist of whole patches and are not larger than the model's images.

    Args:
        crop_size: Side of the crops in pixels.
        side: Side of the model's images in pixels.
        patch: Side of a patch in pixels.
    """
    if crop_size != side and (crop_size < patch or crop_size > side or crop_size % patch):
        nearest = min(max(crop_size // patch, 1), side // patch) * patch
        raise ValueError(
            f"`crop_size` must be a multiple of {patch} (the model's patch size) and at most {side} (its image size), "
            f"got {crop_size}. For example, use {nearest}."
        )


def _prefixed(prefix: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}_{name}": value for name, value in inputs.items()}
