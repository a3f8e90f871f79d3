"""How a model bears captions that were changed: a false sentence put in, sentences shuffled or dropped, text cut off.

FAST-GOAL reports the mean drop of R@1 with one false sentence in each caption; how the sentence is chosen and placed
the paper does not say. Ours comes from the caption of another image and goes to any place between sentences.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastgoal.processing.embedding import embed_texts
from fastgoal.processing.sentences import split_sentences

from .embeddings import EncodedSource
from .retrieval import DIRECTIONS, Ranks, retrieval_ranks

SHORT = 77  # tokens of the original CLIP

CHANGES = {
    "inserted": "one sentence of another image put in",
    "shuffled": "sentences in another order",
    "dropped": "one sentence left out",
    "truncated": f"cut at {SHORT} tokens",
}


@dataclass(frozen=True)
class Change:
    """The result for captions changed in one way.

    Attributes:
        what: The change in words.
        metrics: Recall and ranks with them.
        drop: R@1 of the captions as they are, less R@1 with the changed ones, the mean of both directions (fraction).
        changed: Captions that the change could be made to (a single sentence can be neither shuffled nor dropped).
    """

    what: str
    metrics: dict[str, float]
    drop: float
    changed: int


def change_captions(
    captions: Sequence[str], text_to_image: Sequence[int], how: str, seed: int = 0, language: str = "en"
) -> list[str]:
    """Captions changed in one way; what cannot be changed stays as it is.

    Args:
        captions: One or more of each image.
        text_to_image: The image of each caption; a false sentence never comes from the same image.
        how: `inserted`, `shuffled` or `dropped`.
        seed: The same seed changes the same captions in the same way.
        language: Of the captions, by its code.

    Raises:
        ValueError: `how` is something else.
    """
    if how not in ("inserted", "shuffled", "dropped"):
        raise ValueError(f"how is {how!r}; it must be 'inserted', 'shuffled' or 'dropped'.")
    sentences = [[sentence.text for sentence in split_sentences(caption, language)] for caption in captions]
    changed = list(captions)
    for number, parts in enumerate(sentences):
        draw = random.Random(f"{seed} {how} {number}")
        if how == "inserted":
            false = _sentence_of_another(draw, number, sentences, text_to_image)
            if false is not None:
                parts = [*parts]
                parts.insert(draw.randint(0, len(parts)), false)
                changed[number] = " ".join(parts)
        elif len(parts) > 1:
            order = list(range(len(parts)))
            if how == "dropped":
                del order[draw.randrange(len(parts))]
            while how == "shuffled" and order == sorted(order):
                draw.shuffle(order)
            changed[number] = " ".join(parts[index] for index in order)
    return changed


def _sentence_of_another(
    draw: random.Random, number: int, sentences: list[list[str]], text_to_image: Sequence[int]
) -> str | None:
    """A sentence of another image that the caption does not have itself; None if none of many tries finds one."""
    for _ in range(100):
        other = draw.randrange(len(sentences))
        if text_to_image[other] == text_to_image[number] or not sentences[other]:
            continue
        sentence = draw.choice(sentences[other])
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
    """Retrieval with changed captions, for each of `CHANGES`; arguments as for `encode_source`.

    `encoded` are the images, and the captions as they are, `ranks` the ranks of these; `seed` is that of the changes.
    """
    captions, text_to_image = encoded.captions, encoded.text_to_image
    image_embeds = encoded.image_embeds.to(model.device)
    whole = ranks.summary((1,))
    results = {}
    for how, what in CHANGES.items():
        length = None
        if how == "truncated":
            texts, length = captions, SHORT
            ids = processor.tokenizer(captions, truncation=False, padding=False, verbose=False)["input_ids"]
            changed = sum(len(row) > SHORT for row in ids)
        else:
            texts = change_captions(captions, text_to_image, how, seed, getattr(processor, "language", "en"))
            changed = sum(before != after for before, after in zip(captions, texts, strict=True))
        embeds = embed_texts(model, processor, texts, 4 * batch_size, max_length=length, progress=progress)
        metrics = retrieval_ranks(image_embeds, embeds.to(model.device), text_to_image).summary((1, 5, 10))
        drops = [whole[f"{way}_R@1"] - metrics[f"{way}_R@1"] for way in DIRECTIONS]
        results[how] = Change(what, metrics, sum(drops) / 2, changed)
    return results
