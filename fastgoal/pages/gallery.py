"""Retrieval examples and error cases as figures: a query, the first answers of each model, right and wrong framed.

`gallery_picture` draws them, `gallery_page` lays the same out as a page whose text can be searched and copied.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from fastgoal.hub_cards.pictures import GREY, wrap_text
from fastgoal.pages.page_style import data_url, page
from fastgoal.processing.data.sources import Source
from fastgoal.processing.images import load_image
from fastgoal.trainer.evaluation.embeddings import EncodedSource
from fastgoal.trainer.evaluation.retrieval import Ranks

RIGHT, WRONG = "#2e7d32", "#c62828"
MARGIN = 16
FONT_SIZE = 16
LINE = 22
SHOW = ("examples", "errors", "both")
DIRECTIONS = ("text-to-image", "image-to-text")


@dataclass(frozen=True)
class Contestant:
    """A model's name, embeddings and ranks on the same source as the others."""

    name: str
    encoded: EncodedSource
    ranks: Ranks


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
    name = direction.replace("-", "_")
    ranks = [getattr(contestant.ranks, name).tolist() for contestant in contestants]
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


def gallery_picture(
    contestants: Sequence[Contestant],
    source: Source,
    queries: Sequence[int],
    direction: str = "text-to-image",
    k: int = 5,
    width: int = 1400,
) -> Image.Image:
    """A figure with a block for each query: the query, then for each model its first k answers.

    Answers have a green frame if right and a red one if wrong, with place and cosine. Where the right one is not among
    them, the rank is said, and the right answer stands beside the query.
    """
    blocks = [_block(contestants, source, query, direction, k, width) for query in queries]
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _block(
    contestants: Sequence[Contestant], source: Source, query: int, direction: str, k: int, width: int
) -> Image.Image:
    font, bold = ImageFont.load_default(FONT_SIZE), ImageFont.load_default(FONT_SIZE + 2)
    encoded = contestants[0].encoded
    parts: list[Image.Image] = []
    missed = _missed(contestants, query, direction, k)
    if direction == "text-to-image":
        right = _thumbnail(source, encoded.rows[encoded.text_to_image[query]], 240, 180) if missed else None
        left = MARGIN if right is None else right.width + 2 * MARGIN + 10
        lines = wrap_text(encoded.captions[query], bold, width - left - MARGIN)
        height = max(25 * len(lines), 0 if right is None else right.height + LINE + 12)
        part = Image.new("RGB", (width, MARGIN + height), "white")
        draw = ImageDraw.Draw(part)
        if right is not None:
            frame = (MARGIN, MARGIN // 2, MARGIN + right.width + 9, MARGIN // 2 + right.height + 9)
            draw.rectangle(frame, outline=RIGHT, width=4)
            part.paste(right, (MARGIN + 5, MARGIN // 2 + 5))
            draw.text((MARGIN + 5, MARGIN // 2 + right.height + 11), "the right answer", fill=RIGHT, font=font)
    else:
        shown = _thumbnail(source, encoded.rows[query], 420, 280)
        left = shown.width + 2 * MARGIN
        lines = []
        if missed:
            right_texts = [encoded.captions[text] for text in _texts_of(encoded, query)]
            lines = [line for text in right_texts for line in wrap_text(text, bold, width - left - MARGIN)]
            lines.insert(0, "The right answer:" if len(right_texts) == 1 else "The right answers:")
        part = Image.new("RGB", (width, MARGIN + max(shown.height, 25 * len(lines))), "white")
        part.paste(shown, (MARGIN, MARGIN // 2))
        draw = ImageDraw.Draw(part)
    for number, line in enumerate(lines):
        draw.text((left, MARGIN // 2 + 25 * number), line, fill="black", font=bold)
    parts.append(part)
    for contestant in contestants:
        row = _images_row if direction == "text-to-image" else _texts_row
        scores, answers, rank = _answers(contestant, query, direction, k)
        title = Image.new("RGB", (width, LINE + 4), "white")
        ImageDraw.Draw(title).text((MARGIN, 0), f"{contestant.name}{_note(rank, k)}", fill=GREY, font=font)
        parts += [title, row(contestant, source, query, scores, answers, width)]
    height = sum(part.height for part in parts) + MARGIN
    block = Image.new("RGB", (width, height), "white")
    top = 0
    for part in parts:
        block.paste(part, (0, top))
        top += part.height
    ImageDraw.Draw(block).line((MARGIN, height - 1, width - MARGIN, height - 1), fill="#bdbdbd")
    return block


def _missed(contestants: Sequence[Contestant], query: int, direction: str, k: int) -> bool:
    """Whether a model has no right answer among its first k."""
    name = direction.replace("-", "_")
    return any(int(getattr(contestant.ranks, name)[query]) > k for contestant in contestants)


def _texts_of(encoded: EncodedSource, image: int) -> list[int]:
    return [text for text, owner in enumerate(encoded.text_to_image) if owner == image]


def _note(rank: int, k: int) -> str:
    return "" if rank <= k else f"; the right answer is at place {rank:,}"


def _answers(contestant: Contestant, query: int, direction: str, k: int) -> tuple[list[float], list[int], int]:
    encoded, ranks = contestant.encoded, contestant.ranks
    if direction == "text-to-image":
        similarity, rank = encoded.image_embeds @ encoded.text_embeds[query], ranks.text_to_image[query]
    else:
        similarity, rank = encoded.text_embeds @ encoded.image_embeds[query], ranks.image_to_text[query]
    scores, answers = torch.topk(similarity, min(k, len(similarity)))
    return scores.tolist(), answers.tolist(), int(rank)


def _images_row(
    contestant: Contestant, source: Source, query: int, scores: list[float], answers: list[int], width: int
) -> Image.Image:
    encoded, font = contestant.encoded, ImageFont.load_default(FONT_SIZE)
    cell = (width - (len(answers) + 1) * MARGIN) // max(len(answers), 5)
    height = round(0.75 * cell)
    row = Image.new("RGB", (width, height + LINE + MARGIN), "white")
    draw = ImageDraw.Draw(row)
    for place, (score, answer) in enumerate(zip(scores, answers, strict=True)):
        right = answer == encoded.text_to_image[query]
        colour, left = RIGHT if right else WRONG, MARGIN + place * (cell + MARGIN)
        shown = _thumbnail(source, encoded.rows[answer], cell - 10, height - 10)
        corner = (left + (cell - shown.width) // 2, (height - shown.height) // 2)
        frame = (corner[0] - 5, corner[1] - 5, corner[0] + shown.width + 4, corner[1] + shown.height + 4)
        draw.rectangle(frame, outline=colour, width=4)
        row.paste(shown, corner)
        mark = "right" if right else "wrong"  # not by colour alone
        draw.text((left + 5, height + 1), f"{place + 1}: {score:.3f} {mark}", fill=colour, font=font)
    return row


def _texts_row(
    contestant: Contestant, source: Source, query: int, scores: list[float], answers: list[int], width: int
) -> Image.Image:
    encoded, font = contestant.encoded, ImageFont.load_default(FONT_SIZE)
    entries = []
    for place, (score, answer) in enumerate(zip(scores, answers, strict=True)):
        right = encoded.text_to_image[answer] == query
        text = f"{place + 1}: {score:.3f} {'right' if right else 'wrong'}  {encoded.captions[answer]}"
        entries.append((RIGHT if right else WRONG, wrap_text(text, font, width - 4 * MARGIN)))
    row = Image.new("RGB", (width, sum(LINE * len(lines) + 18 for _, lines in entries)), "white")
    draw, top = ImageDraw.Draw(row), 0
    for colour, lines in entries:
        height = LINE * len(lines) + 10
        draw.rectangle((MARGIN, top, width - MARGIN, top + height), outline=colour, width=3)
        for number, line in enumerate(lines):
            draw.text((2 * MARGIN, top + 6 + number * LINE), line, fill="black", font=font)
        top += height + 8
    return row


def gallery_page(
    contestants: Sequence[Contestant],
    source: Source,
    queries: Sequence[int],
    direction: str = "text-to-image",
    k: int = 5,
) -> str:
    """The same figure as a web page that needs no other file."""
    style = (
        f":root{{--right:{RIGHT};--wrong:{WRONG}}}"
        "@media screen and (prefers-color-scheme:dark){:root{--right:#7fc97f;--wrong:#ff8a80}}"
        ".query{border-top:1px solid var(--line);padding:24px 0;break-inside:avoid}"
        ".query img{max-width:100%;display:block;margin:auto}"
        ".asked{display:flex;flex-wrap:wrap;gap:20px}.asked p{flex:1 1 320px;margin:0;max-width:none;font-size:17px}"
        ".asked figure{margin:0;max-width:min(100%,420px)}.asked img{max-height:280px}"
        ".asked .right img{max-height:190px}"
        "h3{font-size:15px;font-weight:600;margin:20px 0 8px;overflow-wrap:anywhere}"
        "h3 small{color:var(--soft);font-weight:400}"
        ".answers{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(45%,190px),1fr));gap:14px;"
        "list-style:none;padding:0;margin:0}.answers img{max-height:170px}"
        ".answers li,figure.right{border:4px solid var(--wrong);border-radius:4px;padding:4px}"
        ".answers .right,figure.right{border-color:var(--right)}"
        ".answers b{color:var(--wrong);font-size:14px;display:block;margin-top:4px}"
        ".answers .right b,figure.right figcaption{color:var(--right);margin-top:4px}"
        ".answers.texts{grid-template-columns:1fr;gap:8px}.texts li{padding:6px 12px}"
    )
    parts = [
        _query_section(contestants, source, query, direction, k, number) for number, query in enumerate(queries, 1)
    ]
    what = "captions and the images found for them" if direction == "text-to-image" else "images and the captions found"
    models = html.escape(" and of ".join(contestant.name for contestant in contestants))
    body = (
        f"<h1>Retrieval: {what}</h1><p>The first {k} answers of {models} among"
        f" {len(contestants[0].encoded.rows):,} images, with their cosine to the query. Green: right. Red: wrong.</p>"
    )
    return page(f"Retrieval: {what}", body + "".join(parts), style)


def _query_section(
    contestants: Sequence[Contestant], source: Source, query: int, direction: str, k: int, number: int
) -> str:
    encoded = contestants[0].encoded
    missed = _missed(contestants, query, direction, k)
    texts = direction == "image-to-text"
    if texts:
        picture = _thumbnail(source, encoded.rows[query], 640, 480)
        asked = f'<figure><img alt="query {number}" src="{data_url(picture)}"></figure>'
        if missed:
            captions = "<br>".join(html.escape(encoded.captions[text]) for text in _texts_of(encoded, query))
            asked += f"<p><small>The right answer:</small><br>{captions}</p>"
    else:
        asked = f"<p>{html.escape(encoded.captions[query])}</p>"
        if missed:
            picture = _thumbnail(source, encoded.rows[encoded.text_to_image[query]], 420, 340)
            asked += (
                f'<figure class="right"><img alt="the right answer" src="{data_url(picture)}">'
                "<figcaption>the right answer</figcaption></figure>"
            )
    parts = [f'<section class="query"><div class="asked">{asked}</div>']
    for contestant in contestants:
        scores, answers, rank = _answers(contestant, query, direction, k)
        parts.append(f"<h3>{html.escape(contestant.name)}<small>{_note(rank, k)}</small></h3>")
        parts.append(f'<ol class="answers{" texts" if texts else ""}">')
        for place, (score, answer) in enumerate(zip(scores, answers, strict=True), start=1):
            right = (encoded.text_to_image[answer] == query) if texts else (answer == encoded.text_to_image[query])
            mark = f"<b>{place}: {score:.3f} {'right' if right else 'wrong'}</b>"
            if texts:
                shown = mark + html.escape(encoded.captions[answer])
            else:
                picture = _thumbnail(source, encoded.rows[answer], 400, 340)
                shown = f'<img alt="answer {place}" src="{data_url(picture)}">{mark}'
            parts.append(f'<li class="{"right" if right else "wrong"}">{shown}</li>')
        parts.append("</ol>")
    return "".join(parts) + "</section>"


def _thumbnail(source: Source, row: int, width: int, height: int) -> Image.Image:
    entry = source[row]
    image = load_image(entry.image, name=entry.name)
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def contestant(name: str, encoded: EncodedSource, device: Any = "cpu") -> Contestant:
    """A model's embeddings with its ranks."""
    return Contestant(name, encoded, encoded.ranks(device))
