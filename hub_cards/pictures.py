"""Pictures of local pairs: the image with its regions drawn, beside it the caption in the same colours."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
TAG = (24, 20)  # width and height of a sentence's number on an image
LEGEND = "* thick frame: the pair for training.  [region, cosine of sentence and region]"


@dataclass(frozen=True)
class Frame:
    """A region to frame on a picture.

    Attributes:
        region: Which one it is.
        box: (x1, y1, x2, y2) in pixels of the picture.
        colour: Of the frame and the numbers.
        numbers: Of the sentences that belong to it.
        best: Whether the frame is thick.
    """

    region: int
    box: Sequence[float]
    colour: str
    numbers: Sequence[int]
    best: bool = False

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def region_colours(regions: Iterable[Any]) -> dict[Any, str]:
    """A colour for each region, in the order in which the sentences name them."""
    return {region: COLOURS[place % len(COLOURS)] for place, region in enumerate(dict.fromkeys(regions))}


def row_frames(row: Mapping[str, Any]) -> list[Frame]:
    """The frames of a row of a pairs data set: one for each region that a sentence was matched to.

    Pairs that name a region that is not there are left out.
    """
    regions = row["regions"] or []
    pairs = [pair for pair in row["pairs"] or [] if pair["region"] is not None and 0 <= pair["region"] < len(regions)]
    pairs.sort(key=lambda pair: pair["sentence"])
    colours = region_colours(pair["region"] for pair in pairs)
    return [
        Frame(
            region,
            regions[region]["box"],
            colour,
            [pair["sentence"] + 1 for pair in pairs if pair["region"] == region],
            any(pair["best"] for pair in pairs if pair["region"] == region),
        )
        for region, colour in colours.items()
    ]


def draw_frames(image: Image.Image, frames: Iterable[Frame], scale: float) -> None:
    """Draw frames with their sentences' numbers on an image that was scaled by `scale`.

    White lines on both sides keep a frame visible on a picture of its colour. Numbers lie above all frames and inside
    the image; those of regions whose corners nearly coincide lie under one another.
    """
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_SIZE - 1)
    taken: dict[tuple[int, int], int] = {}
    tags = []
    for frame in sorted(frames, key=lambda frame: -frame.area):
        x1, y1, x2, y2 = (round(value * scale) for value in frame.box)
        x2, y2 = max(x2, x1 + 10), max(y2, y1 + 10)
        width = 5 if frame.best else 3
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline="white", width=width + 2)
        draw.rectangle((x1 + 1, y1 + 1, x2 - 2, y2 - 2), outline=frame.colour, width=width)
        count = len(frame.numbers)
        in_row = max(1, min(count, image.width // TAG[0]))
        corner = (x1 // 40, y1 // 40)
        left = max(0, min(x1, image.width - in_row * TAG[0]))
        rows = -(-count // in_row)
        top = max(0, min(y1 + TAG[1] * taken.get(corner, 0), image.height - rows * TAG[1]))
        taken[corner] = taken.get(corner, 0) + rows
        for place, number in enumerate(frame.numbers):
            tags.append((left + TAG[0] * (place % in_row), top + TAG[1] * (place // in_row), number, frame.colour))
    for left, top, number, colour in tags:
        draw.rectangle((left, top, left + TAG[0] - 2, top + TAG[1] - 2), fill=colour, outline="white")
        draw.text((left + TAG[0] // 2 - 1, top + TAG[1] // 2 - 1), str(number), fill="white", font=font, anchor="mm")


def pairs_sheet(rows: Sequence[Mapping[str, Any]], image_height: int = 260, width: int = 1100) -> Image.Image:
    """A sheet with one row of a pairs data set under the other.

    Left the image with the regions of the sentences, each with their numbers; that of the pair for training has a thick
    frame. Right the sentences, in their regions' colours, with region and score; the training pair has an asterisk.

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
    draw_frames(shown, row_frames(row), scale)
    return shown


def _panel(row: Mapping[str, Any], shown: Image.Image, text_left: int, width: int) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    lines: list[tuple[str, str]] = []
    pair_of = {pair["sentence"]: pair for pair in row["pairs"]}
    colours = {frame.region: frame.colour for frame in row_frames(row)}
    for index, sentence in enumerate(row["sentences"]):
        text = f"{index + 1}. {row['caption'][sentence['start'] : sentence['end']]}"
        colour = GREY
        if index in pair_of:
            pair = pair_of[index]
            region = row["regions"][pair["region"]]
            colour = colours[pair["region"]]
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
