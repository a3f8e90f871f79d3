"""FLISM's last step: every sentence takes the region that CLIP finds most similar (FAST-GOAL, METHOD FLISM)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from .geometry import crop_box
from .regions import Region
from .sentences import Sentence


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


@torch.inference_mode()
def embed_crops(
    images: Sequence[Image.Image],
    regions: Sequence[Sequence[Region]],
    model: Any,
    image_processor: Any,
    batch_size: int,
) -> list[torch.Tensor]:
    """Embed every region crop; a batch takes crops of as many images as fit.

    Returns:
        For each image its regions' embeddings, normalised float32 on the CPU, `(regions, dim)`.
    """
    boxes = [(image, region.box) for image, candidates in zip(images, regions, strict=True) for region in candidates]
    parts = []
    for start in range(0, len(boxes), batch_size):
        crops = [crop_box(image, box) for image, box in boxes[start : start + batch_size]]
        pixels = image_processor(crops, return_tensors="pt")["pixel_values"]
        embeds = model.get_image_features(pixel_values=pixels.to(model.device, model.dtype)).pooler_output
        parts.append(F.normalize(embeds.float(), dim=-1).cpu())
    if not parts:
        return [torch.zeros(0, 0) for _ in images]
    return list(torch.cat(parts).split([len(candidates) for candidates in regions]))


@torch.inference_mode()
def embed_texts(texts: Sequence[str], model: Any, tokenizer: Any, batch_size: int) -> torch.Tensor:
    """Embed texts, the like-long ones together so that little is padded.

    Returns:
        Normalised float32 on the CPU, `(texts, dim)`, in the order given.
    """
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    parts = []
    for start in range(0, len(unique), batch_size):
        inputs = tokenizer(unique[start : start + batch_size], padding=True, truncation=True, return_tensors="pt")
        embeds = model.get_text_features(
            input_ids=inputs["input_ids"].to(model.device), attention_mask=inputs["attention_mask"].to(model.device)
        ).pooler_output
        parts.append(F.normalize(embeds.float(), dim=-1).cpu())
    place = {text: row for row, text in enumerate(unique)}
    return torch.cat(parts)[[place[text] for text in texts]]


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Run a model in eval mode and leave it as it was found."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
