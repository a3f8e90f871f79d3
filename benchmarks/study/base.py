"""Train the study's base: a small CLIP that has read short captions of the drawn world, and nothing else.

    python benchmarks/study_base.py --output DIR

It reads 77 tokens and sees 112 x 112 pixels in 64 patches: a thing enlarged or a whole scene, half and half. A caption
names one or two things, tersely or with their details, in plain words; the words that long captions use for details
are new to it. It takes about 40 minutes, for the most part on one CPU core.
"""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from study_scenes import Crowd, draw_crowds, short_caption
from transformers import CLIPImageProcessor, CLIPProcessor

from fastgoal.quickstart.train_base import fit, make_model, make_tokenizer, run_command, short_recall

IMAGE_SIZE = 112
PATCH_SIZE = 14
WORLD: dict[str, Any] = {"twins": 0.0, "min_things": 1, "max_things": 7, "words": 1, "large": False}


def enlarge(scene: Crowd, number: int, rng: random.Random) -> Image.Image:
    """A square window of random size around a thing: from just the thing to twice its side."""
    x1, y1, x2, y2 = scene.boxes[number]
    width, height = scene.image.size
    side = min(max(x2 - x1, y2 - y1) * rng.uniform(0.9, 2.0), width, height)
    centre = [(low + high) / 2 + rng.uniform(-0.1, 0.1) * side for low, high in ((x1, x2), (y1, y2))]
    left, top = (
        int(min(max(value - side / 2, 0), limit - side)) for value, limit in zip(centre, (width, height), strict=True)
    )
    return scene.image.crop((left, top, left + int(side), top + int(side)))


class CrowdViews:
    """Pictures of some scenes at the model's size, `(views, 3, height, width)` uint8, and the things they show."""

    def __init__(self, scenes: Sequence[Crowd], image_processor: CLIPImageProcessor, rng: random.Random):
        self.shown: list[tuple[Crowd, list[int]]] = []
        self.whole: list[int] = []
        self.enlarged: list[int] = []
        parts = []
        for start in range(0, len(scenes), 200):
            pictures: list[Image.Image] = []
            for scene in scenes[start : start + 200]:
                self.whole.append(len(self.shown))
                self.shown.append((scene, list(range(len(scene.things)))))
                pictures.append(scene.image)
                for number in range(len(scene.things)):
                    self.enlarged.append(len(self.shown))
                    self.shown.append((scene, [number]))
                    pictures.append(enlarge(scene, number, rng))
            pixels = image_processor(pictures, do_rescale=False, do_normalize=False, return_tensors="pt")
            parts.append(pixels["pixel_values"].to(torch.uint8))
        self.pixels = torch.cat(parts)
        self.mean = torch.tensor(image_processor.image_mean)[:, None, None]
        self.std = torch.tensor(image_processor.image_std)[:, None, None]

    def batch(self, rows: Sequence[int]) -> torch.Tensor:
        """Normalised pixels of some views, `(rows, 3, height, width)`."""
        return (self.pixels[list(rows)].float() / 255 - self.mean) / self.std

    def caption(self, row: int, rng: random.Random, detail: float | None = None) -> str:
        """A short caption of a view, terse or with details: of one or two of the things it shows."""
        scene, things = self.shown[row]
        detail = rng.random() if detail is None else detail
        return short_caption(scene, rng.sample(things, min(len(things), rng.choice((1, 2, 2)))), rng, detail)


def train(output: Path, scenes: int, steps: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """Train and save model, tokenizer and image processor as a CLIP checkpoint in `output`."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    drawn = draw_crowds(scenes, seed, "base", **WORLD)
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    views = CrowdViews(drawn, image_processor, rng)
    texts = [text for scene in drawn[:2000] for text in (scene.caption, views.caption(views.whole[0], rng))]
    texts += [views.caption(row, rng, 1.0) for row in views.enlarged[:4000]]
    tokenizer = make_tokenizer(texts)
    held_out = CrowdViews(draw_crowds(300, seed, "validation", **{**WORLD, "min_things": 2}), image_processor, rng)
    rows = held_out.enlarged[:500]
    asked = random.Random(seed)
    questions = [held_out.caption(row, asked, 1.0) for row in rows]  # every detail told
    model = make_model(tokenizer, IMAGE_SIZE, PATCH_SIZE).train()
    logging.info(f"{len(views.shown)} views, {len(tokenizer)} tokens, {model.num_parameters():,} weights")
    fit(
        model,
        tokenizer,
        views,
        views.caption,
        lambda: short_recall(model, tokenizer, held_out, rows, questions),
        output,
        steps,
        batch_size,
        learning_rate,
        seed,
    )
    CLIPProcessor(image_processor, tokenizer).save_pretrained(output)


if __name__ == "__main__":
    run_command("Train the small CLIP that the study starts from.", train, scenes=10000, steps=4500)
