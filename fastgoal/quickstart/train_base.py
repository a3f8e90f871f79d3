"""Train the small CLIP that the quickstart starts from: short captions of drawn objects, and nothing else.

    python -m fastgoal.quickstart.train_base --output DIR

It reads 77 tokens and sees an object enlarged or a whole scene, half and half; each caption names one or two of the
objects. It never sees a caption of several sentences.
"""

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from fastgoal.quickstart.scenes import Scene, SceneObject, draw_scenes, short_caption
from fastgoal.trainer.evaluation.retrieval import retrieval_metrics

logger = logging.getLogger(__name__)

IMAGE_SIZE = 64
PATCH_SIZE = 8
WIDTH = 96
LAYERS = 3
VOCABULARY = 1024
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """A tokenizer of CLIP's kind with a small vocabulary, learned from `texts` and able to read any other."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    splits = CLIPTokenizer().backend_tokenizer  # CLIP's own normalisation and splitting into words
    learner.normalizer, learner.pre_tokenizer = splits.normalizer, splits.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(alphabet) - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    tokens = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet), *learned["vocab"], BOS, EOS])
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in learned["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=cast(Any, merges), model_max_length=77)


def make_model(tokenizer: CLIPTokenizer, image_size: int = IMAGE_SIZE, patch_size: int = PATCH_SIZE) -> CLIPModel:
    """A CLIP of about a million weights, initialised as CLIP is; sizes are in pixels."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": WIDTH // 32,
        "hidden_act": "relu",
        "projection_dim": WIDTH,
    }
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**tower, **special, "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)},
        vision_config={**tower, "image_size": image_size, "patch_size": patch_size},
        projection_dim=WIDTH,
    )
    return CLIPModel(config)


def enlarge(scene: Scene, index: int, rng: random.Random) -> Image.Image:
    """A square window of random size around an object: from just the object to twice its side."""
    x1, y1, x2, y2 = scene.boxes[index]
    side = min(max(x2 - x1, y2 - y1) * rng.uniform(0.9, 2.0), scene.image.width)
    centre = [(low + high) / 2 + rng.uniform(-0.1, 0.1) * side for low, high in ((x1, x2), (y1, y2))]
    left, top = (int(min(max(value - side / 2, 0), scene.image.width - side)) for value in centre)
    return scene.image.crop((left, top, left + int(side), top + int(side)))


class Views:
    """Pictures of some scenes at the model's size, `(views, 3, height, width)` uint8, with the objects they show."""

    def __init__(self, scenes: Sequence[Scene], image_processor: CLIPImageProcessor, rng: random.Random):
        pictures: list[Image.Image] = []
        self.objects: list[list[SceneObject]] = []
        self.whole: list[int] = []
        self.enlarged: list[int] = []
        for scene in scenes:
            self.whole.append(len(pictures))
            pictures.append(scene.image)
            self.objects.append(scene.objects)
            for index, thing in enumerate(scene.objects):
                self.enlarged.append(len(pictures))
                pictures.append(enlarge(scene, index, rng))
                self.objects.append([thing])
        parts = [
            image_processor(pictures[i : i + 500], do_rescale=False, do_normalize=False, return_tensors="pt")
            for i in range(0, len(pictures), 500)
        ]
        self.pixels = torch.cat([part["pixel_values"].to(torch.uint8) for part in parts])
        self.mean = torch.tensor(image_processor.image_mean)[:, None, None]
        self.std = torch.tensor(image_processor.image_std)[:, None, None]

    def batch(self, rows: Sequence[int]) -> torch.Tensor:
        """Normalised pixels of some views, `(rows, 3, height, width)`."""
        return (self.pixels[list(rows)].float() / 255 - self.mean) / self.std


def caption_of(objects: Sequence, rng: random.Random) -> str:
    """A short caption: of an object its name and seldom a detail, of a scene one or two of its objects."""
    return short_caption(rng.sample(list(objects), min(len(objects), rng.choice((1, 2, 2)))), rng)


