"""Retrieval examples and error cases as figures: a query, the first answers of each model, right and wrong framed.

`draw_gallery` finds the answers and their pictures, `gallery_picture` and `gallery_page` place them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from PIL import Image

from fastgoal.hub_cards.pictures import GREY, MARGIN, fitted, flow, padded, rule, stack, text_block
from fastgoal.hub_cards.wording import count, number
from fastgoal.pages.render import render
from fastgoal.processing.data.sources import Source
from fastgoal.processing.images import load_image
from fastgoal.trainer.evaluation.embeddings import EncodedSource
from fastgoal.trainer.evaluation.retrieval import Ranks

RIGHT, WRONG = "#2e7d32", "#c62828"
SHOW = ("examples", "errors", "both")
DIRECTIONS = ("text-to-image", "image-to-text")


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
    """One answer: its place and cosine in words, and an image or a caption."""

    mark: str
    right: bool
    picture: Image.Image | None = None
    text: str = ""


@dataclass(frozen=True)
class Found:
    """The first answers of one model; `note` says where the right one is, if not among them."""

    model: str
    note: str
    answers: list[Answer]


@dataclass(frozen=True)
class Query:
    """A caption or an image, what each model found, and the right answer where a model missed it."""

    number: int
    found: list[Found]
    text: str = ""
    picture: Image.Image | None = None
    right_picture: Image.Image | None = None
    right_texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Queries under one heading."""

    heading: str
    queries: list[Query]


@dataclass(frozen=True)
class Gallery:
    """All that the figure shows."""

    title: str
    lead: str
    groups: list[Group]


