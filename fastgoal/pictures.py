"""Pictures of local pairs: the image with its regions drawn, beside it the caption in the same colours."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fastgoal.processing.images import load_image

# Legible as text on white (contrast of 4.5 and more), and white on them; told apart with any of the three colour-vision
# deficiencies. The first ones differ most.
COLOURS = ("#027caf", "#db0184", "#7d7a00", "#402279", "#7a4403", "#8632fe", "#6e0c35", "#0106c7")
GREY = "#757575"
FONT_SIZE = 15
LINE = 20
MARGIN = 16
LEGEND = "* thick frame: the pair for training.  [region, cosine of sentence and region]"


def pairs_sheet(rows: Sequence[Mapping[str, Any]], image_height: int = 260, width: int = 1100) -> Image.Image:
    """A sheet with one row of a pairs data set under the other.

    Left the image with the region of every sentence; the pair for training has a thick frame. Right the sentences,
    each in its region's colour with region and score, the training pair marked by an asterisk.

    Args:
        rows: Rows as `fastgoal pairs` writes them.
        image_height: Height that every image is scaled to, in pixels; wide ones become lower.
        width: Width of the sheet in pixels.

    Raises:
        ValueError: `rows` is empty, or an image cannot be read.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one row of a pairs data set, got none.")
    shown = [_scaled(row, image_height, 0.45 * width) for row in rows]
    text_left = max(image.width for image in shown) + 3 * MARGIN
    panels = [_panel(row, image, text_left, width) for row, image in zip(rows, shown, strict=True)]
    top = LINE + MARGIN
    sheet = Image.new("RGB", (width, top + sum(panel.height for panel in panels) + MARGIN // 2), "white")
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN // 2), LEGEND, fill=GREY, font=font)
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    return sheet


def _scaled(row: Mapping[str, Any], height: float, width: float) -> Image.Image:
    """The row's image with its regions drawn, scaled to fit into `height` and `width`."""
    image = load_image(row["image"], name=row.get("file_name"))
    scale = min(height / image.height, width / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shown = image.resize(size, Image.Resampling.LANCZOS)
    _draw_regions(shown, row, scale)
    return shown


def _panel(row: Mapping[str, Any], shown: Image.Image, text_left: int, width: int) -> Image.Image:
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
            place_name = (region["label"] or region["source"]).replace("_", " ")
            text = f"{'* ' if pair['best'] else ''}{text}  [{place_name}, {pair['score']:.2f}]"
        lines += [(line, colour) for line in wrap_text(text, font, width - text_left - MARGIN)]

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


def wrap_text(text: str, font: Any, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels; a word longer than that stands alone."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]
