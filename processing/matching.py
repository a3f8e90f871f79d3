"""FLISM's last step: every sentence takes the region that CLIP finds most similar (FAST-GOAL, METHOD FLISM)."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from .geometry import crop_box
from .regions import Region
from .sentences import Sentence

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
        sentences: The caption's sentences.
        regions: The image's candidate regions.
        similarity: Cosines, `(sentences, regions)`; of equal ones the first region wins.
        visible: Whether the model gets to see both sides of a pair: some token of the sentence is left after
            truncation, some patch of the region inside the crop. A pair that it does not see is marked best only
            if all are like that.

    Returns:
        One pair per sentence, in order, exactly one of them `best`.
    """
    scores, choices = similarity.float().max(dim=1)
    chosen = [int(choice) for choice in choices]
    ranking = sorted(range(len(sentences)), key=lambda i: -float(scores[i]))
    best = next((i for i in ranking if visible(sentences[i], regions[chosen[i]])), ranking[0])
    return [
        LocalPair(sentence, regions[chosen[i]], float(scores[i]), i == best, i, chosen[i])
        for i, sentence in enumerate(sentences)
    ]


def cut_crops(image: Image.Image, boxes: Iterable[Sequence[float]], image_processor: Any) -> torch.Tensor:
    """Cut boxes out of an image and bring them to the model's size; the part of the work that no GPU is needed for.

    Args:
        image: The upright image.
        boxes: One or more (x1, y1, x2, y2) in pixels of the image.
        image_processor: CLIP's.

    Returns:
        `(boxes, 3, height, width)` with values from 0 to 255, as the model's input before it is scaled and normalised.
    """
    crops = [crop_box(image, box) for box in boxes]
    pixels: torch.Tensor = image_processor(crops, do_rescale=False, do_normalize=False, return_tensors="pt")[
        "pixel_values"
    ]
    return pixels


def embed_crop_stream(
    images: Iterable[torch.Tensor], model: Any, image_processor: Any, batch_size: int
) -> Iterator[torch.Tensor]:
    """Embed the crops of one image after the other, in full batches of as many images as that takes.

    A batch is handed to the device before the result of the last one is waited for, so the next crops can be fetched
    while the device works.

    Args:
        images: For each image its crops from `cut_crops`; asked for as late as a batch needs them.
        model: A CLIP.
        image_processor: CLIP's, for the scale and the mean of pixels.
        batch_size: Crops in a forward.

    Yields:
        For each image its crops' embeddings, normalised float32 on the CPU, `(crops, dim)`.
    """
    counts: deque[int] = deque()
    held: torch.Tensor | None = None
    for embeds in _one_behind(_batches(images, batch_size, counts), model, image_processor):
        held = embeds if held is None else torch.cat([held, embeds])
        while counts and counts[0] <= len(held):
            yield held[: counts[0]]
            held = held[counts.popleft() :]
    for count in counts:
        yield torch.zeros(count, 0)


def embed_texts(texts: Sequence[str], model: Any, tokenizer: Any, batch_size: int) -> torch.Tensor:
    """Embed texts, each different one once, those of like lengths together so that little is padded.

    Args:
        texts: One or more texts; what is longer than the model reads is cut off.
        model: A CLIP.
        tokenizer: CLIP's.
        batch_size: Crops that go into a forward; as many tokens as that is work go into one here.

    Returns:
        Normalised float32 on the CPU, `(texts, dim)`, in the order given. Which texts share a forward, and so the last
        bits of the result, depends on the set of texts alone.
    """
    unique = list(set(texts))
    lengths = dict(zip(unique, map(len, tokenizer(unique, truncation=True)["input_ids"]), strict=True))
    unique.sort(key=lambda text: (lengths[text], text))
    parts = []
    for batch in batches_by_tokens(unique, lengths, batch_size * TOKENS_PER_CROP):
        inputs = tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            embeds = model.get_text_features(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).pooler_output
            parts.append(F.normalize(embeds.float(), dim=-1))
    place = {text: row for row, text in enumerate(unique)}
    return torch.cat(parts).cpu()[[place[text] for text in texts]]


def _batches(images: Iterable[torch.Tensor], batch_size: int, counts: deque[int]) -> Iterator[torch.Tensor]:
    """Crops of several images in batches of `batch_size`, the last one smaller; notes the images' numbers of crops."""
    held: list[torch.Tensor] = []
    size = 0
    for crops in images:
        counts.append(len(crops))
        while size + len(crops) >= batch_size:
            room = batch_size - size
            yield torch.cat([*held, crops[:room]])
            held, size, crops = [], 0, crops[room:]
        if len(crops):
            held.append(crops)
            size += len(crops)
    if held:
        yield torch.cat(held)


def _one_behind(batches: Iterable[torch.Tensor], model: Any, image_processor: Any) -> Iterator[torch.Tensor]:
    """Embeddings of batches of crops; each result is fetched when the next batch is on its way."""
    last: torch.Tensor | None = None
    for pixels in batches:
        with torch.inference_mode():
            pixels = _normalise(pixels, image_processor, model)
            embeds = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)
        if last is not None:
            yield last.cpu()
        last = embeds
    if last is not None:
        yield last.cpu()


def _normalise(pixels: torch.Tensor, image_processor: Any, model: Any) -> torch.Tensor:
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


def batches_by_tokens(texts: Sequence[str], lengths: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Cut a list of texts, the shortest first, into batches of at most `most` tokens with padding, or of one long text.

    A batch also ends where it has an eighth of that and would get more than a tenth of its tokens from padding.
    """
    batch: list[str] = []
    tokens = 0
    for text in texts:
        padded = (len(batch) + 1) * lengths[text]
        wasteful = 0.9 * padded > tokens + lengths[text] and 8 * tokens >= most
        if batch and (padded > most or wasteful):
            yield batch
            batch, tokens = [], 0
        batch.append(text)
        tokens += lengths[text]
    if batch:
        yield batch


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Run a model in eval mode and leave it as it was found."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
