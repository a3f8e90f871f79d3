"""Pictures of local pairs, and the blocks that every sheet of pictures and texts is put together from.

A block is a picture on white. `stack` and `flow` make one of several; sheets that a page shows, too, place the same
pictures there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from fastgoal.processing.images import load_image
from fastgoal.processing.texts import shortened

from .wording import count, number

# Legible as text on white (contrast of 4.5 and more), and white on them; told apart with any of the three color-vision
# deficiencies. The first ones differ most.
COLORS = ("#027caf", "#db0184", "#7d7a00", "#402279", "#7a4403", "#8632fe", "#6e0c35", "#0106c7")
GREY, PALE = "#757575", "#d0d0d0"
FONT_SIZE = 16
LINE = 22
MARGIN = 16
# Of a text in a picture, and of the sentences of a row.
MOST_CHARACTERS, MOST_LINES = 1000, 100
TAG = (24, 20)  # width and height of a sentence's number on an image
STRIPE = 12  # pixels along a frame of several colors after which the color changes
LEGEND = "Thick frame and *: the pair for training. In brackets: region, cosine of sentence and region."


@dataclass(frozen=True)
class Frame:
    """A region to frame on a picture.

    Attributes:
        region: Which one it is.
        box: (x1, y1, x2, y2) in pixels of the picture.
        numbers: Of the sentences that belong to it.
        colors: Of the numbers, in turn. The frame has all of them, as stripes if they are several.
        best: Whether the frame is thick.
    """

    region: int
    box: Sequence[float]
    numbers: Sequence[int]
    colors: Sequence[str]
    best: bool = False

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def tags(self) -> list[tuple[int, str]]:
        """The numbers with their colors."""
        return [(one, self.colors[place % len(self.colors)]) for place, one in enumerate(self.numbers)]


@dataclass(frozen=True)
class Line:
    """A sentence beside a picture.

    Attributes:
        number: Of the sentence in its caption, from 1.
        text: The sentence.
        color: Of its number on the picture.
        region: That it was matched to; None: to none.
        label: What that region is called.
        score: Cosine of sentence and region.
        best: Whether it is the pair for training.
        note: What else there is to say.
    """

    number: int
    text: str
    color: str = GREY
    region: int | None = None
    label: str = ""
    score: float = 0.0
    best: bool = False
    note: str = ""

    def __str__(self) -> str:
        place = "" if self.region is None else f"  [{self.label}, {number(self.score, 3)}]"
        note = f"  ({self.note})" if self.note else ""
        return f"{'* ' if self.best else ''}{self.number}. {self.text}{place}{note}"


def in_turn(place: int) -> str:
    """The color of the n-th thing, from 0."""
    return COLORS[place % len(COLORS)]


def row_figure(row: Mapping[str, Any]) -> tuple[list[Frame], list[Line]]:
    """What to draw of a row of a pairs dataset: frames of the regions that a sentence was matched to, and sentences.

    One color stands for one region. Pairs that name a region that is not there are left out.
    """
    caption, regions = row["caption"] or "", row["regions"] or []
    pairs = {
        pair["sentence"]: pair
        for pair in sorted(row["pairs"] or [], key=lambda pair: pair["sentence"])
        if pair["region"] is not None and 0 <= pair["region"] < len(regions)
    }
    of_region: dict[int, list[Mapping[str, Any]]] = {}
    for pair in pairs.values():
        of_region.setdefault(pair["region"], []).append(pair)
    frames = [
        Frame(
            region,
            regions[region]["box"],
            [pair["sentence"] + 1 for pair in members],
            (in_turn(place),),
            any(pair["best"] for pair in members),
        )
        for place, (region, members) in enumerate(of_region.items())
    ]
    colors = {frame.region: frame.colors[0] for frame in frames}
    lines = []
    for place, sentence in enumerate(row["sentences"] or []):
        text, pair = caption[sentence["start"] : sentence["end"]], pairs.get(place)
        if pair is None:
            lines.append(Line(place + 1, text))
            continue
        region = pair["region"]
        label = plain_label(regions[region]["label"] or regions[region]["source"] or "")
        lines.append(Line(place + 1, text, colors[region], region, label, pair["score"], pair["best"]))
    return frames, lines


def plain_label(label: str) -> str:
    """A region's label as people write it."""
    return label.replace("_", " ")


