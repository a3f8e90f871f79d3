"""Retrieval examples and error cases as figures: a query, the first answers of each model, right and wrong framed.

`draw_gallery` finds the answers and their pictures, `gallery_picture` and `gallery_page` place them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from PIL import Image

from fastgoal.hub_cards.card_images import GREY, MARGIN, fitted, flow, padded, rule, stack, text_block
from fastgoal.hub_cards.wording import count, number
from fastgoal.pages.render import render
from fastgoal.processing.data.sources import Source
from fastgoal.processing.images import load_image
from fastgoal.trainer.evaluation.measures.embeddings import EncodedSource
from fastgoal.trainer.evaluation.measures.retrieval import Ranks

RIGHT, WRONG = "#2e7d32", "#c62828"


@dataclass(frozen=True)
class Contestant:
    """A model's name, embeddings and ranks on the same source as the others."""

    name: str
    encoded: EncodedSource
    ranks: Ranks

    def rank_of(self, direction: str) -> list[int]:
        """The rank of the right answer by query, 0 where there is none."""
        ranks: list[int] = getattr(self.ranks, direction.replace("-", "_")).tolist()
        return ranks


@dataclass(frozen=True)
class Answer:
    """One answer, an image or a caption: its place and cosine in words, and whether it is right."""

    shown: Image.Image | str
    mark: str
    right: bool


@dataclass(frozen=True)
class Found:
    """The first answers of one model; `note` says where the right one is, if not among them."""

    model: str
    note: str
    answers: list[Answer]


@dataclass(frozen=True)
class Query:
    """A caption or an image, the right answers where a model missed them, and what each model found."""

    number: int
    asked: Image.Image | str
    right: Sequence[Image.Image | str]
    found: list[Found]


@dataclass(frozen=True)
class Gallery:
    """All that the figure shows; `groups` are headings with their queries."""

    title: str
    lead: str
    groups: list[tuple[str, list[Query]]]


