"""Figures of retrieval examples and errors: queries and the top answers of each model, framed as correct or wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image

from fastgoal.hub_cards.card_images import GRAY, MARGIN, fitted, flow, padded, rule, stack, text_block
from fastgoal.hub_cards.wording import count, number
from fastgoal.pages.render import render
from fastgoal.processing.checkpoints.devices import choose_workers
from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.data.sources import Source
from fastgoal.processing.images import load_image
from fastgoal.trainer.evaluation.measures.embeddings import EncodedSource, encode_source
from fastgoal.trainer.evaluation.measures.retrieval import Ranks
from fastgoal.trainer.evaluation.options import EvaluationOptions
from fastgoal.trainer.evaluation.protocols.registry import open_protocol

CORRECT, WRONG = "#2e7d32", "#c62828"


@dataclass(frozen=True)
class RankedModel:
    """The name of a model, with its embeddings and ranks on a source that all compared models share."""

    name: str
    encoded: EncodedSource
    ranks: Ranks

    def ranks_of(self, direction: str) -> list[int]:
        """Return the rank of the correct answer to each query, 0 if it has none."""
        ranks: list[int] = getattr(self.ranks, direction.replace("-", "_")).tolist()
        return ranks


@dataclass(frozen=True)
class Answer:
    """An image or a caption, with its position and cosine similarity as text, and whether it is correct."""

    content: Image.Image | str
    mark: str
    is_correct: bool


@dataclass(frozen=True)
class ModelAnswers:
    """The top answers of a model. The note says at which position the correct answer is, if it is not among them."""

    model: str
    note: str
    answers: list[Answer]


@dataclass(frozen=True)
class Query:
    """A caption or an image, its correct answers if a model missed them, and the answers of each model."""

    number: int
    content: Image.Image | str
    correct: Sequence[Image.Image | str]
    models: list[ModelAnswers]


@dataclass(frozen=True)
class Gallery:
    """The title, the introduction, and groups of queries with their headings."""

    title: str
    introduction: str
    groups: list[tuple[str, list[Query]]]

    @property
    def queries(self) -> int:
        """The number of queries."""
        return sum(len(group) for _, group in self.groups)


def retrieval_gallery(
    model: str,
    data: str,
    options: EvaluationOptions | None = None,
    *,
    against: str | None = None,
    direction: str = "text-to-image",
    show: str = "both",
    count: int = 6,
    top_k: int = 5,
    progress: bool = False,
) -> Gallery:
    """Collect retrieval examples and errors of one or two models; `gallery_figure` and `gallery_page` draw them.

    Args:
        model: Folder or Hub id of a model.
        data: Data of the protocol (see `open_protocol`).
        options: Protocol and settings; the defaults of `EvaluationOptions` if None. The tests are ignored.
        against: Another model to compare with, given like `model`.
        direction: "text-to-image" or "image-to-text".
        show: "examples", "errors", or "both" for half of each.
        count: Number of queries. There are fewer if the data has fewer.
        top_k: Number of answers of each model.
        progress: Show progress bars.

    Raises:
        ValueError: The data or a model cannot be used, or there is no query to show.
    """
    options = options or EvaluationOptions()
    names = ("form", "split", "image_column", "caption_column", "image_folder", "limit", "allow_outside_files")
    source = open_protocol(options.protocol, data, **{name: getattr(options, name) for name in names})
    models = []
    for argument, name in (("model", model), ("against", against)):
        if name is not None:
            loaded, processor = load_model(name, options.device, argument=argument)
            workers = choose_workers(options.num_workers, loaded)
            reading = (options.batch_size, workers, options.on_error)
            encoded = encode_source(loaded, processor, source, *reading, progress=progress)
            models.append(RankedModel(name, encoded, encoded.ranks(loaded.device)))
    return make_gallery(models, source, choose_queries(models, direction, show, count), direction, top_k)


def choose_queries(models: Sequence[RankedModel], direction: str, show: str, count: int) -> list[int]:
    """Choose the queries to draw, the most informative ones first.

    Examples are queries that the first model answers correctly. If there is a second model, those that it ranks worst
    come first. Errors are queries that the first model answers wrongly, the worst ranks first.

    Args:
        models: The model, and others to compare with.
        direction: "text-to-image" or "image-to-text".
        show: "examples", "errors", or "both" for half of each.
        count: Number of queries. There are fewer if the source has fewer.

    Raises:
        ValueError: There is no such query.
    """
    first, *others = (model.ranks_of(direction) for model in models)
    answered = [query for query, rank in enumerate(first) if rank > 0]
    worst = [max((ranks[query] for ranks in others), default=0) for query in range(len(first))]
    examples = sorted((query for query in answered if first[query] == 1), key=lambda query: -worst[query])
    errors = sorted((query for query in answered if first[query] > 1), key=lambda query: -first[query])
    if show != "both":
        chosen = (examples if show == "examples" else errors)[:count]
    else:
        chosen = examples[: count - min(len(errors), count // 2)]
        chosen += errors[: count - len(chosen)]
    if not chosen:
        answers = "all queries" if show == "errors" else "no query"
        raise ValueError(f"`show={show}`: there is no query to show. The model answers {answers} correctly.")
    return chosen


def make_gallery(
    models: Sequence[RankedModel],
    source: Source,
    queries: Sequence[int],
    direction: str = "text-to-image",
    k: int = 5,
) -> Gallery:
    """Collect queries and the top k answers of each model; those that the first model answers correctly come first.

    If a correct answer is not among the top k of a model, its rank is given, and it is shown with the query.
    """

    @cache
    def image_of(row: int) -> Image.Image:
        entry = source[row]
        return fitted(load_image(entry.image, name=entry.name), 480, 400)

    name, ranks = models[0].name, models[0].ranks_of(direction)
    groups: dict[bool, list[Query]] = {True: [], False: []}
    for index, query in enumerate(queries, start=1):
        groups[ranks[query] == 1].append(_query(models, image_of, query, direction, k, index))
    headings = {True: f"Examples: correct first answers of {name}", False: f"Errors: wrong first answers of {name}"}
    introduction = (
        f"The top {count(k, 'answer')} of {' and of '.join(model.name for model in models)} among"
        f" {count(len(models[0].encoded.rows), 'image')}, with the cosine similarity to the query. Green frame:"
        " correct. Red frame: wrong."
    )
    title = f"{direction.capitalize()} retrieval"
    return Gallery(title, introduction, [(headings[right], group) for right, group in groups.items() if group])


def _query(
    models: Sequence[RankedModel],
    image_of: Callable[[int], Image.Image],
    query: int,
    direction: str,
    k: int,
    index: int,
) -> Query:
    encoded, to_text = models[0].encoded, direction == "image-to-text"

    def content(item: int, text: bool) -> Image.Image | str:
        return encoded.captions[item] if text else image_of(encoded.rows[item])

    owners = encoded.text_to_image
    correct = [text for text, owner in enumerate(owners) if owner == query] if to_text else [owners[query]]
    missed, columns = False, []
    for model in models:
        images, captions = model.encoded.image_embeds, model.encoded.text_embeds
        similarity = captions @ images[query] if to_text else images @ captions[query]
        scores, chosen = torch.topk(similarity, min(k, len(similarity)))
        answers = []
        for position, (score, item) in enumerate(zip(scores.tolist(), chosen.tolist(), strict=True), start=1):
            verdict = "correct" if item in correct else "wrong"  # not only by color
            mark = f"{position}: {number(score, 3)} {verdict}"
            answers.append(Answer(content(item, to_text), mark, item in correct))
        rank = model.ranks_of(direction)[query]
        missed = missed or rank > k
        note = f"; the correct answer has rank {rank:,}" if rank > k else ""
        columns.append(ModelAnswers(model.name, note, answers))
    return Query(index, content(query, not to_text), [content(item, to_text) for item in correct if missed], columns)


def gallery_figure(gallery: Gallery, width: int = 1400) -> Image.Image:
    """Draw the gallery as one image."""
    inside = width - 2 * MARGIN
    blocks = [text_block([(gallery.title, "black")], inside, 24), text_block([(gallery.introduction, GRAY)], inside)]
    for text, queries in gallery.groups:
        heading = text_block([(text, "black")], inside, 20)
        blocks.append(stack([Image.new("RGB", (1, MARGIN), "white"), heading]))
        for query in queries:
            blocks += [rule(inside), *_query_blocks(query, inside)]
    return padded(stack(blocks, MARGIN))


def _query_blocks(query: Query, width: int) -> list[Image.Image]:
    top = []
    texts = [answer for answer in query.correct if isinstance(answer, str)]
    if isinstance(query.content, str):
        for answer in query.correct:
            if not isinstance(answer, str):
                shown = padded(fitted(answer, 240, 180), 4, CORRECT)
                top.append(stack([text_block([("the correct answer", CORRECT)], 240), shown]))
        texts = [query.content]
    else:
        top.append(fitted(query.content, 420, 280))
        if texts:
            texts.insert(0, "The correct answer:" if len(texts) == 1 else "The correct answers:")
    if texts:
        room_left = width - sum(block.width + MARGIN for block in top)
        top.append(text_block([(text, "black") for text in texts], room_left, 18))
    blocks = [flow(top, width)]
    for model in query.models:
        answers = [_answer_block(answer, len(model.answers), width) for answer in model.answers]
        title = text_block([(f"{model.model}{model.note}", GRAY)], width)
        blocks.append(stack([title, flow(answers, width)], 4))
    return blocks


def _answer_block(answer: Answer, answers: int, width: int) -> Image.Image:
    """Draw an answer below its mark, so that all marks of a row are aligned."""
    color = CORRECT if answer.is_correct else WRONG
    if isinstance(answer.content, str):
        text = text_block([(answer.mark, color), (answer.content, "black")], width - 22)
        return padded(padded(text, 8), 3, color)
    in_row = min(max(answers, 4), 6)
    cell = (width - (in_row - 1) * MARGIN) // in_row
    shown = padded(padded(fitted(answer.content, cell - 12, 0.75 * cell), 2), 4, color)
    return stack([text_block([(answer.mark, color)], cell), shown])


def gallery_page(gallery: Gallery) -> str:
    """Return the gallery as a web page that needs no other file."""
    return render("gallery", title=gallery.title, gallery=gallery)