def choose_queries(contestants: Sequence[Contestant], direction: str, show: str, count: int) -> list[int]:
    """Which queries to draw, the most telling ones first.

    Examples are queries that the first model answers right; with a second model those that it ranks worst come first.
    Errors are queries that the first model answers wrong, the worst ranks first. `both` takes half of each.

    Args:
        contestants: The model, and others to compare.
        direction: Of `DIRECTIONS`.
        show: Of `SHOW`.
        count: How many; fewer where there are no more.

    Raises:
        ValueError: An argument is not one of its values, or there is no such query.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}; it must be one of {', '.join(map(repr, DIRECTIONS))}.")
    if show not in SHOW:
        raise ValueError(f"show is {show!r}; it must be one of {', '.join(map(repr, SHOW))}.")
    if count < 1:
        raise ValueError(f"count is {count}; it must be a positive integer.")
    ranks = [contestant.rank_of(direction) for contestant in contestants]
    asked = [query for query, rank in enumerate(ranks[0]) if rank > 0]
    others = [max(column[query] for column in ranks[1:]) if ranks[1:] else 0 for query in range(len(ranks[0]))]
    examples = sorted((query for query in asked if ranks[0][query] == 1), key=lambda query: -others[query])
    errors = sorted((query for query in asked if ranks[0][query] > 1), key=lambda query: -ranks[0][query])
    if show == "examples":
        chosen = examples[:count]
    elif show == "errors":
        chosen = errors[:count]
    else:
        half = errors[: count // 2]
        chosen = examples[: count - len(half)]
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

    texts = direction == "image-to-text"
    model, encoded = contestants[0].name, contestants[0].encoded
    ranks = contestants[0].rank_of(direction)
    right = [query for query in queries if ranks[query] == 1]
    groups = []
    for heading, chosen in (
        (f"Examples: {model} puts a right answer first", right),
        (f"Errors: {model} puts a wrong answer first", [query for query in queries if query not in right]),
    ):
        if chosen:
            drawn = [_query(contestants, picture, query, direction, k, queries.index(query) + 1) for query in chosen]
            groups.append(Group(heading, drawn))
    what = "images and the captions found for them" if texts else "captions and the images found for them"
    answers = "The first answer" if k == 1 else f"The first {k} answers"
    lead = (
        f"{answers} of {' and of '.join(one.name for one in contestants)} among {count(len(encoded.rows), 'image')},"
        " with their cosine to the query. Green frame: right. Red frame: wrong."
    )
    return Gallery(f"Retrieval: {what}", lead, groups)


def _query(
    contestants: Sequence[Contestant],
    picture: Callable[[int], Image.Image],
    query: int,
    direction: str,
    k: int,
    place: int,
) -> Query:
    encoded = contestants[0].encoded
    ranks = [contestant.rank_of(direction)[query] for contestant in contestants]
    missed = max(ranks) > k
    found = []
    for contestant, rank in zip(contestants, ranks, strict=True):
        note = "" if rank <= k else f"; the right answer is at place {rank:,}"
        found.append(Found(contestant.name, note, _answers(contestant.encoded, picture, query, direction, k)))
    if direction == "text-to-image":
        right_picture = picture(encoded.rows[encoded.text_to_image[query]]) if missed else None
        return Query(place, found, text=encoded.captions[query], right_picture=right_picture)
    owners = enumerate(encoded.text_to_image) if missed else ()
    right_texts = [encoded.captions[text] for text, owner in owners if owner == query]
    return Query(place, found, picture=picture(encoded.rows[query]), right_texts=right_texts)


def _answers(
    encoded: EncodedSource, picture: Callable[[int], Image.Image], query: int, direction: str, k: int
) -> list[Answer]:
    texts = direction == "image-to-text"
    of_query, of_answers = (
        (encoded.image_embeds, encoded.text_embeds) if texts else (encoded.text_embeds, encoded.image_embeds)
    )
    similarity = of_answers @ of_query[query]
    scores, chosen = torch.topk(similarity, min(k, len(similarity)))
    answers = []
    for place, (score, answer) in enumerate(zip(scores.tolist(), chosen.tolist(), strict=True), start=1):
        right = encoded.text_to_image[answer] == query if texts else answer == encoded.text_to_image[query]
        mark = f"{place}: {number(score, 3)} {'right' if right else 'wrong'}"  # not by colour alone
        if texts:
            answers.append(Answer(mark, right, text=encoded.captions[answer]))
        else:
            answers.append(Answer(mark, right, picture(encoded.rows[answer])))
    return answers


def gallery_picture(gallery: Gallery, width: int = 1400) -> Image.Image:
    """The figure as one picture."""
    inside = width - 2 * MARGIN
    blocks = [text_block([(gallery.title, "black")], inside, 24), text_block([(gallery.lead, GREY)], inside)]
    for group in gallery.groups:
        heading = text_block([(group.heading, "black")], inside, 20)
        blocks.append(stack([Image.new("RGB", (1, MARGIN), "white"), heading]))
        for query in group.queries:
            blocks += [rule(inside), *_query_blocks(query, inside)]
    return padded(stack(blocks, MARGIN))


def _query_blocks(query: Query, width: int) -> list[Image.Image]:
    asked = []
    if query.picture is not None:
        asked.append(fitted(query.picture, 420, 280))
    if query.right_picture is not None:
        shown = padded(fitted(query.right_picture, 240, 180), 4, RIGHT)
        asked.append(stack([text_block([("the right answer", RIGHT)], 240), shown]))
    beside = width - sum(block.width + MARGIN for block in asked)
    texts = [query.text] if query.text else query.right_texts
    if query.right_texts:
        texts = ["The right answer:" if len(query.right_texts) == 1 else "The right answers:", *query.right_texts]
    if texts:
        asked.append(text_block([(text, "black") for text in texts], beside, 18))
    blocks = [flow(asked, width)]
    for found in query.found:
        answers = [_answer_block(answer, len(found.answers), width) for answer in found.answers]
        title = text_block([(f"{found.model}{found.note}", GREY)], width)
        blocks.append(stack([title, flow(answers, width)], 4))
    return blocks


def _answer_block(answer: Answer, answers: int, width: int) -> Image.Image:
    """An answer with its mark above, so that all marks of a row are in line."""
    colour = RIGHT if answer.right else WRONG
    if answer.picture is None:
        text = text_block([(answer.mark, colour), (answer.text, "black")], width - 22)
        return padded(padded(text, 8), 3, colour)
    in_row = min(max(answers, 4), 6)
    cell = (width - (in_row - 1) * MARGIN) // in_row
    shown = padded(padded(fitted(answer.picture, cell - 12, 0.75 * cell), 2), 4, colour)
    return stack([text_block([(answer.mark, colour)], cell), shown])


def gallery_page(gallery: Gallery) -> str:
    """The figure as a web page that needs no other file, whose text can be searched and copied."""
    return render("gallery", title=gallery.title, gallery=gallery)


def contestant(name: str, encoded: EncodedSource, device: Any = "cpu") -> Contestant:
    """A model's embeddings with its ranks."""
    return Contestant(name, encoded, encoded.ranks(device))
