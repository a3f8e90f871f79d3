"""Train the small CLIP model that the quickstart starts from, on short captions of drawn objects.

    python -m fastgoal.quickstart.train_base --output DIR

The model reads 77 tokens. Half of its images are enlarged objects, and half are whole scenes. Each caption names one or
two objects, and none has several sentences. The base model of the study (`benchmarks.study.base`) is trained in the
same way.
"""

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from fastgoal.modeling_fastgoal import fast_goal_loss
from fastgoal.modeling_fastgoal.towers_fastgoal import logit_bias
from fastgoal.processing.pixels import PixelReader
from fastgoal.processing.tokens import padding_of
from fastgoal.quickstart.drawing import Scene, enlarge
from fastgoal.quickstart.scenes import draw_scenes, short_caption
from fastgoal.trainer.evaluation.measures.retrieval import retrieval_metrics

logger = logging.getLogger(__name__)

IMAGE_SIZE = 64
PATCH_SIZE = 8
WIDTH = 96
VOCABULARY = 1024
TOWER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": WIDTH // 32,
    "hidden_act": "relu",
}
"""Configuration of both towers of a small model."""
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """Train a CLIP tokenizer with a small vocabulary on texts. It can read any other text as well."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    splits = CLIPTokenizer().backend_tokenizer  # CLIP's normalization and splitting into words
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


def make_model(tokenizer: CLIPTokenizer, image_size: int, patch_size: int) -> CLIPModel:
    """Return a CLIP model of about a million weights with CLIP's initialization; sizes are in pixels."""
    tower = {**TOWER, "projection_dim": WIDTH}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**tower, **special, "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)},
        vision_config={**tower, "image_size": image_size, "patch_size": patch_size},
        projection_dim=WIDTH,
    )
    return CLIPModel(config)


def square_images(side: int) -> CLIPImageProcessor:
    """Return CLIP's image processor for images of `side` x `side` pixels."""
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


class Pixels:
    """Images at the model's input size, in memory.

    `stored` holds all images, `(images, 3, height, width)` uint8. `pixels[rows]` returns some of them, normalized.
    """

    def __init__(self, images: Iterable[Image.Image], image_processor: Any):
        reader = PixelReader(image_processor)
        self.stored = torch.cat([reader.read([(image, None)]) for image in images])
        self.mean = torch.tensor(image_processor.image_mean)[:, None, None]
        self.std = torch.tensor(image_processor.image_std)[:, None, None]

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: Sequence[int]) -> torch.Tensor:
        return (self.stored[list(rows)].float() / 255 - self.mean) / self.std


class Views(Pixels):
    """Views of whole scenes and of their enlarged things.

    `shown` holds the scene and the numbers of the visible things of each view. `whole` and `enlarged` are the numbers
    of the views of whole scenes and of single things.
    """

    def __init__(self, scenes: Sequence[Scene], image_processor: Any, rng: random.Random):
        self.shown: list[tuple[Scene, list[int]]] = []
        self.whole: list[int] = []
        self.enlarged: list[int] = []
        super().__init__(self._images(scenes, rng), image_processor)

    def _images(self, scenes: Sequence[Scene], rng: random.Random) -> Iterable[Image.Image]:
        for scene in scenes:
            numbers = list(range(len(scene.things)))
            self.whole.append(len(self.shown))
            self.shown.append((scene, numbers))
            yield scene.image
            for number in numbers:
                self.enlarged.append(len(self.shown))
                self.shown.append((scene, [number]))
                yield enlarge(scene, number, rng)


def one_or_two(things: Sequence[Any], rng: random.Random) -> list[Any]:
    """Choose the things that a short caption names."""
    return rng.sample(things, min(len(things), rng.choice((1, 2, 2))))


@torch.no_grad()
def embed_pixels(model: Any, pixels: Pixels, rows: Sequence[int] | None = None) -> torch.Tensor:
    """Return the embeddings `(rows, dim)` of some or all images, not normalized."""
    rows = range(len(pixels)) if rows is None else rows
    parts = [pixels[rows[i : i + 100]] for i in range(0, len(rows), 100)]
    return torch.cat([model.get_image_features(pixel_values=part).pooler_output for part in parts])


