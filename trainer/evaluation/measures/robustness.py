"""Retrieval with changed captions: a false sentence inserted, sentences shuffled or dropped, text truncated.

FAST-GOAL reports the mean drop of R@1 with one false sentence in each caption, and does not say how the sentence is
chosen and placed. Here it comes from the caption of another image and goes to a random position between sentences.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.embedding import embed_texts
from fastgoal.processing.sentences import split_sentences
from fastgoal.processing.tokens import count_truncated

from .embeddings import EncodedSource
from .retrieval import DIRECTIONS, Ranks, retrieval_ranks

SHORT = 77  # text length of the original CLIP, in tokens

CHANGES = {
    "inserted": "one sentence of another image inserted",
    "shuffled": "sentences shuffled",
    "dropped": "one sentence dropped",
    "truncated": f"truncated to {SHORT} tokens",
}


@dataclass(frozen=True)
class Change:
    """The result for captions that were changed in one way.

    Attributes:
        what: Description of the change.
        metrics: Recall and ranks with the changed captions.
        drop: R@1 with the original captions minus R@1 with the changed ones, the mean of both directions (a fraction).
        changed: Number of captions that were changed. A single sentence can be neither shuffled nor dropped.
    """

    what: str
    metrics: dict[str, float]
    drop: float
    changed: int


def change_captions(
    captions: Sequence[str], text_to_image: Sequence[int], change: str, seed: int = 0, language: str = "en"
) -> list[str]:
    """Change captions in one way. Captions that cannot be changed stay the same.

    Args:
        captions: One or more captions of each image.
        text_to_image: The image of each caption. A false sentence never comes from the same image.
        change: `inserted`, `shuffled` or `dropped`.
        seed: Seed of the changes.
        language: Language code of the captions.

    Raises:
        ValueError: `change` has another value.
    """
    if change not in ("inserted", "shuffled", "dropped"):
        raise ValueError(f"`change` must be inserted, shuffled or dropped, got {change!r}.")
    sentences = [[sentence.text for sentence in split_sentences(caption, language)] for caption in captions]
    changed = list(captions)
    for number, parts in enumerate(sentences):
        generator = random.Random(f"{seed} {change} {number}")
        if change == "inserted":
            false = _sentence_of_another_image(generator, number, sentences, text_to_image)
            if false is not None:
                position = generator.randint(0, len(parts))
                changed[number] = " ".join([*parts[:position], false, *parts[position:]])
        elif len(parts) > 1:
            order = list(range(len(parts)))
            if change == "dropped":
                del order[generator.randrange(len(parts))]
            while change == "shuffled" and order == sorted(order):
                generator.shuffle(order)
            changed[number] = " ".join(parts[index] for index in order)
    return changed


def _sentence_of_another_image(
    generator: random.Random, number: int, sentences: list[list[str]], text_to_image: Sequence[int]
) -> str | None:
    """Return a sentence of another image that the caption does not contain; None if 100 draws give none."""
    for _ in range(100):
        other = generator.randrange(len(sentences))
        if text_to_image[other] == text_to_image[number] or not sentences[other]:
            continue
        sentence = generator.choice(sentences[other])
        if sentence not in sentences[number]:
            return sentence
    return None


def measure_robustness(
    model: Any,
    processor: Any,
    encoded: EncodedSource,
    ranks: Ranks,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Change]:
    """Measure retrieval with captions changed in each way of `CHANGES`.

    Args:
        encoded: Images and original captions.
        ranks: Ranks of the original captions.
        seed: Seed of the changes. See `encode_source` for the other arguments.
    """
    captions, text_to_image = encoded.captions, encoded.text_to_image
    image_embeds = encoded.image_embeds.to(model.device)
    original = ranks.summary((1,))
    results = {}
    for change, description in CHANGES.items():
        texts, length = captions, None
        if change == "truncated":
            length = SHORT
            changed = count_truncated(captions, processor.tokenizer, SHORT) if text_positions(model) > SHORT else 0
        else:
            texts = change_captions(captions, text_to_image, change, seed, getattr(processor, "language", "en"))
            changed = sum(before != after for before, after in zip(captions, texts, strict=True))
        embeds = embed_texts(model, processor, texts, 4 * batch_size, max_length=length, progress=progress)
        metrics = retrieval_ranks(image_embeds, embeds.to(model.device), text_to_image).summary((1, 5, 10))
        drops = [original[f"{direction}_R@1"] - metrics[f"{direction}_R@1"] for direction in DIRECTIONS]
        results[change] = Change(description, metrics, sum(drops) / 2, changed)
    return results