def choose_queries(contestants: Sequence[Contestant], direction: str, show: str, count: int) -> list[int]:
    """Which queries to draw, the most telling ones first.

    Examples are queries that the first model answers right; with a second model those that it ranks worst come first.
    Errors are queries that the first model answers wrong, the worst ranks first.

    Args:
        contestants: The model, and others to compare.
        direction: "text-to-image" or "image-to-text".
        show: "examples", "errors", or "both", half of each.
        count: How many; fewer where there are no more.

    Raises:
        ValueError: There is no such query.
    """
    ranks = [contestant.rank_of(direction) for contestant in contestants]
    asked = [query for query, rank in enumerate(ranks[0]) if rank > 0]
    others = [max((column[query] for column in ranks[1:]), default=0) for query in range(len(ranks[0]))]
    examples = sorted((query for query in asked if ranks[0][query] == 1), key=lambda query: -others[query])
    errors = sorted((query for query in asked if ranks[0][query] > 1), key=lambda query: -ranks[0][query])
    if show != "both":
        chosen = (examples if show == "examples" else errors)[:count]
    else:
        chosen = examples[: count - min(len(errors), count // 2)]
        chosen += errors[: count - len(chosen)]
    if not chosen:
        raise ValueError(f"there is no query to show: the model answers {'all' if show == 'errors' else 'none'} right.")
    return chosen


def draw_gallery(
    contestants: Sequence[Contestant],
    source: Source,
    queries: Sequence[int],
    direction: str = "text-to-image",
    k: int = 5,
) -> Gallery:
    """The queries with the first k answers of each model, those that the first model answers right before the others.

    Where a right answer is not among them, its rank is said, and it stands beside the query.
    """

    @cache
    def picture(row: int) -> Image.Image:
        entry = source[row]
        return fitted(load_image(entry.image, name=entry.name), 480, 400)

    model, ranks = contestants[0].name, contestants[0].rank_of(direction)
    groups: dict[bool, list[Query]] = {True: [], False: []}
    for place, query in enumerate(queries, start=1):
        groups[ranks[query] == 1].append(_query(contestants, picture, query, direction, k, place))
    titles = {True: "Examples: {} puts a right answer first", False: "Errors: {} puts a wrong answer first"}
    what = "images and the captions" if direction == "image-to-text" else "captions and the images"
    answers = "The first answer" if k == 1 else f"The first {k} answers"
    lead = (
        f"{answers} of {' and of '.join(one.name for one in contestants)} among"
        f" {count(len(contestants[0].encoded.rows), 'image')}, with their cosine to the query. Green frame: right. Red"
        " frame: wrong."
    )
    headed = [(titles[right].format(model), found) for right, found in groups.items() if found]
    return Gallery(f"Retrieval: {what} found for them", lead, headed)


def _query(
    contestants: Sequence[Contestant],
    picture: Callable[[int], Image.Image],
    query: int,
    direction: str,
    k: int,
    place: int,
) -> Query:
    encoded, texts = contestants[0].encoded, direction == "image-to-text"

    def shown(item: int, text: bool) -> Image.Image | str:
        return encoded.captions[item] if text else picture(encoded.rows[item])

    owners = encoded.text_to_image
    right = [text for text, owner in enumerate(owners) if owner == query] if texts else [owners[query]]
    missed, found = False, []
    for contestant in contestants:
        images, captions = contestant.encoded.image_embeds, contestant.encoded.text_embeds
        similarity = captions @ images[query] if texts else images @ captions[query]
        scores, chosen = torch.topk(similarity, min(k, len(similarity)))
        answers = []
        for order, (score, item) in enumerate(zip(scores.tolist(), chosen.tolist(), strict=True), start=1):
            verdict = "right" if item in right else "wrong"  # not by color alone
            answers.append(Answer(shown(item, texts), f"{order}: {number(score, 3)} {verdict}", item in right))
        rank = contestant.rank_of(direction)[query]
        missed = missed or rank > k
        note = f"; the right answer is at place {rank:,}" if rank > k else ""
        found.append(Found(contestant.name, note, answers))
    return Query(place, shown(query, not texts), [shown(item, texts) for item in right] if missed else [], found)


def gallery_picture(gallery: Gallery, width: int = 1400) -> Image.Image:
    """The figure as one picture."""
    inside = width - 2 * MARGIN
    blocks = [text_block([(gallery.title, "black")], inside, 24), text_block([(gallery.lead, GREY)], inside)]
    for text, queries in gallery.groups:
        heading = text_block([(text, "black")], inside, 20)
        blocks.append(stack([Image.new("RGB", (1, MARGIN), "white"), heading]))
        for query in queries:
            blocks += [rule(inside), *_query_blocks(query, inside)]
    return padded(stack(blocks, MARGIN))


def _query_blocks(query: Query, width: int) -> list[Image.Image]:
    top = []
    texts = [right for right in query.right if isinstance(right, str)]
    if isinstance(query.asked, str):
        for right in query.right:
            if not isinstance(right, str):
                shown = padded(fitted(right, 240, 180), 4, RIGHT)
                top.append(stack([text_block([("the right answer", RIGHT)], 240), shown]))
        texts = [query.asked]
    else:
        top.append(fitted(query.asked, 420, 280))
        if texts:
            texts.insert(0, "The right answer:" if len(texts) == 1 else "The right answers:")
    if texts:
        beside = width - sum(block.width + MARGIN for block in top)
        top.append(text_block([(text, "black") for text in texts], beside, 18))
    blocks = [flow(top, width)]
    for found in query.found:
        answers = [_answer_block(answer, len(found.answers), width) for answer in found.answers]
        title = text_block([(f"{found.model}{found.note}", GREY)], width)
        blocks.append(stack([title, flow(answers, width)], 4))
    return blocks


def _answer_block(answer: Answer, answers: int, width: int) -> Image.Image:
    """An answer with its mark above, so that all marks of a row are in line."""
    color = RIGHT if answer.right else WRONG
    if isinstance(answer.shown, str):
        text = text_block([(answer.mark, color), (answer.shown, "black")], width - 22)
        return padded(padded(text, 8), 3, color)
    in_row = min(max(answers, 4), 6)
    cell = (width - (in_row - 1) * MARGIN) // in_row
    shown = padded(padded(fitted(answer.shown, cell - 12, 0.75 * cell), 2), 4, color)
    return stack([text_block([(answer.mark, color)], cell), shown])


def gallery_page(gallery: Gallery) -> str:
    """The figure as a web page that needs no other file, whose text can be searched and copied."""
    return render("gallery", title=gallery.title, gallery=gallery)


def contestant(name: str, encoded: EncodedSource, device: Any = "cpu") -> Contestant:
    """A model's embeddings with its ranks."""
    return Contestant(name, encoded, encoded.ranks(device))