def draw_frames(image: Image.Image, frames: Iterable[Frame], scale: float) -> None:
    """Draw frames with their sentences' numbers on an image that was scaled by `scale`.

    White lines on both sides keep a frame visible on a picture of its color. Numbers lie above all frames and inside
    the image; those of regions whose corners nearly coincide lie under one another.
    """
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_SIZE - 2)
    taken: dict[tuple[int, int], int] = {}
    tags = []
    for frame in sorted(frames, key=lambda frame: -frame.area):
        x1, y1, x2, y2 = (round(value * scale) for value in frame.box)
        x2, y2 = max(x2, x1 + 10), max(y2, y1 + 10)
        width = 5 if frame.best else 3
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline="white", width=width + 2)
        ring = Image.new("L", image.size, 0)
        ImageDraw.Draw(ring).rectangle((x1 + 1, y1 + 1, x2 - 2, y2 - 2), outline=255, width=width)
        image.paste(_stripes(image.size, frame.colors), mask=ring)
        in_row = max(1, min(len(frame.numbers), image.width // TAG[0]))
        corner = (x1 // 40, y1 // 40)
        left = max(0, min(x1, image.width - in_row * TAG[0]))
        rows = -(-len(frame.numbers) // in_row)
        top = max(0, min(y1 + TAG[1] * taken.get(corner, 0), image.height - rows * TAG[1]))
        taken[corner] = taken.get(corner, 0) + rows
        for place, tag in enumerate(frame.tags):
            tags.append((left + TAG[0] * (place % in_row), top + TAG[1] * (place // in_row), *tag))
    for left, top, of_sentence, color in tags:
        draw.rectangle((left, top, left + TAG[0] - 2, top + TAG[1] - 2), fill=color, outline="white")
        middle = (left + TAG[0] // 2 - 1, top + TAG[1] // 2 - 1)
        draw.text(middle, str(of_sentence), fill="white", font=font, anchor="mm")


def _stripes(size: tuple[int, int], colors: Sequence[str]) -> Image.Image:
    """Diagonal stripes of all colors; along every side of a frame they follow each other."""
    values = np.array([ImageColor.getrgb(color) for color in colors], dtype=np.uint8)
    places = (np.arange(size[0]) + np.arange(size[1])[:, None]) // STRIPE % len(colors)
    return Image.fromarray(values[places])


def fitted(image: Image.Image, width: float, height: float) -> Image.Image:
    """The picture, scaled as large as fits into `width` and `height`."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def framed(image: Image.Image, frames: Iterable[Frame], width: float, height: float) -> Image.Image:
    """The picture with frames, scaled as large as fits into `width` and `height`."""
    shown = fitted(image, width, height)
    draw_frames(shown, frames, min(width / image.width, height / image.height))
    return shown


def pairs_sheet(rows: Sequence[Mapping[str, Any]], image_height: int = 260, width: int = 1100) -> Image.Image:
    """A sheet with one row of a pairs dataset under the other.

    Left the image with the regions of the sentences, each with their numbers; that of the pair for training has a thick
    frame. Right the sentences, in their regions' colors, with region and score; the training pair has an asterisk.

    Args:
        rows: Rows as `fastgoal pairs` writes them.
        image_height: Height that every image is scaled to, in pixels; wide ones become lower.
        width: Width of the sheet in pixels.

    Raises:
        ValueError: `rows` is empty, or an image cannot be read.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one row of a pairs dataset, got none.")
    inside = width - 2 * MARGIN
    shown = []
    for row in rows:
        frames, lines = row_figure(row)
        image = load_image(row["image"], name=row.get("file_name"))
        shown.append((framed(image, frames, 0.45 * inside, image_height), lines))
    left = max(picture.width for picture, _ in shown)
    blocks = [text_block([(LEGEND, GREY)], inside)]
    for picture, lines in shown:
        texts = lines_block(lines, inside - left - MARGIN)
        blocks += [flow([stack([picture], width=left), texts], inside), rule(inside)]
    return padded(stack(blocks[:-1], MARGIN // 2))


def text_block(texts: Iterable[tuple[str, str]], width: int, size: int = FONT_SIZE, most: int = 0) -> Image.Image:
    """Texts with their colors, one under the other, broken into lines.

    Args:
        texts: Text and color of each.
        width: Of the block in pixels.
        size: Of the letters.
        most: Lines to show of each text; 0: all of them.
    """
    font = ImageFont.load_default(size)
    lines = []
    for text, color in texts:
        wrapped = wrap_text(shortened(text, MOST_CHARACTERS), font, width)
        if 0 < most < len(wrapped):
            # What is left out makes room for the dots.
            last = wrap_text(wrapped[most - 1], font, width - round(font.getlength(" ...")))[0]
            wrapped = [*wrapped[: most - 1], f"{last} ..."]
        lines += [(line, color) for line in wrapped]
    height = LINE + size - FONT_SIZE
    block = Image.new("RGB", (width, height * len(lines)), "white")
    draw = ImageDraw.Draw(block)
    for place, (line, color) in enumerate(lines):
        draw.text((0, place * height), line, fill=color, font=font)
    return block


def lines_block(lines: Iterable[Line], width: int) -> Image.Image:
    """Sentences in their colors, each with its region and score; the first `MOST_LINES` of them."""
    given = list(lines)
    texts = [(str(line), line.color) for line in given[:MOST_LINES]]
    if len(given) > MOST_LINES:
        texts.append((f"and {count(len(given) - MOST_LINES, 'sentence')} more", GREY))
    return text_block(texts, width)


def stack(blocks: Sequence[Image.Image], gap: int = 0, width: int = 0) -> Image.Image:
    """Blocks one under the other, flush left; as wide as the widest one, but at least `width`."""
    height = sum(block.height for block in blocks) + gap * (len(blocks) - 1)
    sheet = Image.new("RGB", (max(width, *(block.width for block in blocks)), height), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height + gap
    return sheet


def flow(blocks: Iterable[Image.Image], width: int, gap: int = MARGIN) -> Image.Image:
    """Blocks beside each other in as many rows as they need, like the words of a paragraph `width` pixels wide."""
    places: list[tuple[Image.Image, int, int]] = []
    left = top = height = 0
    for block in blocks:
        if left and left + block.width > width:
            left, top, height = 0, top + height + gap, 0
        places.append((block, left, top))
        left += block.width + gap
        height = max(height, block.height)
    sheet = Image.new("RGB", (width, top + height), "white")
    for block, x, y in places:
        sheet.paste(block, (x, y))
    return sheet


def rule(width: int) -> Image.Image:
    """A line between two blocks."""
    return Image.new("RGB", (width, 1), PALE)


def padded(block: Image.Image, margin: int = MARGIN, color: str = "white") -> Image.Image:
    """The block with a margin on all sides."""
    return ImageOps.expand(block, margin, color)


def wrap_text(text: str, font: Any, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels, between words, or inside one that is longer than a line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
