"""FLISM's last step: every sentence takes the region that CLIP finds most similar (FAST-GOAL, METHOD FLISM).

Embeddings are normalized, float32 and on the CPU.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from .geometry import ImageTransform, crop_box, patch_span
from .regions import Region
from .sentences import Sentence
from .texts import check_texts
from .tokens import pad_ids, padding_of

# Tokens of text that are about as much work as a crop of 224 pixels in patches of 32.
TOKENS_PER_CROP = 32


@dataclass(frozen=True)
class LocalPair:
    """A sentence and the region that shows what it says.

    Attributes:
        sentence: The sentence, with its span in the caption.
        region: The region, its box in pixels of the original image.
        score: Cosine of the sentence's embedding and the region crop's.
        best: Whether this is the image's pair for training: the highest score among those the model can see.
        sentence_index: Place of the sentence among the caption's sentences.
        region_index: Place of the region among the image's candidates.
    """

    sentence: Sentence
    region: Region
    score: float
    best: bool
    sentence_index: int
    region_index: int


def pair_up(
    sentences: Sequence[Sentence],
    regions: Sequence[Region],
    similarity: torch.Tensor,
    visible: Callable[[Sentence, Region], bool],
) -> list[LocalPair]:
    """Give each sentence its most similar region and mark the image's best pair.

    Args:
        similarity: Cosines, `(sentences, regions)`; of equal ones the first region wins.
        visible: Whether the model sees both sides of a pair: some token of the sentence is left after truncation,
            some patch of the region inside the crop. One that it does not see is best only if all are like that.

    Returns:
        One pair per sentence, in order, exactly one of them `best`.
    """
    scores, chosen = (values.tolist() for values in similarity.float().max(dim=1))
    best = rank_pairs(scores, lambda i: visible(sentences[i], regions[chosen[i]]), 1)[0]
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
    transform, patch_size = ImageTransform.of(processor.image_processor, image_size), processor.require_patch_size()

    def is_visible(index: int) -> bool:
        pair = row.pairs[index]
        return (
            readable[pair["sentence"]]
            and patch_span(row.regions[pair["region"]]["box"], transform, patch_size) is not None
        )

    return [row.pairs[index] for index in rank_pairs([pair["score"] for pair in row.pairs], is_visible, count)]


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
    """A row of a pairs dataset, as the collator reads it; `size` is the (width, height) of the upright image."""
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


def cut_crops(image: Image.Image, boxes: Iterable[Sequence[float]], image_processor: Any) -> torch.Tensor:
    """Cut boxes (x1, y1, x2, y2) out of an upright image and bring them to the model's size; needs no GPU.

    Returns:
        `(boxes, 3, height, width)` with values from 0 to 255, as the model's input before it is scaled and normalized.
    """
    crops = [crop_box(image, box) for box in boxes]
    inputs = image_processor(crops, do_rescale=False, do_normalize=False, return_tensors="pt")
    pixels: torch.Tensor = inputs["pixel_values"]
    return pixels


@torch.no_grad()
def embed_crop_stream(
    images: Iterable[torch.Tensor], model: Any, image_processor: Any, batch_size: int
) -> Iterator[torch.Tensor]:
    """Embed the crops of one image after the other, `batch_size` in a forward, of as many images as that takes.

    A batch is handed to the device before the result of the last one is waited for, so the next crops can be fetched
    while the device works.

    Args:
        images: For each image its crops from `cut_crops`; asked for as late as a batch needs them.
        image_processor: For the scale and the mean of pixels.

    Yields:
        For each image its crops' embeddings, `(crops, dim)`.
    """
    counts: deque[int] = deque()  # crops of the images whose embeddings are not given out yet

    def single_crops() -> Iterator[torch.Tensor]:
        for crops in images:
            counts.append(len(crops))
            yield from crops

    stream = single_crops()
    done, running = torch.empty(0), torch.empty(0)
    batch: list[torch.Tensor] | None = None
    while batch != []:
        batch, last = list(islice(stream, batch_size)), running
        if batch:
            pixels = _normalize(torch.stack(batch), image_processor, model)
            running = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)
        done = torch.cat([done, last.cpu()])
        while counts and counts[0] <= len(done):
            yield done[: counts[0]]
            done = done[counts.popleft() :]


@torch.no_grad()
def embed_texts(
    texts: Sequence[str],
    model: Any,
    tokenizer: Any,
    batch_size: int,
    tokens_each: int = TOKENS_PER_CROP,
    max_length: int | None = None,
    advance: Callable[[int], Any] = lambda count: None,
) -> torch.Tensor:
    """Embed texts, each different one once, so that equal ones have equal embeddings.

    Those of like lengths share a forward, so that little is padded, the longest first: out of memory is out at once.

    Args:
        texts: One at least.
        batch_size: Texts of `tokens_each` tokens in a forward, by default about as much work as so many crops; of
            other lengths as many as have so many tokens.
        tokens_each: See `batch_size`.
        max_length: Tokens at which a text is cut; by default the tokenizer's `model_max_length`.
        advance: Called after each forward with the number of texts in it.

    Returns:
        `(texts, dim)`, in the order given. Which texts share a forward, and so the last bits of the result, depends on
        the set of texts alone.
    """
    unique = list(dict.fromkeys(texts))
    check_texts(unique)
    encoded = tokenizer(unique, truncation=True, max_length=max_length)["input_ids"]
    ids = dict(zip(unique, encoded, strict=True))
    padded = 0 if padding_of(tokenizer) is True else tokenizer.model_max_length
    lengths = {text: max(len(tokens), padded) for text, tokens in ids.items()}
    place: dict[str, int] = {}
    parts = []
    for batch in batches_by_tokens(lengths, batch_size * tokens_each):
        inputs = pad_ids(tokenizer, [ids[text] for text in batch])
        embeds = model.get_text_features(**{name: value.to(model.device) for name, value in inputs.items()})
        parts.append(F.normalize(embeds.pooler_output.float(), dim=-1))
        place |= {text: len(place) + row for row, text in enumerate(batch)}
        advance(len(batch))
    return torch.cat(parts).cpu()[[place[text] for text in texts]]


def batches_by_tokens(lengths: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Cut texts of these lengths, the longest first, into batches of `most` tokens with padding, or of one long text.

    A batch also ends where it has an eighth of that and would get more than a tenth of its tokens from padding.
    """
    batch: list[str] = []
    tokens = 0
    for text in sorted(lengths, key=lambda text: (-lengths[text], text)):
        padded = (len(batch) + 1) * lengths[batch[0] if batch else text]
        wasteful = 0.9 * padded > tokens + lengths[text] and 8 * tokens >= most
        if batch and (padded > most or wasteful):
            yield batch
            batch, tokens = [], 0
        batch.append(text)
        tokens += lengths[text]
    if batch:
        yield batch


def _normalize(pixels: torch.Tensor, image_processor: Any, model: Any) -> torch.Tensor:
    """The image processor's last two steps, on the model's device: bytes travel there, a quarter of the floats."""
    if model.device.type == "cuda":
        pixels = pixels.pin_memory()
    pixels = pixels.to(model.device, non_blocking=True).float()
    if image_processor.do_rescale:
        pixels = pixels * image_processor.rescale_factor
    if image_processor.do_normalize:
        mean, std = (
            torch.tensor(values, device=model.device).view(-1, 1, 1)
            for values in (image_processor.image_mean, image_processor.image_std)
        )
        pixels = (pixels - mean) / std
    return pixels.to(model.dtype)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Run a model in eval mode and leave it as it was found."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
