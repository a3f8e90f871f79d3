"""Why a model finds an image and a caption alike: each sentence's best region and patches, drawn on the image.

`explain` computes, `explanation_picture` and `explanation_page` show. One colour stands for one sentence throughout:
the frame of its region, its patch heat map, its words in the caption.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastgoal.pictures import COLOURS, GREY, wrap_text
from fastgoal.processing.geometry import ImageTransform
from fastgoal.processing.matching import eval_mode
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.trainer.evaluation import encode_images, encode_texts, max_text_length

MARGIN = 16
FONT_SIZE = 16
LINE = 22


@dataclass(frozen=True)
class ExplainedSentence:
    """One sentence of the caption.

    Attributes:
        text: The sentence.
        box: Its best region, (x1, y1, x2, y2) in pixels of the image.
        label: What that region is called.
        score: Cosine of sentence and region crop.
        heat: `(rows, columns)` cosine of the sentence and each patch of the model's input.
        read: Whether the model reads any of it in the caption, or the caption was cut before.
    """

    text: str
    box: tuple[float, float, float, float]
    label: str
    score: float
    heat: Tensor
    read: bool


@dataclass(frozen=True)
class Explanation:
    """What one model makes of one image and caption.

    Attributes:
        model: Its name.
        score: Cosine of image and caption.
        sentences: In order.
        components: `(rows, columns, 3)` the first three principal components of the image tokens, 0 to 1.
        shown: (x1, y1, x2, y2), the part of the image that the model sees, in pixels of the image.
        max_text_length: Tokens that the model reads.
    """

    model: str
    score: float
    sentences: list[ExplainedSentence]
    components: Tensor
    shown: tuple[float, float, float, float]
    max_text_length: int


@torch.no_grad()
def explain(
    model: Any, processor: FastGoalProcessor, image: Image.Image, caption: str, name: str, detector: Any = None
) -> Explanation:
    """Match the sentences of a caption to regions and patches of an image.

    Args:
        model: A CLIP, on its device.
        processor: Its processor.
        image: Upright, RGB.
        caption: Any length; sentences past the model's text length are marked as not read.
        name: What to call the model.
        detector: Proposes regions beside the five default ones.

    Raises:
        ValueError: The caption has no sentence.
    """
    # A plain CLIP's folder does not say how large its patches are.
    processor.patch_size = processor.patch_size or int(model.config.vision_config.patch_size)
    processor.detector = detector
    pairs = processor.match([image], [caption], model)[0]
    masks = processor.sentence_masks(caption, [(pair.sentence.start, pair.sentence.end) for pair in pairs])
    with eval_mode(model):
        inputs = processor.image_processor(images=[image], return_tensors="pt")
        vision = model.vision_model(pixel_values=inputs["pixel_values"].to(model.device, model.dtype))
        tokens = vision.last_hidden_state[:, 1:]  # (1, patches, width); the class token comes first
        patches = model.visual_projection(model.vision_model.post_layernorm(tokens)).float()[0].cpu()
        patches = torch.nn.functional.normalize(patches, dim=-1)
    texts = encode_texts(model, processor, [pair.sentence.text for pair in pairs])
    whole = encode_texts(model, processor, [caption])[0] @ encode_images(model, processor, [image])[0]

    transform = ImageTransform.of(processor.image_processor, image.size)
    columns, rows = (side // processor.patch_size for side in transform.size)
    shown = tuple((transform.shown[axis] - transform.offset[axis % 2]) / transform.scale[axis % 2] for axis in range(4))
    sentences = [
        ExplainedSentence(
            pair.sentence.text,
            pair.region.box,
            pair.region.label or pair.region.source,
            pair.score,
            (patches @ text).reshape(rows, columns),
            bool(mask.any()),
        )
        for pair, text, mask in zip(pairs, texts, masks, strict=True)
    ]
    components = principal_components(tokens[0].float().cpu()).reshape(rows, columns, 3)
    return Explanation(name, float(whole), sentences, components, shown, max_text_length(model))  # type: ignore[arg-type]


def principal_components(tokens: Tensor, count: int = 3) -> Tensor:
    """The first principal components of `(tokens, width)`, each scaled to 0..1; 0.5 where all tokens are equal.

    A component's sign is chosen so that the first token is not above the middle, as signs mean nothing.
    """
    centred = tokens - tokens.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    values = centred @ directions[:count].T
    if values.shape[1] < count:
        values = torch.nn.functional.pad(values, (0, count - values.shape[1]))
    values = torch.where(values[:1] > 0, -values, values)
    low, high = values.amin(0), values.amax(0)
    spread = high - low
    return torch.where(spread > 1e-6, (values - low) / spread.clamp(min=1e-6), torch.full_like(values, 0.5))


def explanation_picture(image: Image.Image, explanations: Sequence[Explanation]) -> Image.Image:
    """One picture of one or several models' explanations, next to each other.

    For every model: the image with all regions; the image tokens' principal components; the caption in the sentences'
    colours with scores; then a heat map for every sentence, numbered as in the caption.
    """
    panels = [_panel(image, explanation, 1200 if len(explanations) == 1 else 900) for explanation in explanations]
    sheet = Image.new("RGB", (sum(panel.width for panel in panels), max(panel.height for panel in panels)), "white")
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width
    draw = ImageDraw.Draw(sheet)
    for place in range(1, len(panels)):
        x = sum(panel.width for panel in panels[:place])
        draw.line((x, MARGIN, x, sheet.height - MARGIN), fill="#bdbdbd")
    return sheet


def _panel(image: Image.Image, explanation: Explanation, width: int) -> Image.Image:
    font, bold = ImageFont.load_default(FONT_SIZE), ImageFont.load_default(FONT_SIZE + 3)
    half = (width - 3 * MARGIN) // 2
    with_regions, tokens = (
        regions_picture(image, explanation, half, 460),
        components_picture(image, explanation, half, 460),
    )

    lines: list[tuple[str, str]] = []
    for number, sentence in enumerate(explanation.sentences):
        text = f"{number + 1}. {sentence.text}  [{sentence.label}, {sentence.score:.3f}]"
        if not sentence.read:
            text += f"  (past {explanation.max_text_length} tokens: not read)"
        lines += [(line, _colour(number)) for line in wrap_text(text, font, width - 2 * MARGIN)]

    # As many heat maps in a row as stay large enough to see.
    in_row = min(4, max(2, len(explanation.sentences)))
    small = (width - (in_row + 1) * MARGIN) // in_row
    maps = [heat_picture(image, explanation, number, small, 300) for number in range(len(explanation.sentences))]
    map_rows = [maps[start : start + in_row] for start in range(0, len(maps), in_row)]

    heading = MARGIN + 30
    heights = [max(with_regions.height, tokens.height) + LINE + MARGIN, LINE * len(lines) + MARGIN]
    heights += [max(part.height for part in row) + LINE + MARGIN for row in map_rows]
    panel = Image.new("RGB", (width, heading + sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(panel)
    title = f"{explanation.model}: image and caption {explanation.score:.3f}"
    for line in wrap_text(title, bold, width - 2 * MARGIN)[:1]:
        draw.text((MARGIN, MARGIN // 2), line, fill="black", font=bold)
    top = heading
    for left, part, label in (
        (MARGIN, with_regions, "Best region of each sentence"),
        (2 * MARGIN + half, tokens, "Image tokens: first 3 principal components as colour"),
    ):
        draw.text((left, top), label, fill=GREY, font=font)
        panel.paste(part, (left, top + LINE))
    top += heights[0]
    for place, (line, colour) in enumerate(lines):
        draw.text((MARGIN, top + place * LINE), line, fill=colour, font=font)
    top += heights[1]
    for height, row in zip(heights[2:], map_rows, strict=True):
        for place, part in enumerate(row):
            number = next(index for index, one in enumerate(maps) if one is part)
            heat = explanation.sentences[number].heat
            left = MARGIN + place * (small + MARGIN)
            label = f"{number + 1}: patches {float(heat.min()):.2f} to {float(heat.max()):.2f}"
            draw.text((left, top), label, fill=_colour(number), font=font)
            panel.paste(part, (left, top + LINE))
        top += height
    return panel


def regions_picture(image: Image.Image, explanation: Explanation, width: int, height: int) -> Image.Image:
    """The image with the best region of every sentence framed and numbered in its colour."""
    shown, scale = _fitted(image, width, height)
    draw, font = ImageDraw.Draw(shown), ImageFont.load_default(FONT_SIZE - 2)
    taken: dict[tuple[float, ...], int] = {}
    tags = []
    for number, sentence in enumerate(explanation.sentences):
        before = taken.get(sentence.box, 0)
        taken[sentence.box] = before + 1
        # Frames of the same region lie inside each other, and their numbers side by side.
        inset = 4 * before
        x1, y1, x2, y2 = (round(value * scale) for value in sentence.box)
        corners = (x1 + inset, y1 + inset, x2 - 1 - inset, y2 - 1 - inset)
        if corners[2] > corners[0] and corners[3] > corners[1]:
            draw.rectangle(corners, outline=_colour(number), width=3)
        in_row = max(1, (shown.width - x1) // 22)
        tags.append((x1 + 22 * (before % in_row), y1 + 20 * (before // in_row)))
    # All numbers lie above all frames.
    for number, (left, top) in enumerate(tags):
        draw.rectangle((left, top, left + 20, top + 18), fill=_colour(number))
        draw.text((left + 10, top + 9), str(number + 1), fill="white", font=font, anchor="mm")
    return shown


def heat_picture(image: Image.Image, explanation: Explanation, number: int, width: int, height: int) -> Image.Image:
    """The image in grey with one sentence's patch similarities in its colour, from its lowest to its highest."""
    shown, scale = _fitted(image.convert("L").convert("RGB"), width, height)
    heat = explanation.sentences[number].heat
    spread = float(heat.max() - heat.min())
    strength = (heat - heat.min()) / spread if spread > 1e-9 else torch.zeros_like(heat)
    colour = Image.new("RGB", shown.size, _colour(number))
    mask = Image.new("L", shown.size, 0)
    left, top, right, bottom = (round(value * scale) for value in explanation.shown)
    patch = Image.fromarray((strength**1.5 * 225).round().byte().numpy())
    mask.paste(patch.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    pale = Image.blend(shown, Image.new("RGB", shown.size, "white"), 0.35)
    return Image.composite(colour, pale, mask)


def components_picture(image: Image.Image, explanation: Explanation, width: int, height: int) -> Image.Image:
    """The principal components of the image tokens as colours, where the model sees the image; the rest is faint."""
    shown, scale = _fitted(image, width, height)
    pale = Image.blend(shown, Image.new("RGB", shown.size, "white"), 0.75)
    left, top, right, bottom = (round(value * scale) for value in explanation.shown)
    colours = Image.fromarray((explanation.components * 255).round().byte().numpy())
    pale.paste(colours.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    return pale


def explanation_page(image: Image.Image, explanations: Sequence[Explanation], caption: str, width: int = 560) -> str:
    """The same as a web page that needs no other file; models stand next to each other."""
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;margin:24px;color:#212121;max-width:1240px}"
        ".models{display:flex;gap:32px;flex-wrap:wrap}.model{flex:1 1 520px;min-width:0}"
        "h2{font-size:18px;overflow-wrap:anywhere}img{max-width:100%;height:auto;display:block}"
        ".maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:12px}"
        "figure{margin:0 0 12px}figcaption,.note{color:#616161;font-size:14px}"
        ".caption span{font-weight:500}.score{font-weight:400;font-size:13px;opacity:.85;white-space:nowrap}"
        ".unread{opacity:.55;font-style:italic}"
    )
    parts = []
    for explanation in explanations:
        words, maps = [], []
        for number, sentence in enumerate(explanation.sentences):
            unread = "" if sentence.read else ' class="unread"'
            remark = "" if sentence.read else f", past {explanation.max_text_length} tokens: not read"
            words.append(
                f'<span style="color:{_colour(number)}"{unread}>{number + 1}. {html.escape(sentence.text)} <span'
                f' class="score">[{html.escape(sentence.label)}, {sentence.score:.3f}{remark}]</span></span>'
            )
            picture = heat_picture(image, explanation, number, 300, 300)
            heat = sentence.heat
            maps.append(
                f'<figure><img alt="patches of sentence {number + 1}" src="{_data_url(picture)}"><figcaption'
                f' style="color:{_colour(number)}">{number + 1}: patches {float(heat.min()):.2f} to'
                f" {float(heat.max()):.2f}</figcaption></figure>"
            )
        regions = regions_picture(image, explanation, width, 520)
        tokens = components_picture(image, explanation, width, 520)
        parts.append(
            f'<section class="model"><h2>{html.escape(explanation.model)}: image and caption'
            f" {explanation.score:.3f}</h2>"
            f'<figure><img alt="best region of each sentence" src="{_data_url(regions)}"><figcaption>Best region of'
            f" each sentence</figcaption></figure>"
            f'<p class="caption">{" ".join(words)}</p><div class="maps">{"".join(maps)}</div>'
            f'<figure><img alt="image tokens" src="{_data_url(tokens)}"><figcaption>Image tokens: first three principal'
            f" components as red, green, blue</figcaption></figure></section>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width"><title>' + html.escape(caption[:80]) + f"</title><style>{style}</style></head>"
        f'<body><div class="models">{"".join(parts)}</div><p class="note">Numbers in brackets are cosines of sentence'
        " and region. Every heat map has its own range; compare places, not strength.</p></body></html>\n"
    )


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture; its suffix says the format.

    Raises:
        ValueError: PIL knows no such format.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except ValueError as error:
        raise ValueError(f"--output {path}: {error}; name a .png, .jpg or .webp file.") from error


def _fitted(image: Image.Image, width: int, height: int) -> tuple[Image.Image, float]:
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS), scale


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