@torch.no_grad()
def embed_pixels(model: CLIPModel, views: Any, rows: Sequence[int]) -> torch.Tensor:
    """Embeddings of some views, `(rows, dim)`."""
    parts = [views.batch(rows[i : i + 100]) for i in range(0, len(rows), 100)]
    return torch.cat([model.get_image_features(part).pooler_output for part in parts])


@torch.no_grad()
def short_recall(
    model: CLIPModel, tokenizer: CLIPTokenizer, views: Any, rows: Sequence[int], texts: list[str]
) -> float:
    """R@1 of text to image over the views `rows`, one short caption each."""
    model.eval()
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    embeds = model.get_text_features(**inputs).pooler_output
    metrics = retrieval_metrics(embed_pixels(model, views, rows), embeds, ks=(1,))
    model.train()
    return metrics["text_to_image_R@1"]


def fit(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    views: Any,
    caption: Callable[[int, random.Random], str],
    recall: Callable[[], float],
    output: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train on views and their short captions; half of each batch are enlarged objects, half are whole scenes.

    Args:
        model: The model, which is saved to `output` on the way.
        tokenizer: Its tokenizer.
        views: Has `whole` and `enlarged` (numbers of views) and `batch(rows)`, their normalised pixels.
        caption: A new short caption of a view.
        recall: Measures R@1, for the log.
        output: Folder of the checkpoint.
        steps: Steps of AdamW; the rate rises over 100 steps and falls along a cosine.
        batch_size: Views in a step.
        learning_rate: Peak rate.
        seed: Orders the views and words the captions.
    """
    rng = random.Random(seed)
    cast(Any, model).set_attn_implementation("eager")  # on a CPU in bfloat16 more than twice as fast as SDPA's backward
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    start, running = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        pace = min(1.0, step / 100) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = pace * learning_rate
        rows = rng.sample(views.enlarged, batch_size // 2) + rng.sample(views.whole, batch_size - batch_size // 2)
        texts = tokenizer([caption(row, rng) for row in rows], padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pixel_values=views.batch(rows), **texts).logits_per_text.float()
        labels = torch.arange(batch_size)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # as CLIP does
        running = loss.item() if step == 1 else 0.95 * running + 0.05 * loss.item()
        if step % 200 == 0 or step == steps:
            minutes = (time.perf_counter() - start) / 60
            logger.info(f"step {step}: loss {running:.3f}, short R@1 {100 * recall():.1f} %, {minutes:.1f} min")
            model.eval().save_pretrained(output)
            model.train()


def train(output: Path, scenes: int, steps: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """Train and save model, tokenizer and image processor as a CLIP checkpoint in `output`."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    drawn = draw_scenes(scenes, seed, "base", min_objects=1, rich=False)
    tokenizer = make_tokenizer(
        [text for scene in drawn[:2000] for text in (scene.caption, caption_of(scene.objects, rng))]
    )
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    views = Views(drawn, image_processor, rng)
    held_out = Views(draw_scenes(300, seed, "validation"), image_processor, rng)
    rows = held_out.enlarged[:500]
    asked = random.Random(seed)
    questions = [short_caption(held_out.objects[row], asked, detail=2.0) for row in rows]  # every detail told
    model = make_model(tokenizer).train()
    logger.info(f"{len(views.objects)} views, {len(tokenizer)} tokens, {model.num_parameters():,} weights")
    fit(
        model,
        tokenizer,
        views,
        lambda row, rng: caption_of(views.objects[row], rng),
        lambda: short_recall(model, tokenizer, held_out, rows, questions),
        output,
        steps,
        batch_size,
        learning_rate,
        seed,
    )
    CLIPProcessor(image_processor, tokenizer).save_pretrained(output)


def run_command(
    description: str, train: Callable[[Path, int, int, int, float, int], None], scenes: int, steps: int
) -> None:
    """Read the command line and call `train(output, scenes, steps, batch_size, learning_rate, seed)`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--scenes", type=int, default=scenes, help="scenes to draw (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=steps, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(args.output, args.scenes, args.steps, args.batch_size, args.learning_rate, args.seed)


if __name__ == "__main__":
    run_command("Train the small CLIP of the quickstart.", train, scenes=12000, steps=2200)