def fit(
    args: argparse.Namespace,
    make: Callable[[], Any],
    processor: Any,
    views: Views,
    caption: Callable[[int, random.Random], str],
    held_out: tuple[Views, list[str]],
) -> None:
    """Train a new model on views and short captions, and save it with its processor.

    Half of each batch are enlarged things, and half are whole scenes. The learning rate rises over 100 steps and then
    follows a cosine. The seed determines the weights, the order of the views, and the captions.

    Args:
        args: Arguments from `read_arguments`.
        make: Returns the model, which is trained with the contrastive loss of its family.
        processor: The model's processor.
        views: Views to train on.
        caption: Returns a new short caption of a view.
        held_out: Other views, and captions of the first enlarged ones, for the text-to-image R@1 in the log.
    """
    torch.manual_seed(args.seed)
    model, tokenizer = make().train(), processor.tokenizer
    logger.info(f"{len(views)} views, {len(tokenizer)} tokens, {model.num_parameters():,} weights")
    cast(Any, model).set_attn_implementation("eager")  # in bfloat16 on CPUs, more than twice as fast as SDPA
    rng = random.Random(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
    half, padding, bias = args.batch_size // 2, padding_of(tokenizer), logit_bias(model)
    start, running = time.perf_counter(), 0.0
    for step in range(1, args.steps + 1):
        pace = min(1.0, step / 100) * (1 + math.cos(math.pi * step / args.steps)) / 2
        optimizer.param_groups[0]["lr"] = pace * args.learning_rate
        rows = rng.sample(views.enlarged, half) + rng.sample(views.whole, args.batch_size - half)
        texts = tokenizer([caption(row, rng) for row in rows], padding=padding, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(pixel_values=views[rows], **texts)
        embeds = {name: outputs[name].float() for name in ("image_embeds", "text_embeds")}
        loss = fast_goal_loss(embeds, model.logit_scale.exp(), logit_bias=bias)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if bias is None:
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100))  # as in CLIP
        running = loss.item() if step == 1 else 0.95 * running + 0.05 * loss.item()
        if step % 200 == 0 or step == args.steps:
            minutes, recall = (time.perf_counter() - start) / 60, _short_recall(model.eval(), tokenizer, *held_out)
            logger.info(f"step {step}: loss {running:.3f}, short R@1 {100 * recall:.1f} %, {minutes:.1f} min")
            model.save_pretrained(args.output)
            model.train()
    processor.save_pretrained(args.output)


@torch.no_grad()
def _short_recall(model: Any, tokenizer: Any, views: Views, texts: list[str]) -> float:
    """Return the text-to-image R@1 over the first enlarged views, with one short caption each."""
    inputs = tokenizer(texts, padding=padding_of(tokenizer), return_tensors="pt")
    embeds = model.get_text_features(**inputs).pooler_output
    images = embed_pixels(model, views, views.enlarged[: len(texts)])
    return retrieval_metrics(images, embeds, ks=(1,))["text_to_image_R@1"]


def train(args: argparse.Namespace) -> None:
    """Train the model and save it with its processor in `args.output`."""
    rng = random.Random(args.seed)
    drawn = draw_scenes(args.scenes, args.seed, "base", min_objects=1, rich=False)
    tokenizer = make_tokenizer(
        [t for scene in drawn[:2000] for t in (scene.caption, short_caption(one_or_two(scene.things, rng), rng))]
    )
    image_processor = square_images(IMAGE_SIZE)
    views = Views(drawn, image_processor, rng)
    held_out = Views(draw_scenes(300, args.seed, "validation"), image_processor, rng)
    caption_rng = random.Random(args.seed)
    shown = [scene.things[numbers[0]] for scene, numbers in (held_out.shown[row] for row in held_out.enlarged[:500])]
    captions = [short_caption([thing], caption_rng, detail=2.0) for thing in shown]  # with every detail

    def caption(row: int, rng: random.Random) -> str:
        scene, numbers = views.shown[row]
        return short_caption([scene.things[number] for number in one_or_two(numbers, rng)], rng)

    processor = CLIPProcessor(image_processor, tokenizer)
    fit(args, lambda: make_model(tokenizer, IMAGE_SIZE, PATCH_SIZE), processor, views, caption, (held_out, captions))


def read_arguments(
    description: str, scenes: int, steps: int, flags: Mapping[str, str] = MappingProxyType({})
) -> argparse.Namespace:
    """Parse the command line of a script that trains a base model: `output`, `scenes`, `steps`, `batch_size`, ...

    `flags` are further flags with their help.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--scenes", type=int, default=scenes, help="number of scenes to draw (default: %(default)s)")
    for name, default in {"--steps": steps, "--batch-size": 256, "--learning-rate": 2e-3, "--seed": 0}.items():
        parser.add_argument(name, type=type(default), default=default, help="(default: %(default)s)")
    for name, text in flags.items():
        parser.add_argument(name, action="store_true", help=text)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return parser.parse_args()


if __name__ == "__main__":
    train(read_arguments("Train the small CLIP model of the quickstart.", scenes=12000, steps=2200))
