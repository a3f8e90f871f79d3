"""Draw images of local pairs, and the blocks of images and text that such figures consist of.

A block is an image on a white background. `stack` and `flow` arrange several blocks into one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from fastgoal.processing.images import load_image
from fastgoal.processing.texts import shortened

from .wording import count, number

# Legible on white, and white on them (contrast of at least 4.5), and distinguishable with any color-vision deficiency.
# The first ones differ most.
COLORS = ("#027caf", "#db0184", "#7d7a00", "#402279", "#7a4403", "#8632fe", "#6e0c35", "#0106c7")
GRAY, PALE = "#757575", "#d0d0d0"
FONT_SIZE = 16
LINE = 22
MARGIN = 16
SHEET_WIDTH, IMAGE_HEIGHT = 1100, 260  # of `pairs_sheet`
MOST_CHARACTERS, MOST_SENTENCES = 1000, 100  # of a text, and of a row
TAG = (24, 20)  # width and height of the number of a sentence on an image
STRIPE = 12  # pixels of each color along a frame of several colors
LEGEND = "Thick frame and *: the best pair. In brackets: region, cosine similarity of sentence and region."


@dataclass(frozen=True)
class Frame:
    """The frame of a region on an image.

    Attributes:
        region: Index of the region.
        box: (x1, y1, x2, y2) in pixels of the image.
        numbers: Numbers of the sentences that the region was matched to.
        colors: Colors of the numbers, repeated in order. A frame of several colors has stripes.
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
        return [(number, self.colors[index % len(self.colors)]) for index, number in enumerate(self.numbers)]


@dataclass(frozen=True)
class Line:
    """A sentence next to an image.

    Attributes:
        number: Number of the sentence in its caption, from 1.
        text: The sentence.
        color: Color of its number on the image.
        region: Index of the region that it was matched to, None without one.
        label: Label of that region.
        score: Cosine similarity of sentence and region.
        best: Whether it is in the best pair of the image.
        note: Text in parentheses at the end.
    """

    number: int
    text: str
    color: str = GRAY
    region: int | None = None
    label: str = ""
    score: float = 0.0
    best: bool = False
    note: str = ""

    def __str__(self) -> str:
        match = "" if self.region is None else f"  [{self.label}, {number(self.score, 3)}]"
        note = f"  ({self.note})" if self.note else ""
        return f"{'* ' if self.best else ''}{self.number}. {self.text}{match}{note}"


def color_at(index: int) -> str:
    """Return the color for an index; colors repeat."""
    return COLORS[index % len(COLORS)]


