"""Why a model finds an image and a caption alike: each sentence's best region and patches, drawn on the image.

`explain` computes, `explanation_picture` and `explanation_page` show. One colour stands for one region throughout: its
frame, and the words and patch heat maps of the sentences that it is the best region of.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastgoal.hub_cards.pictures import GREY, Frame, draw_frames, region_colours, wrap_text
from fastgoal.pages.page_style import SCRIPT, data_url, framed_picture, page
from fastgoal.processing.geometry import ImageTransform
from fastgoal.processing.matching import eval_mode
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.trainer.evaluation.embeddings import encode_images, encode_texts, max_text_length

MARGIN = 16
FONT_SIZE = 16
LINE = 22
# Width over height from which a picture is wide, and up to which it is tall.
WIDE, TALL = 2.2, 0.6
NOTE = (
    "Numbers are cosines: of image and caption, of sentence and region, of sentence and patches from the least to the "
    "most similar one. Each heat map has its own range: compare places, not strength. Where no patches are drawn, the "
    "model does not see the image."
)


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
    shape = image.width / image.height
    whole, half = width - 2 * MARGIN, (width - 3 * MARGIN) // 2
    # A wide picture has the width for itself, a tall one more height.
    room = (whole, 420) if shape > WIDE else (half, 460 if shape > TALL else 720)
    views = [
        (regions_picture(image, explanation, *room), "Best region of each sentence"),
        (components_picture(image, explanation, *room), "Image tokens: first 3 principal components as colour"),
    ]
    blocks = [_captioned(picture, wrap_text(text, font, max(picture.width, 190)), GREY) for picture, text in views]
    if shape > WIDE:
        parts = [[block] for block in blocks]
    else:
        parts = [blocks]
        beside = whole - sum(block.width + MARGIN for block in blocks)
        # Beside tall pictures the caption has room enough.
        if beside >= 400:
            parts[0].append(_caption(explanation, beside))
    if len(parts[0]) < 3:
        parts.append([_caption(explanation, whole)])

    small, in_row = _map_size(shape, width, len(explanation.sentences))
    maps = []
    for number, colour in enumerate(sentence_colours(explanation)):
        heat = explanation.sentences[number].heat
        label = f"{number + 1}: patches {float(heat.min()):.2f} to {float(heat.max()):.2f}"
        maps.append(_captioned(heat_picture(image, explanation, number, small, 300), [label], colour, small))
    parts += [maps[start : start + in_row] for start in range(0, len(maps), in_row)]
    note = wrap_text(NOTE, font, whole)
    parts.append([_text([(line, GREY) for line in note], whole)])

    title = wrap_text(f"{explanation.model}: image and caption {explanation.score:.3f}", bold, whole)
    top = MARGIN // 2 + 26 * len(title) + MARGIN // 2
    heights = [max(part.height for part in row) + MARGIN for row in parts]
    panel = Image.new("RGB", (width, top + sum(heights)), "white")
    for place, line in enumerate(title):
        ImageDraw.Draw(panel).text((MARGIN, MARGIN // 2 + 26 * place), line, fill="black", font=bold)
    for row, height in zip(parts, heights, strict=True):
        left = MARGIN
        for part in row:
            panel.paste(part, (left, top))
            left += part.width + MARGIN
        top += height
    return panel


def _map_size(shape: float, width: int, count: int) -> tuple[int, int]:
    """Width of a heat map, and how many stand in a row: as many as stay large enough to see, and to write below."""
    most = 2 if shape > WIDE else 4 if shape > TALL else 6
    in_row = min(most, max(2, count))
    return (width - (in_row + 1) * MARGIN) // in_row, in_row


def _caption(explanation: Explanation, width: int) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    lines: list[tuple[str, str]] = []
    for number, (sentence, colour) in enumerate(
        zip(explanation.sentences, sentence_colours(explanation), strict=True), start=1
    ):
        text = f"{number}. {sentence.text}  [{sentence.label.replace('_', ' ')}, {sentence.score:.3f}]"
        if not sentence.read:
            text += f"  (past {explanation.max_text_length} tokens: not read)"
        lines += [(line, colour) for line in wrap_text(text, font, width)]
    return _text(lines, width)


def _text(lines: Sequence[tuple[str, str]], width: int) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    block = Image.new("RGB", (width, LINE * len(lines)), "white")
    for place, (line, colour) in enumerate(lines):
        ImageDraw.Draw(block).text((0, place * LINE), line, fill=colour, font=font)
    return block


def _captioned(picture: Image.Image, lines: Sequence[str], colour: str, width: int = 0) -> Image.Image:
    """A picture with a line or more above it; the block is at least `width` wide."""
    font = ImageFont.load_default(FONT_SIZE)
    longest = max(round(font.getlength(line)) + 1 for line in lines)
    block = Image.new("RGB", (max(width, picture.width, longest), LINE * len(lines) + picture.height), "white")
    for place, line in enumerate(lines):
        ImageDraw.Draw(block).text((0, place * LINE), line, fill=colour, font=font)
    block.paste(picture, (0, LINE * len(lines)))
    return block


def sentence_colours(explanation: Explanation) -> list[str]:
    """The colour of every sentence: that of its region. Regions get theirs in the order in which they are named."""
    colours = region_colours(sentence.box for sentence in explanation.sentences)
    return [colours[sentence.box] for sentence in explanation.sentences]


def region_frames(explanation: Explanation) -> list[Frame]:
    """A frame for each region, with the numbers of the sentences that it is the best region of."""
    numbers: dict[tuple[float, float, float, float], list[int]] = {}
    for number, sentence in enumerate(explanation.sentences, start=1):
        numbers.setdefault(sentence.box, []).append(number)
    colours = region_colours(numbers)
    return [Frame(region, box, colours[box], of_box) for region, (box, of_box) in enumerate(numbers.items())]


def regions_picture(image: Image.Image, explanation: Explanation, width: int, height: int) -> Image.Image:
    """The image with the best regions framed, each with the numbers of its sentences."""
    shown, scale = _fitted(image, width, height)
    draw_frames(shown, region_frames(explanation), scale)
    return shown


def heat_picture(image: Image.Image, explanation: Explanation, number: int, width: int, height: int) -> Image.Image:
    """The image in grey with the patch similarities of a sentence in its region's colour, lowest to highest."""
    shown, scale = _fitted(image.convert("L").convert("RGB"), width, height)
    heat = explanation.sentences[number].heat
    spread = float(heat.max() - heat.min())
    strength = (heat - heat.min()) / spread if spread > 1e-9 else torch.zeros_like(heat)
    colour = Image.new("RGB", shown.size, sentence_colours(explanation)[number])
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


