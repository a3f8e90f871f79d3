"""Train the study's base: a small CLIP that has read short captions of the drawn world, and nothing else.

    python -m benchmarks.study.base --output DIR
    python -m benchmarks.study.base --output DIR --siglip    # the same as a SigLIP, with its loss

It reads 77 tokens and sees 112 x 112 pixels in 64 patches: a thing enlarged or a whole scene, half and half. A caption
names one or two things, tersely or with their details, in plain words; the words that long captions use for details
are new to it. It takes about 40 minutes, for the most part on one CPU core.
"""

import argparse
import random
from functools import partial
from typing import Any

from transformers import CLIPProcessor, SiglipProcessor

from fastgoal.quickstart.train_base import (
    Views,
    fit,
    make_model,
    make_tokenizer,
    one_or_two,
    read_arguments,
    square_images,
)

from . import siglip
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
    image_processor = siglip.square_images(IMAGE_SIZE) if args.siglip else square_images(IMAGE_SIZE)
    drawn = draw_crowds(args.scenes, args.seed, "base", **WORLD)
    views = Views(drawn, image_processor, rng)
    texts = [text for scene in drawn[:2000] for text in (scene.caption, caption(views, views.whole[0], rng))]
    texts += [caption(views, row, rng, 1.0) for row in views.enlarged[:4000]]
    held_out = Views(draw_crowds(300, args.seed, "validation", **{**WORLD, "min_things": 2}), image_processor, rng)
    asked = random.Random(args.seed)
    questions = [caption(held_out, row, asked, 1.0) for row in held_out.enlarged[:500]]  # every detail told
    if args.siglip:
        tokenizer: Any = siglip.make_tokenizer(texts)
        processor: Any = SiglipProcessor(image_processor, tokenizer)
        make = partial(siglip.make_model, tokenizer, IMAGE_SIZE, PATCH_SIZE)
    else:
        tokenizer = make_tokenizer(texts)
        processor = CLIPProcessor(image_processor, tokenizer)
        make = partial(make_model, tokenizer, IMAGE_SIZE, PATCH_SIZE)
    fit(args, make, processor, views, lambda row, rng: caption(views, row, rng), (held_out, questions))


if __name__ == "__main__":
    siglip_flag = {"--siglip": "train a SigLIP, which reads 64 tokens, in place of a CLIP"}
    train(read_arguments("Train the small CLIP that the study starts from.", 10000, 4500, siglip_flag))
