"""Why a model finds an image and a caption alike: each sentence's best region and patches, drawn on the image.

`explain` computes, `draw_explanations` draws the parts, `explanation_picture` and `explanation_page` place them. One
color stands for one sentence throughout, whatever the model: its text, its number, its patch heat map and its region's
frame; the frame of a region that several sentences share is striped in their colors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastgoal.hub_cards.card_images import (
    COLORS,
    FONT_SIZE,
    GREY,
    MARGIN,
    PALE,
    Frame,
    Line,
    fitted,
    flow,
    framed,
    in_turn,
    lines_block,
    padded,
    plain_label,
    stack,
    text_block,
)
from fastgoal.hub_cards.wording import number
from fastgoal.modeling_fastgoal.towers_fastgoal import patch_embeds, patch_tokens, text_positions
from fastgoal.pages.render import render
from fastgoal.processing.embedding import embed_images, embed_texts, vision_outputs
from fastgoal.processing.geometry import ImageTransform
from fastgoal.processing.matching import LocalPair
from fastgoal.processing.processing_fastgoal import FastGoalProcessor

# The first sentences, more than any model reads, are shown.
MOST_SENTENCES = 100
# Largest width and height of what is drawn; sheet and page make it smaller.
VIEW, MAP = (1100, 720), (640, 420)
# Width over height from which a picture is wide, and up to which it is tall.
WIDE, TALL = 2.2, 0.6
COLOR_NOTE = (
    "A sentence has one color and one number: of its text, of the frame of its best region, of its heat map. A striped"
    f" frame is the best region of several sentences. After {len(COLORS)} sentences the colors come again."
)
NOTE = (
    "Numbers are cosines: of image and caption, of sentence and region, of sentence and patches from the least to the "
    "most similar one. Each heat map has its own range: compare places, not strength. Where no patches are drawn, the "
    "model does not see the image."
)


@dataclass(frozen=True)
class Explanation:
    """What one model makes of one image and caption.

    Attributes:
        model: Its name.
        score: Cosine of image and caption.
        lines: The sentences with their best regions; the note says whether the caption was cut before it.
        frames: Of the best regions, in pixels of the image.
        heats: `(sentences, rows, columns)` cosine of each sentence and each patch of the model's input.
        components: `(rows, columns, 3)` the first three principal components of the image tokens, 0 to 1.
        shown: (x1, y1, x2, y2), the part of the image that the model sees, in pixels of the image.
        left_out: Sentences behind the first `MOST_SENTENCES`, which are not shown.
    """

    model: str
    score: float
    lines: list[Line]
    frames: list[Frame]
    heats: Tensor
    components: Tensor
    shown: tuple[float, float, float, float]
    left_out: int = 0


@dataclass(frozen=True)
class Panel:
    """The pictures of one explanation; `ranges` are the cosines from the palest to the strongest place of each map."""

    made: Explanation
    components: Image.Image
    maps: list[Image.Image]
    ranges: list[str]


@torch.no_grad()
def explain(
    model: Any, processor: FastGoalProcessor, image: Image.Image, caption: str, name: str, detector: Any = None
) -> Explanation:
    """Match the sentences of a caption to regions and patches of an image, upright and RGB.

    Sentences past the model's text length are marked as not read. `name` is what to call the model; a detector proposes
    regions beside the five default ones.

    Raises:
        ValueError: The caption has no sentence.
    """
    # A plain CLIP's folder does not say how large its patches are.
    processor.patch_size = processor.patch_size or int(model.config.vision_config.patch_size)
    processor.detector = detector
    sentences = processor.split_sentences(caption)
    shown_text, left = caption, max(0, len(sentences) - MOST_SENTENCES)
    if left:
        shown_text = caption[: sentences[MOST_SENTENCES - 1].end]
    pairs = processor.match([image], [shown_text], model)[0]
    masks = processor.sentence_masks(shown_text, [(pair.sentence.start, pair.sentence.end) for pair in pairs])
    vision = vision_outputs(model, processor, [image])
    patches = torch.nn.functional.normalize(patch_embeds(model, vision).float()[0].cpu(), dim=-1)
    texts = embed_texts(model, processor, [pair.sentence.text for pair in pairs])
    whole = embed_texts(model, processor, [caption])[0] @ embed_images(model, processor, [image])[0]

    transform = ImageTransform.of(processor.image_processor, image.size)
    columns, rows = (side // processor.patch_size for side in transform.size)
    shown = tuple((transform.shown[axis] - transform.offset[axis % 2]) / transform.scale[axis % 2] for axis in range(4))
    lines, frames = sentences_and_regions(pairs, masks.any(dim=1).tolist(), text_positions(model))
    heats = (texts @ patches.T).reshape(len(pairs), rows, columns)
    components = principal_components(patch_tokens(model, vision)[0].float().cpu()).reshape(rows, columns, 3)
    return Explanation(name, float(whole), lines, frames, heats, components, shown, left)  # type: ignore[arg-type]


def sentences_and_regions(
    pairs: Sequence[LocalPair], read: Sequence[bool], tokens: int
) -> tuple[list[Line], list[Frame]]:
    """The sentences with their colors, and the frames of their regions in the order in which they are named.

    There are a pair for each sentence, and whether the model, which reads so many `tokens`, has `read` any of it.
    """
    places: dict[tuple[float, float, float, float], list[int]] = {}
    lines = []
    for place, (pair, is_read) in enumerate(zip(pairs, read, strict=True)):
        places.setdefault(pair.region.box, []).append(place)
        region = list(places).index(pair.region.box)
        label = plain_label(pair.region.label or pair.region.source)
        note = "" if is_read else f"past {tokens} tokens: not read"
        lines.append(Line(place + 1, pair.sentence.text, in_turn(place), region, label, pair.score, note=note))
    frames = [
        Frame(region, box, [place + 1 for place in found], [in_turn(place) for place in found])
        for region, (box, found) in enumerate(places.items())
    ]
    return lines, frames


def principal_components(tokens: Tensor) -> Tensor:
    """The first three principal components of `(tokens, width)`, each scaled to 0..1; 0.5 where all tokens are equal.

    A component's sign is chosen so that the first token is not above the middle, as signs mean nothing.
    """
    centered = tokens - tokens.mean(dim=0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    values = centered @ directions[:3].T
    values = torch.nn.functional.pad(values, (0, 3 - values.shape[1]))  # where there are fewer
    values = torch.where(values[:1] > 0, -values, values)
    low, high = values.amin(0), values.amax(0)
    spread = high - low
    return torch.where(spread > 1e-6, (values - low) / spread.clamp(min=1e-6), torch.full_like(values, 0.5))


def draw_explanations(image: Image.Image, explanations: Sequence[Explanation]) -> list[Panel]:
    """What `explanation_picture` and `explanation_page` place, drawn once for both."""
    return [
        Panel(
            made,
            components_picture(image, made),
            [heat_picture(image, made, place) for place in range(len(made.heats))],
            [f"{number(float(heat.min()), 2)} to {number(float(heat.max()), 2)}" for heat in made.heats],
        )
        for made in explanations
    ]


def heat_picture(image: Image.Image, explanation: Explanation, place: int) -> Image.Image:
    """The image in grey with the patch similarities of a sentence in its color, lowest to highest."""
    shown = fitted(image.convert("L").convert("RGB"), *MAP)
    heat = explanation.heats[place] - explanation.heats[place].min()
    strength = heat / heat.max().clamp(min=1e-9)
    mask = Image.new("L", shown.size, 0)
    left, top, right, bottom = _seen(image, explanation, shown)
    patch = Image.fromarray((strength**1.5 * 225).round().byte().numpy())
    mask.paste(patch.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    pale = Image.blend(shown, Image.new("RGB", shown.size, "white"), 0.35)
    return Image.composite(Image.new("RGB", shown.size, in_turn(place)), pale, mask)


def components_picture(image: Image.Image, explanation: Explanation) -> Image.Image:
    """The principal components of the image tokens as colors, where the model sees the image; the rest is faint."""
    shown = fitted(image, *VIEW)
    pale = Image.blend(shown, Image.new("RGB", shown.size, "white"), 0.75)
    left, top, right, bottom = _seen(image, explanation, shown)
    colors = Image.fromarray((explanation.components * 255).round().byte().numpy())
    pale.paste(colors.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    return pale


def _seen(image: Image.Image, explanation: Explanation, shown: Image.Image) -> tuple[int, int, int, int]:
    """The part of the image that the model sees, in pixels of the image as it is shown."""
    scales = (shown.width / image.width, shown.height / image.height) * 2
    left, top, right, bottom = (round(value * scale) for value, scale in zip(explanation.shown, scales))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def explanation_picture(image: Image.Image, panels: Sequence[Panel]) -> Image.Image:
    """One picture with a sheet for every model, next to each other.

    A sheet has the image with all regions, the principal components of its tokens, the sentences with their scores, and
    a heat map for each.
    """
    width = 1200 if len(panels) == 1 else 900
    sheets = [_sheet(image, panel, width - 2 * MARGIN) for panel in panels]
    height = max(sheet.height for sheet in sheets)
    line = Image.new("RGB", (1, height), PALE)
    blocks = [block for sheet in sheets for block in (line, padded(sheet))]
    return flow(blocks[1:], width * len(panels) + len(panels) - 1, gap=0)


def _sheet(image: Image.Image, panel: Panel, width: int) -> Image.Image:
    shape = image.width / image.height
    half = (width - MARGIN) // 2
    # A wide picture has the width for itself, a tall one more height.
    room = (width, 420) if shape > WIDE else (half, 460 if shape > TALL else 720)
    views = [
        (framed(image, panel.made.frames, *room), "Best region of each sentence"),
        (fitted(panel.components, *room), "Image tokens: first 3 principal components as color"),
    ]
    top = [stack([text_block([(text, GREY)], max(view.width, 200)), view]) for view, text in views]
    # Beside tall pictures the caption has room enough.
    beside = width - sum(block.width + MARGIN for block in top)
    top.append(lines_block(panel.made.lines, beside if beside >= 400 else width))
    # As many heat maps in a row as stay large enough to see, and to write below.
    in_row = min(2 if shape > WIDE else 4 if shape > TALL else 5, max(2, len(panel.made.lines)))
    cell = (width - (in_row - 1) * MARGIN) // in_row
    maps = []
    for line, heat, values in zip(panel.made.lines, panel.maps, panel.ranges, strict=True):
        text = text_block([(f"{line.number}. {line.text}", line.color)], cell, most=2)
        maps.append(stack([fitted(heat, cell, 300), text, text_block([(f"patches {values}", GREY)], cell)]))
    heading = f"{panel.made.model}: image and caption {number(panel.made.score, 3)}"
    title = text_block([(heading, "black")], width, FONT_SIZE + 3)
    legend, notes = (text_block([(text, GREY)], width) for text in (COLOR_NOTE, NOTE))
    return stack([title, legend, flow(top, width), flow(maps, width), notes], MARGIN)


def explanation_page(image: Image.Image, panels: Sequence[Panel], caption: str) -> str:
    """The same as a web page that needs no other file; models stand next to each other."""
    shape = image.width / image.height
    view, least = ("100%", "420px") if shape > WIDE else ("300px", "190px") if shape > TALL else ("140px", "140px")
    values = {"title": caption[:80], "image": image, "panels": panels, "view": view, "map": least}
    return render("explain", **values, colors=COLOR_NOTE, note=NOTE)