def row_figure(row: Mapping[str, Any]) -> tuple[list[Frame], list[Line]]:
    """Return the frames of the matched regions and the lines of the sentences of a row of a pairs dataset.

    A region and its sentences have one color. Pairs with a region that does not exist are left out.
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
    colors = {region: color_at(index) for index, region in enumerate(of_region)}
    frames = []
    for region, matches in of_region.items():
        numbers, best = [pair["sentence"] + 1 for pair in matches], any(pair["best"] for pair in matches)
        frames.append(Frame(region, regions[region]["box"], numbers, (colors[region],), best))
    lines = []
    for index, sentence in enumerate(row["sentences"] or []):
        text, match = caption[sentence["start"] : sentence["end"]], pairs.get(index)
        if match is None:
            lines.append(Line(index + 1, text))
            continue
        region = match["region"]
        label = plain_label(regions[region]["label"] or regions[region]["source"] or "")
        lines.append(Line(index + 1, text, colors[region], region, label, match["score"], match["best"]))
    return frames, lines


def plain_label(label: str) -> str:
    """Return the label of a region with spaces for underscores."""
    return label.replace("_", " ")


def draw_frames(image: Image.Image, frames: Iterable[Frame], scale: float) -> None:
    """Draw frames, with the numbers of their sentences, on an image that was scaled by `scale`.

    White lines on both sides keep a frame visible on any image. Numbers are drawn last and inside the image; the
    numbers of regions with nearly the same corner are stacked.
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
        for index, tag in enumerate(frame.tags):
            tags.append((left + TAG[0] * (index % in_row), top + TAG[1] * (index // in_row), *tag))
    for left, top, sentence, color in tags:
        draw.rectangle((left, top, left + TAG[0] - 2, top + TAG[1] - 2), fill=color, outline="white")
        middle = (left + TAG[0] // 2 - 1, top + TAG[1] // 2 - 1)
        draw.text(middle, str(sentence), fill="white", font=font, anchor="mm")


def _stripes(size: tuple[int, int], colors: Sequence[str]) -> Image.Image:
    """Return an image of diagonal stripes, so that all colors alternate along each side of a frame."""
    values = np.array([ImageColor.getrgb(color) for color in colors], dtype=np.uint8)
    stripes = (np.arange(size[0]) + np.arange(size[1])[:, None]) // STRIPE % len(colors)
    return Image.fromarray(values[stripes])


def fitted(image: Image.Image, width: float, height: float) -> Image.Image:
    """Return the image, scaled to the largest size that fits into `width` and `height`."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def framed(image: Image.Image, frames: Iterable[Frame], width: float, height: float) -> Image.Image:
    """Return the image with frames, scaled to the largest size that fits into `width` and `height`."""
    shown = fitted(image, width, height)
    draw_frames(shown, frames, min(width / image.width, height / image.height))
    return shown


def pairs_sheet(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw rows of a pairs dataset below each other.

    On the left is the image with the frames of matched regions; the frame of the best pair is thick. On the right are
    the sentences in the colors of their regions, with region and score; the best pair has an asterisk.

    Raises:
        ValueError: `rows` is empty, or an image cannot be read.
    """
    if not rows:
        raise ValueError("`rows` must have at least one row of a pairs dataset, got none.")
    inside = SHEET_WIDTH - 2 * MARGIN
    shown = []
    for row in rows:
        frames, lines = row_figure(row)
        image = load_image(row["image"], name=row.get("file_name"))
        shown.append((framed(image, frames, 0.45 * inside, IMAGE_HEIGHT), lines))
    left = max(image.width for image, _ in shown)
    blocks = [text_block([(LEGEND, GRAY)], inside)]
    for image, lines in shown:
        texts = lines_block(lines, inside - left - MARGIN)
        blocks += [flow([stack([image], width=left), texts], inside), rule(inside)]
    return padded(stack(blocks[:-1], MARGIN // 2))


def text_block(texts: Iterable[tuple[str, str]], width: int, size: int = FONT_SIZE, most: int = 0) -> Image.Image:
    """Draw texts below each other, wrapped into lines.

    Args:
        texts: Texts with their colors.
        width: Width of the block in pixels.
        size: Font size.
        most: Maximum number of lines of each text; 0 shows all.
    """
    font = ImageFont.load_default(size)
    lines = []
    for text, color in texts:
        wrapped = wrap_text(shortened(text, MOST_CHARACTERS), font, width)
        if 0 < most < len(wrapped):
            # The last line makes room for the dots.
            last = wrap_text(wrapped[most - 1], font, width - round(font.getlength(" ...")))[0]
            wrapped = [*wrapped[: most - 1], f"{last} ..."]
        lines += [(line, color) for line in wrapped]
    height = LINE + size - FONT_SIZE
    block = Image.new("RGB", (width, height * len(lines)), "white")
    draw = ImageDraw.Draw(block)
    for index, (line, color) in enumerate(lines):
        draw.text((0, index * height), line, fill=color, font=font)
    return block


def lines_block(lines: Iterable[Line], width: int) -> Image.Image:
    """Draw sentences in their colors, at most `MOST_SENTENCES`, each with its region and score."""
    texts = [(str(line), line.color) for line in lines]
    if (more := len(texts) - MOST_SENTENCES) > 0:
        texts[MOST_SENTENCES:] = [(f"and {count(more, 'sentence')} more", GRAY)]
    return text_block(texts, width)


def stack(blocks: Sequence[Image.Image], gap: int = 0, width: int = 0) -> Image.Image:
    """Arrange blocks below each other, aligned on the left, in a block that is at least `width` wide."""
    height = sum(block.height for block in blocks) + gap * (len(blocks) - 1)
    sheet = Image.new("RGB", (max(width, *(block.width for block in blocks)), height), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height + gap
    return sheet


def flow(blocks: Iterable[Image.Image], width: int, gap: int = MARGIN) -> Image.Image:
    """Arrange blocks in rows, like the words of a paragraph that is `width` pixels wide."""
    placed: list[tuple[Image.Image, int, int]] = []
    left = top = height = 0
    for block in blocks:
        if left and left + block.width > width:
            left, top, height = 0, top + height + gap, 0
        placed.append((block, left, top))
        left += block.width + gap
        height = max(height, block.height)
    sheet = Image.new("RGB", (width, top + height), "white")
    for block, x, y in placed:
        sheet.paste(block, (x, y))
    return sheet


def rule(width: int) -> Image.Image:
    """Return a line that separates two blocks."""
    return Image.new("RGB", (width, 1), PALE)


def padded(block: Image.Image, margin: int = MARGIN, color: str = "white") -> Image.Image:
    """Return the block with a margin on all sides."""
    return ImageOps.expand(block, margin, color)


def wrap_text(text: str, font: Any, width: int) -> list[str]:
    """Wrap a text into lines of at most `width` pixels, between words, or inside a word that is longer than a line."""
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
