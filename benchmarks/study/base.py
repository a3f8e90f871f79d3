"""Train the study's base: a small CLIP that has read short captions of the drawn world, and nothing else.

    python -m benchmarks.study.base --output DIR

It reads 77 tokens and sees 112 x 112 pixels in 64 patches: a thing enlarged or a whole scene, half and half. A caption
names one or two things, tersely or with their details, in plain words; the words that long captions use for details
are new to it. It takes about 40 minutes, for the most part on one CPU core.
"""

import argparse
import random
from typing import Any

from fastgoal.quickstart.train_base import Views, fit, make_tokenizer, one_or_two, read_arguments, square_images

from .scenes import draw_crowds, short_caption

IMAGE_SIZE = 112
PATCH_SIZE = 14
WORLD: dict[str, Any] = {"twins": 0.0, "min_things": 1, "max_things": 7, "words": 1, "large": False}


def caption(views: Views, row: int, rng: random.Random, detail: float | None = None) -> str:
    """A short caption of a view, terse or with details: of one or two of the things it shows."""
    scene, things = views.shown[row]
    detail = rng.random() if detail is None else detail
    return short_caption(scene, one_or_two(things, rng), rng, detail)


def train(args: argparse.Namespace) -> None:
    """Train and save model, tokenizer and image processor as a CLIP checkpoint in `args.output`."""
    rng = random.Random(args.seed)
    image_processor = square_images(IMAGE_SIZE)
    drawn = draw_crowds(args.scenes, args.seed, "base", **WORLD)
    views = Views(drawn, image_processor, rng)
    texts = [text for scene in drawn[:2000] for text in (scene.caption, caption(views, views.whole[0], rng))]
    texts += [caption(views, row, rng, 1.0) for row in views.enlarged[:4000]]
    held_out = Views(draw_crowds(300, args.seed, "validation", **{**WORLD, "min_things": 2}), image_processor, rng)
    asked = random.Random(args.seed)
    questions = [caption(held_out, row, asked, 1.0) for row in held_out.enlarged[:500]]  # every detail told
    fit(
        args,
        make_tokenizer(texts),
        image_processor,
        PATCH_SIZE,
        views,
        lambda row, rng: caption(views, row, rng),
        (held_out, questions),
    )


if __name__ == "__main__":
    train(read_arguments("Train the small CLIP that the study starts from.", scenes=10000, steps=4500))
