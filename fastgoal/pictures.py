"""Pictures of local pairs: the image with its regions drawn, beside it the caption in the same colours."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fastgoal.processing.images import load_image

# Distinct on photographs and legible as text on white.
COLOURS = ("#c2185b", "#1565c0", "#2e7d32", "#e65100", "#6a1b9a", "#00838f", "#5d4037", "#455a64")
GREY = "#757575"
FONT_SIZE = 15
LINE = 20
MARGIN = 16


def pairs_sheet(rows: Sequence[Mapping[str, Any]], image_height: int = 260, width: int = 1100) -> Image.Image:
    """A sheet with one row of a pairs data set under the other.

    Left the image with the region of every sentence; the pair for training has a thick frame. Right the sentences,
    each in its region's colour with region and score, the training pair marked by a star.

    Args:
        rows: Rows as `fastgoal pairs` writes them.
        image_height: Height that every image is scaled to, in pixels; wide ones become lower.
        width: Width of the sheet in pixels.

    Raises:
        ValueError: `rows` is empty, or an image cannot be read.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one row of a pairs data set, got none.")
    panels = [_panel(row, image_height, width) for row in rows]
    sheet = Image.new("RGB", (width, sum(panel.height for panel in panels) + MARGIN), "white")
    top = MARGIN // 2
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    return sheet


def _panel(row: Mapping[str, Any], image_height: int, width: int) -> Image.Image:
    image = load_image(row["image"], name=row.get("file_name"))
    scale = min(image_height / image.height, 0.45 * width / image.width)
    shown = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    _draw_regions(shown, row, scale)

    text_left = round(0.45 * width) + 2 * MARGIN
    font = ImageFont.load_default(FONT_SIZE)
    lines: list[tuple[str, str]] = []
    pair_of = {pair["sentence"]: (place, pair) for place, pair in enumerate(row["pairs"])}
    for index, sentence in enumerate(row["sentences"]):
        text = row["caption"][sentence["start"] : sentence["end"]]
        colour = GREY
        if index in pair_of:
            place, pair = pair_of[index]
            region = row["regions"][pair["region"]]
            colour = COLOURS[place % len(COLOURS)]
            star = "★ " if pair["best"] and _has_glyph(font, "★") else ("* " if pair["best"] else "")
            text = f"{star}{text}  [{region['label'] or region['source']}, {pair['score']:.2f}]"
        lines += [(line, colour) for line in _wrap(text, font, width - text_left - MARGIN)]

    height = max(shown.height, LINE * len(lines)) + MARGIN
    panel = Image.new("RGB", (width, height), "white")
    panel.paste(shown, (MARGIN, MARGIN // 2))
    draw = ImageDraw.Draw(panel)
    for number, (line, colour) in enumerate(lines):
        draw.text((text_left, MARGIN // 2 + number * LINE), line, fill=colour, font=font)
    draw.line((MARGIN, height - 1, width - MARGIN, height - 1), fill="#e0e0e0")
    return panel


def _draw_regions(image: Image.Image, row: Mapping[str, Any], scale: float) -> None:
    """Frame the region of every pair on the scaled image; frames of one region lie side by side, not on one another."""
    draw = ImageDraw.Draw(image)
    taken: dict[int, int] = {}
    for place, pair in enumerate(row["pairs"]):
        inset = taken.get(pair["region"], 0)
        frame = 5 if pair["best"] else 2
        taken[pair["region"]] = inset + frame + 1
        x1, y1, x2, y2 = (round(value * scale) for value in row["regions"][pair["region"]]["box"])
        corners = (x1 + inset, y1 + inset, x2 - 1 - inset, y2 - 1 - inset)
        if corners[2] > corners[0] and corners[3] > corners[1]:
            draw.rectangle(corners, outline=COLOURS[place % len(COLOURS)], width=frame)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels; a word longer than that stands alone."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


def _has_glyph(font: Any, character: str) -> bool:
    """Whether the font can draw a character, rather than the box that stands for unknown ones."""
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))
