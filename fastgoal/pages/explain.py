"""Explain why a model finds an image and a caption similar: the best region and the patches of each sentence.

One color stands for one sentence in everything that is drawn: its text, its number, its heat map, and the frame of its
best region. The frame of a region that several sentences share is striped in their colors.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastgoal.hub_cards.card_images import (
    COLORS,
    FONT_SIZE,
    GRAY,
    MARGIN,
    PALE,
    Frame,
    Line,
    color_at,
    fitted,
    flow,
    framed,
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
from fastgoal.processing.images import ImageSource, load_image
from fastgoal.processing.matching import LocalPair
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.sentences import check_language

# More sentences than any model reads.
MAX_SENTENCES = 100
# Largest (width, height) of drawn images. The figure and the page show them smaller.
VIEW, MAP = (1100, 720), (640, 420)
# Images with a larger ratio of width to height are wide; those up to `TALL` are tall.
WIDE, TALL = 2.2, 0.6
COLOR_NOTE = (
    "Each sentence has one color and one number, in the text, at the frame of its best region, and in its heat map. A"
    f" striped frame is the best region of several sentences. Colors repeat after {len(COLORS)} sentences."
)
NOTE = (
    "All numbers are cosine similarities: of the image and the caption, of a sentence and its region, and of a sentence"
    " and its least and most similar patch. Each heat map has its own range, so compare positions and not strengths."
    " Where no patches are drawn, the model does not see the image."
)


@dataclass(frozen=True)
class Explanation:
    """What `explain` finds, and the images that show it.

    Attributes:
        image: The image, upright and RGB.
        caption: The caption.
        model_name: Name of the model.
        score: Cosine similarity of the image and the caption.
        lines: The sentences with the labels and scores of their best regions. The note says if the model does not read
            the sentence.
        frames: Frames of the best regions, in pixels of the image.
        similarities: Cosine similarity of each sentence and each patch, `(sentences, rows, columns)`.
        components: First three principal components of the image tokens, `(rows, columns, 3)`, from 0 to 1.
        visible_box: The part (x1, y1, x2, y2) of the image that the model sees, in pixels of the image.
        omitted: Number of sentences after the first `MAX_SENTENCES`, which are not shown.
    """

    image: Image.Image
    caption: str
    model_name: str
    score: float
    lines: list[Line]
    frames: list[Frame]
    similarities: Tensor
    components: Tensor
    visible_box: tuple[float, ...]
    omitted: int = 0

    @property
    def ranges(self) -> list[str]:
        """The lowest and the highest patch similarity of each sentence, as text."""
        return [f"{number(float(map.min()), 2)} to {number(float(map.max()), 2)}" for map in self.similarities]

    @cached_property
    def heat_maps(self) -> list[Image.Image]:
        """For each sentence the grey image under the patch similarities in the sentence's color."""
        shown = fitted(self.image.convert("L").convert("RGB"), *MAP)
        pale = Image.blend(shown, Image.new("RGB", shown.size, "white"), 0.35)
        left, top, right, bottom = self._visible_box(shown)
        maps = []
        for index, similarity in enumerate(self.similarities):
            strength = similarity - similarity.min()
            strength = (strength / strength.max().clamp(min=1e-9)) ** 1.5
            patches = Image.fromarray((strength * 225).round().byte().numpy())
            mask = Image.new("L", shown.size, 0)
            mask.paste(patches.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
            maps.append(Image.composite(Image.new("RGB", shown.size, color_at(index)), pale, mask))
        return maps

    @cached_property
    def components_image(self) -> Image.Image:
        """The principal components of the image tokens as red, green and blue. What the model does not see is faint."""
        shown = fitted(self.image, *VIEW)
        pale = Image.blend(shown, Image.new("RGB", shown.size, "white"), 0.75)
        left, top, right, bottom = self._visible_box(shown)
        colors = Image.fromarray((self.components * 255).round().byte().numpy())
        pale.paste(colors.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
        return pale

    def _visible_box(self, shown: Image.Image) -> tuple[int, int, int, int]:
        """The part of the image that the model sees, in pixels of the scaled image."""
        scales = (shown.width / self.image.width, shown.height / self.image.height) * 2
        left, top, right, bottom = (round(value * scale) for value, scale in zip(self.visible_box, scales, strict=True))
        return left, top, max(right, left + 1), max(bottom, top + 1)


@torch.no_grad()
def explain(
    model: Any,
    processor: FastGoalProcessor,
    image: ImageSource,
    caption: str,
    *,
    detector: Any = None,
    language: str | None = None,
    model_name: str = "model",
) -> Explanation:
    """Match each sentence of a caption to a region and to the patches of an image.

    Example:
        ```python
        from fastgoal import FastGoalModel, FastGoalProcessor, explain
        from fastgoal.pages.explain import explanation_figure

        model, processor = FastGoalModel.from_pretrained("outputs"), FastGoalProcessor.from_pretrained("outputs")
        explanation = explain(model, processor, "dog.jpg", "A brown dog runs. A red ball lies next to it.")
        for line in explanation.lines:
            print(f"{line.score:.3f} {line.label}: {line.text}")
        explanation_figure([explanation]).save("dog.png")
        ```

    Args:
        model: Any supported model on its device.
        processor: The model's processor.
        image: What `load_image` reads: a PIL image, a path, or bytes.
        caption: At least one sentence.
        detector: Detector that proposes regions in addition to the five default ones.
        language: Language of the caption. Defaults to the processor's.
        model_name: Name of the model in the figure and on the page.

    Raises:
        ValueError: The caption has no sentence, the language is not supported, or the image cannot be read.
    """
    processor = copy.copy(processor)
    # The folder of a plain checkpoint does not say how large its patches are.
    processor.patch_size = processor.patch_size or int(model.config.vision_config.patch_size)
    processor.detector = detector
    if language is not None:
        processor.language = check_language(language)
    image, caption = load_image(image), caption.strip()
    sentences = processor.split_sentences(caption)
    if not sentences:
        raise ValueError("`caption` must have at least one sentence, got an empty text.")
    shown_text, omitted = caption, max(0, len(sentences) - MAX_SENTENCES)
    if omitted:
        shown_text = caption[: sentences[MAX_SENTENCES - 1].end]
    pairs = processor.match([image], [shown_text], model)[0]
    masks = processor.sentence_masks(shown_text, [(pair.sentence.start, pair.sentence.end) for pair in pairs])
    vision = vision_outputs(model, processor, [image])
    patches = torch.nn.functional.normalize(patch_embeds(model, vision).float()[0].cpu(), dim=-1)
    texts = embed_texts(model, processor, [pair.sentence.text for pair in pairs])
    score = embed_texts(model, processor, [caption])[0] @ embed_images(model, processor, [image])[0]

    transform = ImageTransform.of(processor.image_processor, image.size)
    columns, rows = (side // processor.patch_size for side in transform.size)
    lines, frames = sentences_and_regions(pairs, masks.any(dim=1).tolist(), text_positions(model))
    return Explanation(
        image,
        caption,
        model_name,
        float(score),
        lines,
        frames,
        similarities=(texts @ patches.T).reshape(len(pairs), rows, columns),
        components=principal_components(patch_tokens(model, vision)[0].float().cpu()).reshape(rows, columns, 3),
        visible_box=tuple(
            (transform.shown[side] - transform.offset[side % 2]) / transform.scale[side % 2] for side in range(4)
        ),
        omitted=omitted,
    )


def sentences_and_regions(
    pairs: Sequence[LocalPair], is_read: Sequence[bool], tokens: int
) -> tuple[list[Line], list[Frame]]:
    """Return the sentences with their colors, and the frames of their regions in the order of the sentences.

    Args:
        pairs: One pair per sentence.
        is_read: Whether the model reads any token of the sentence.
        tokens: Number of tokens that the model reads.
    """
    members: dict[tuple[float, float, float, float], list[int]] = {}
    lines = []
    for index, (pair, read) in enumerate(zip(pairs, is_read, strict=True)):
        members.setdefault(pair.region.box, []).append(index)
        region = list(members).index(pair.region.box)
        label = plain_label(pair.region.label or pair.region.source)
        note = "" if read else f"not read: past {tokens} tokens"
        lines.append(Line(index + 1, pair.sentence.text, color_at(index), region, label, pair.score, note=note))
    frames = [
        Frame(region, box, [index + 1 for index in indices], [color_at(index) for index in indices])
        for region, (box, indices) in enumerate(members.items())
    ]
    return lines, frames


def principal_components(tokens: Tensor) -> Tensor:
    """Return the first three principal components of `(tokens, width)`, each scaled to 0..1.

    Components that do not vary are 0.5. The sign of a component has no meaning: it is chosen so that the first token is
    not above the mean.
    """
    centered = tokens - tokens.mean(dim=0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    values = centered @ directions[:3].T
    values = torch.nn.functional.pad(values, (0, 3 - values.shape[1]))  # if there are fewer
    values = torch.where(values[:1] > 0, -values, values)
    low, high = values.amin(0), values.amax(0)
    spread = high - low
    return torch.where(spread > 1e-6, (values - low) / spread.clamp(min=1e-6), torch.full_like(values, 0.5))


def explanation_figure(explanations: Sequence[Explanation], width: int | None = None) -> Image.Image:
    """Draw one or more models' explanations of the same image and caption next to each other, as one image.

    Each model has the image with all regions, the principal components of the image tokens, the sentences with their
    scores, and a heat map for each sentence. `width` is the number of pixels for each model, by default 1,200 for one
    model and 900 for each of several. A narrow figure keeps its text legible on a page that would shrink a wide one.
    """
    width = width or (1200 if len(explanations) == 1 else 900)
    sheets = [_sheet(explanation, width - 2 * MARGIN) for explanation in explanations]
    line = Image.new("RGB", (1, max(sheet.height for sheet in sheets)), PALE)
    blocks = [block for sheet in sheets for block in (line, padded(sheet))]
    return flow(blocks[1:], width * len(sheets) + len(sheets) - 1, gap=0)


def _sheet(explanation: Explanation, width: int) -> Image.Image:
    image, lines = explanation.image, explanation.lines
    ratio = image.width / image.height
    half = (width - MARGIN) // 2
    # Wide images get the full width, and tall ones more height.
    room = (width, 420) if ratio > WIDE else (half, 460 if ratio > TALL else 720)
    views = [
        (framed(image, explanation.frames, *room), "Best region of each sentence"),
        (fitted(explanation.components_image, *room), "Image tokens: first 3 principal components as color"),
    ]
    top = [stack([text_block([(text, GRAY)], max(view.width, 200)), view]) for view, text in views]
    # Next to tall images there is enough room for the caption.
    room_left = width - sum(block.width + MARGIN for block in top)
    top.append(lines_block(lines, room_left if room_left >= 400 else width))
    # As many heat maps in a row as remain legible.
    in_row = min(2 if ratio > WIDE else 4 if ratio > TALL else 5, max(2, len(lines)))
    cell = (width - (in_row - 1) * MARGIN) // in_row
    maps = []
    for line, heat_map, values in zip(lines, explanation.heat_maps, explanation.ranges, strict=True):
        text = text_block([(f"{line.number}. {line.text}", line.color)], cell, most=2)
        maps.append(stack([fitted(heat_map, cell, 300), text, text_block([(f"patches {values}", GRAY)], cell)]))
    heading = f"{explanation.model_name}: image and caption {number(explanation.score, 3)}"
    title = text_block([(heading, "black")], width, FONT_SIZE + 3)
    legend, notes = (text_block([(text, GRAY)], width) for text in (COLOR_NOTE, NOTE))
    return stack([title, legend, flow(top, width), flow(maps, width), notes], MARGIN)


def explanation_page(explanations: Sequence[Explanation]) -> str:
    """Return the same as a web page that needs no other file."""
    image, caption = explanations[0].image, explanations[0].caption
    ratio = image.width / image.height
    view, least = ("100%", "420px") if ratio > WIDE else ("300px", "190px") if ratio > TALL else ("140px", "140px")
    values = {"title": caption[:80], "explanations": explanations, "view": view, "map": least}
    return render("explain", **values, colors=COLOR_NOTE, note=NOTE)