def explanation_page(image: Image.Image, explanations: Sequence[Explanation], caption: str, width: int = 1100) -> str:
    """The same as a web page that needs no other file; models stand next to each other."""
    shape = image.width / image.height
    view, map_width = (
        ("100%", 420) if shape > WIDE else ("300px" if shape > TALL else "140px", 190 if shape > TALL else 110)
    )
    style = (
        f".models{{max-width:none;display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:40px}}"
        f".views{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,{view}),1fr));gap:16px}}"
        f".maps{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,{map_width}px),1fr));gap:14px}}"
        ".views>figure>img,.maps img{max-width:100%;max-height:520px;display:block;border-radius:4px}"
        "figure{margin:0 0 14px}.model{min-width:0}.model h2{overflow-wrap:anywhere;margin:0 0 12px}"
        ".views .picture{margin:0}.maps{margin-top:20px}.maps figcaption{margin-top:4px}.unread{color:var(--alert)}"
    )
    parts = []
    for explanation in explanations:
        words, maps = [], []
        boxes = list(dict.fromkeys(sentence.box for sentence in explanation.sentences))
        colours = sentence_colours(explanation)
        for number, (sentence, colour) in enumerate(zip(explanation.sentences, colours, strict=True)):
            label = html.escape(sentence.label.replace("_", " "))
            unread = f'<br><span class="unread">past {explanation.max_text_length} tokens: not read</span>'
            region = boxes.index(sentence.box)
            words.append(
                f'<li style="--c:{colour}" tabindex="0" data-region="{region}"><span class="chip">{number + 1}</span>'
                f'<span class="text">{html.escape(sentence.text)}</span>'
                f'<span class="meta">{label} {sentence.score:.3f}{"" if sentence.read else unread}</span></li>'
            )
            heat = sentence.heat
            picture = heat_picture(image, explanation, number, 540, 420)
            maps.append(
                f'<figure><img alt="patches of sentence {number + 1}" src="{data_url(picture)}"><figcaption>'
                f'<span class="chip" style="--c:{colour}">{number + 1}</span> {float(heat.min()):.2f} to'
                f" {float(heat.max()):.2f}</figcaption></figure>"
            )
        regions = framed_picture(image, region_frames(explanation), "best region of each sentence")
        tokens = components_picture(image, explanation, width, 900)
        parts.append(
            f'<section class="model linked"><h2>{html.escape(explanation.model)}: image and caption'
            f" {explanation.score:.3f}</h2>"
            f'<div class="views"><figure>{regions}<figcaption>Best region of each sentence</figcaption></figure>'
            f'<figure><img alt="image tokens" src="{data_url(tokens)}"><figcaption>Image tokens: first three principal'
            " components as red, green, blue</figcaption></figure></div>"
            f'<ol class="sentences">{"".join(words)}</ol><div class="maps">{"".join(maps)}</div></section>'
        )
    body = f'<div class="models">{"".join(parts)}</div><p>{NOTE}</p>'
    return page(caption[:80], body, style, SCRIPT)


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
