"""One training of the study: an arm, a seed, and the numbers that come out.

An arm says what differs from FAST-GOAL as published: the objective, the regions, which pairs are trained on, the terms
of the loss. Everything else is the same for all arms of a seed: scenes, base, number of steps, order of the batches,
optimiser and learning rate. Training is `FastGoalTrainer`'s; only the collator is the study's own, which takes pixels
and ids from memory where `FastGoalCollator` reads files (a test holds that both make the same batch).
"""

import dataclasses
import hashlib
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matching import overlap
from PIL import Image
from study_base import enlarge
from study_scenes import Crowd, Split, draw_crowds, short_caption

from fastgoal import FastGoalCLIPModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.modeling_fastgoal import clip_loss, token_similarity_loss
from fastgoal.processing.geometry import crop_box
from fastgoal.processing.matching import LocalPair, embed_crop_stream, embed_texts, eval_mode, pair_up
from fastgoal.processing.regions import Region, regions_from_boxes
from fastgoal.trainer.batches.neighbours import nearest_rows
from fastgoal.trainer.batches.samplers import CaptionLengthSampler, NearPairSampler
from fastgoal.trainer.evaluation.retrieval import retrieval_ranks

SOURCES = ("default", "detected", "true")
SHORT_ROWS = 500


@dataclass(frozen=True)
class Sizes:
    """What all arms of a study have in common.

    Attributes:
        train_scenes: Scenes to fine-tune on.
        test_scenes: Scenes to measure on.
        gallery: Scenes that a query is searched in: the test scenes are cut into galleries of so many.
        max_things: Most things of a scene.
        epochs: Times the training scenes are gone through.
        batch_size: Scenes in a step.
        learning_rate: Peak rate of AdamW, where an arm has none of its own.
        warmup: Share of the steps over which the rate rises, likewise.
    """

    train_scenes: int = 2000
    test_scenes: int = 2000
    gallery: int = 250
    max_things: int = 5
    epochs: int = 5
    batch_size: int = 50
    learning_rate: float = 2e-3
    warmup: float = 0.2


@dataclass(frozen=True)
class Arm:
    """One way to train; the defaults are FAST-GOAL as published.

    Attributes:
        name: In the tables.
        objective: As `--objective` takes it; `none` does not train.
        regions: Sources of the candidate regions: `default`, `detected`, `true`.
        pairs: `best` trains on each image's single best pair; `top3` on one of the three best, drawn anew in every
            epoch; `random` on any pair that the model can see, drawn anew; `true` on a sentence about one thing with
            that thing's box, drawn anew.
        matcher: `base`, or the name of an arm whose tuned model matches sentences and regions (a second round).
        sentence_shift: Tokens by which sentence masks are moved, as a defect would.
        squashed_boxes: Map boxes as if the image had been squashed to a square, as a defect would.
        settings: Further arguments of `FastGoalTrainingArguments`.
        extras: Terms that the trainer does not have, by name with their values; see `StudyTrainer`.
        keep: Chance of each sentence to stay in the caption, drawn anew for every batch; the local one always stays.
        shuffle: Whether the sentences that stay are put in a new order.
        near: Whether a batch has images that look alike in twos (`--near_batches`).
        epochs: Epochs as a multiple of the others'.
        average: Share of the tuned weights in an average with the base's, after training.
        learning_rate: Peak rate of AdamW, if not the sizes'.
        warmup: Share of the steps over which the rate rises, if not the sizes'.
    """

    name: str
    objective: str = "fast_goal"
    regions: tuple[str, ...] = ("default", "detected")
    pairs: str = "best"
    matcher: str = "base"
    sentence_shift: int = 0
    squashed_boxes: bool = False
    settings: tuple[tuple[str, Any], ...] = ()
    extras: tuple[tuple[str, float], ...] = ()
    keep: float = 1.0
    shuffle: bool = False
    near: bool = False
    epochs: float = 1.0
    average: float = 1.0
    learning_rate: float | None = None
    warmup: float | None = None

    def in_force(self, sizes: Sizes) -> tuple[float, float]:
        """Learning rate and share of the steps over which it rises."""
        rate, warmup = self.learning_rate, self.warmup
        return sizes.learning_rate if rate is None else rate, sizes.warmup if warmup is None else warmup

    def key(self, sizes: Sizes, seed: int, split: str, base: str) -> str:
        """Names the run: the same for the same work on the same base, which is named by its `fingerprint`."""
        rate, warmup = self.in_force(sizes)
        arm = dataclasses.asdict(dataclasses.replace(self, name="", learning_rate=rate, warmup=warmup))
        common = dataclasses.asdict(dataclasses.replace(sizes, learning_rate=rate, warmup=warmup))
        what = {"arm": arm, "sizes": common, "seed": seed, "split": split, "base": base}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class StudyData:
    """Scenes with everything that training needs of them, computed once.

    Attributes:
        scenes: The scenes; their pictures are not needed any more.
        pixels: Pictures at the model's size, `(scenes, 3, height, width)` uint8.
        crops: For each scene its candidate regions' crops, `(regions, 3, height, width)` uint8.
        regions: For each scene its candidates, `Region.source` among `SOURCES`.
        sentences: For each scene its sentences.
        ids: For each scene the caption's token ids.
        sentence_ids: For each scene and sentence the sentence's token ids.
        sentence_masks: For each scene `(sentences, tokens)` bool.
        region_masks: For each scene `(regions, patches)` bool.
        squashed_masks: The same without the crop.
        similarity: For each scene the base's cosines, `(sentences, regions)`.
    """

    def __init__(self, scenes: Sequence[Crowd], processor: FastGoalProcessor, model: Any):
        self.scenes = scenes
        tokenizer, image_processor = processor.tokenizer, processor.image_processor
        side = image_processor.crop_size["height"]
        images = [scene.image for scene in scenes]
        self.pixels = self._to_uint8(images, image_processor)
        self.regions = [candidates(scene, processor) for scene in scenes]
        self.crops = [
            self._to_uint8([crop_box(scene.image, region.box) for region in regions], image_processor)
            for scene, regions in zip(scenes, self.regions, strict=True)
        ]
        self.sentences = [processor.split_sentences(scene.caption) for scene in scenes]
        for scene, sentences in zip(scenes, self.sentences, strict=True):
            if [sentence.text for sentence in sentences] != scene.sentences:
                raise ValueError(f"The splitter finds other sentences than were written: {scene.caption!r}.")
        self.ids = [tokenizer(scene.caption, truncation=True)["input_ids"] for scene in scenes]
        self.sentence_ids = [tokenizer(scene.sentences, truncation=True)["input_ids"] for scene in scenes]
        self.sentence_masks = [
            processor.sentence_masks(scene.caption, [(s.start, s.end) for s in sentences])
            for scene, sentences in zip(scenes, self.sentences, strict=True)
        ]
        self.region_masks = [
            torch.stack([processor.region_mask(region.box, scene.image.size) for region in regions])
            for scene, regions in zip(scenes, self.regions, strict=True)
        ]
        grid = side // processor.patch_size
        self.squashed_masks = [
            torch.stack([squashed_mask(region, scene.image.size, grid) for region in regions])
            for scene, regions in zip(scenes, self.regions, strict=True)
        ]
        self.mean = torch.tensor(image_processor.image_mean)[:, None, None]
        self.std = torch.tensor(image_processor.image_std)[:, None, None]
        self.padding = tokenizer.pad_token_id
        self.longest = tokenizer.model_max_length
        self.similarity = self.match(processor, model)

    @staticmethod
    def _to_uint8(images: list[Image.Image], image_processor: Any) -> torch.Tensor:
        parts = []
        for start in range(0, len(images), 200):
            pixels = image_processor(
                images[start : start + 200], do_rescale=False, do_normalize=False, return_tensors="pt"
            )
            parts.append(pixels["pixel_values"].to(torch.uint8))
        return torch.cat(parts)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 pixels as the model takes them."""
        return (pixels.float() / 255 - self.mean) / self.std

    def match(self, processor: FastGoalProcessor, model: Any) -> list[torch.Tensor]:
        """Cosines of sentences and candidate regions by the given model, `(sentences, regions)` for each scene."""
        texts = [text for scene in self.scenes for text in scene.sentences]
        with eval_mode(model):
            embeds = embed_texts(texts, model, processor.tokenizer, 64)
            crops = list(embed_crop_stream(self.crops, model, processor.image_processor, 64))
        return [
            text @ crop.T
            for text, crop in zip(embeds.split([len(s.sentences) for s in self.scenes]), crops, strict=True)
        ]

    def pairs(self, index: int, sources: Sequence[str], similarity: torch.Tensor | None = None) -> list[LocalPair]:
        """FLISM's pairs of a scene from the regions of some sources; `region_index` counts all candidates.

        A scene in which these sources have nothing takes the five default regions.
        """
        similarity = self.similarity[index] if similarity is None else similarity
        candidates = self.regions[index]
        allowed = [i for i, region in enumerate(candidates) if region.source in sources]
        allowed = allowed or [i for i, region in enumerate(candidates) if region.source == "default"]
        seen = self.sentence_masks[index].any(dim=1)
        patches = self.region_masks[index].any(dim=1)
        place = {id(self.regions[index][i]): i for i in allowed}
        tokens = {id(sentence): bool(seen[i]) for i, sentence in enumerate(self.sentences[index])}
        pairs = pair_up(
            self.sentences[index],
            [self.regions[index][i] for i in allowed],
            similarity[:, allowed],
            visible=lambda sentence, region: tokens[id(sentence)] and bool(patches[place[id(region)]]),
        )
        return [dataclasses.replace(pair, region_index=allowed[pair.region_index]) for pair in pairs]

    def true_pairs(self, index: int) -> list[LocalPair]:
        """Each sentence about one thing with that thing's true box, scored by the base."""
        numbers = [i for i, region in enumerate(self.regions[index]) if region.source == "true"]
        found = []
        for row, things in enumerate(self.scenes[index].sentence_things):
            if len(things) == 1:
                region = numbers[things[0]]
                score = float(self.similarity[index][row, region])
                found.append(
                    LocalPair(self.sentences[index][row], self.regions[index][region], score, False, row, region)
                )
        return found

    def visible(self, index: int, pair: LocalPair) -> bool:
        """Whether the model sees both sides of a pair."""
        seen = self.sentence_masks[index][pair.sentence_index].any() & self.region_masks[index][pair.region_index].any()
        return bool(seen)


def candidates(scene: Crowd, processor: FastGoalProcessor) -> list[Region]:
    """The detector's regions, the five default ones, and the true boxes."""
    detected = regions_from_boxes(scene.detected, scene.image.size, source="detected")
    proposed = processor.propose_regions([scene.image], boxes=[detected])[0]
    return [*proposed, *regions_from_boxes(scene.boxes, scene.image.size, source="true")]


def squashed_mask(region: Region, size: tuple[int, int], grid: int) -> torch.Tensor:
    """The patches of a box as if the whole image had been squashed to a square of `grid` x `grid` patches."""
    (x1, x2), (y1, y2) = (
        (int(region.box[axis] / size[axis] * grid), -(-region.box[axis + 2] * grid // size[axis])) for axis in (0, 1)
    )
    mask = torch.zeros(grid, grid, dtype=torch.bool)
    mask[y1 : max(int(y2), y1 + 1), x1 : max(int(x2), x1 + 1)] = True
    return mask.flatten()


class StudyCollator:
    """Batches for an arm, from row numbers; pairs that are drawn anew depend on the seed and on how often."""

    def __init__(self, data: StudyData, arm: Arm, seed: int, similarity: Sequence[torch.Tensor] | None = None):
        self.data = data
        self.arm = arm
        self.rng = random.Random(f"pairs/{seed}")
        self.choices = [self._choices(i, None if similarity is None else similarity[i]) for i in range(len(data.ids))]

    def _choices(self, index: int, similarity: torch.Tensor | None) -> list[LocalPair]:
        """The pairs of a scene that the arm may train on, the best first."""
        if self.arm.pairs == "true":
            pairs = self.data.true_pairs(index)
        else:
            pairs = self.data.pairs(index, self.arm.regions, similarity)
        ranked = sorted(pairs, key=lambda pair: (not self.data.visible(index, pair), -pair.score))
        seen = [pair for pair in ranked if self.data.visible(index, pair)] or ranked[:1]
        return seen[: {"best": 1, "top3": 3}.get(self.arm.pairs)]

    def __call__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch as `FastGoalCollator` makes it."""
        data, arm = self.data, self.arm
        pairs = [self.rng.choice(self.choices[row]) for row in rows]
        captions = [self._caption(row, pair.sentence_index) for row, pair in zip(rows, pairs, strict=True)]
        ids, attention = self._pad([tokens for tokens, _ in captions])
        batch = {"input_ids": ids, "attention_mask": attention, "pixel_values": data.normalise(data.pixels[list(rows)])}
        if arm.objective in ("global", "sparc"):
            return batch
        texts = [data.sentence_ids[row][pair.sentence_index] for row, pair in zip(rows, pairs, strict=True)]
        local_ids, local_attention = self._pad(texts)
        sentence_mask = torch.zeros(ids.shape, dtype=torch.bool)
        masks = data.squashed_masks if arm.squashed_boxes else data.region_masks
        for place, (_, tokens) in enumerate(captions):
            tokens = torch.roll(tokens, arm.sentence_shift) if arm.sentence_shift else tokens
            sentence_mask[place, : len(tokens)] = tokens
        crops = torch.stack([data.crops[row][pair.region_index] for row, pair in zip(rows, pairs, strict=True)])
        return {
            **batch,
            "local_pixel_values": data.normalise(crops),
            "local_input_ids": local_ids,
            "local_attention_mask": local_attention,
            "region_mask": torch.stack([masks[row][pair.region_index] for row, pair in zip(rows, pairs, strict=True)]),
            "sentence_mask": sentence_mask,
        }

    def _caption(self, row: int, local: int) -> tuple[list[int], torch.Tensor]:
        """Token ids of the caption, or of some of its sentences, and which of them are the local sentence's."""
        data, arm = self.data, self.arm
        if arm.keep == 1.0 and not arm.shuffle:
            return data.ids[row], data.sentence_masks[row][local]
        kept = [i for i in range(len(data.sentences[row])) if i == local or self.rng.random() < arm.keep]
        if arm.shuffle:
            self.rng.shuffle(kept)
        ids, inside = data.ids[row][:1], [False]
        for i in kept:
            words = data.sentence_ids[row][i][1:-1]
            ids = ids + words
            inside += [i == local] * len(words)
        room = data.longest - 1
        return [*ids[:room], data.ids[row][-1]], torch.tensor([*inside[:room], False])

    def _pad(self, texts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(text) for text in texts)
        ids = torch.full((len(texts), longest), self.data.padding)
        attention = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            attention[row, : len(text)] = 1
        return ids, attention


class StudyTrainer(FastGoalTrainer):
    """The trainer over row numbers, batches of like caption length, and what the study tries beside the paper's loss.

    `extras` (all leave the towers' work as it is):

    - `sub`: weight of the contrastive loss of whole images and their local sentences.
    - `cross`: weight of the contrastive losses of a region's patches with the sentence, and of the sentence's tokens
      in the caption with the crop.
    - `scale`: the logits' factor, fixed.
    - `detach`: TSL's targets get no gradient.
    - `masked`: sentences of a batch whose cosine is at least this are no negatives of each other's crops.
    """

    data: StudyData
    extras: dict[str, float]
    near: bool

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        lengths = [len(ids) for ids in self.data.ids]
        if not self.near:
            return CaptionLengthSampler(lengths, self.args.train_batch_size, self.args.seed)
        with eval_mode(self.model), torch.no_grad(), self.compute_loss_context_manager():
            images = [
                self.model.get_image_features(pixel_values=self.data.normalise(part)).pooler_output
                for part in self.data.pixels.split(100)
            ]
        near = nearest_rows(torch.cat(images))
        return NearPairSampler(near, self.args.train_batch_size, self.args.seed, lengths)

    def _loss_of_rows(
        self, rows: Mapping[str, torch.Tensor], logit_scale: torch.Tensor, gather: bool = True
    ) -> dict[str, torch.Tensor]:
        rows = {name: value.float() if value.is_floating_point() else value for name, value in rows.items()}
        extras = self.extras
        if "detach" in extras:
            rows = {**rows}
            crops, texts = rows["local_image_embeds"].detach(), rows["local_text_embeds"].detach()
        with self._full_precision():
            parts = super()._loss_of_rows(rows, logit_scale, gather)
            loss = parts["loss"]
            if "detach" in extras:
                weight = self.objective.weights.tsl_weight
                for tokens, target, valid, name in (
                    ("region_embeds", crops, "region_valid", "loss_tsl_image"),
                    ("sentence_embeds", texts, "sentence_valid", "loss_tsl_text"),
                ):
                    loss = loss - weight * parts[name]
                    loss = loss + weight * token_similarity_loss(rows[tokens], target, rows[valid])
            if "masked" in extras:
                loss = loss - self.objective.weights.local_weight * parts["loss_local"]
                loss = loss + self.objective.weights.local_weight * masked_clip_loss(
                    rows["local_image_embeds"], rows["local_text_embeds"], logit_scale, extras["masked"]
                )
            if "sub" in extras:
                loss = loss + extras["sub"] * clip_loss(rows["image_embeds"], rows["local_text_embeds"], logit_scale)
            if "cross" in extras:
                seen = rows["region_valid"] & rows["sentence_valid"]
                regions, sentences = rows["region_embeds"][seen], rows["sentence_embeds"][seen]
                loss = loss + extras["cross"] / 2 * (
                    clip_loss(regions, rows["local_text_embeds"][seen], logit_scale)
                    + clip_loss(rows["local_image_embeds"][seen], sentences, logit_scale)
                )
        return {**parts, "loss": loss}


def masked_clip_loss(
    images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, threshold: float
) -> torch.Tensor:
    """`clip_loss` in which texts alike (a cosine of at least `threshold`) are not each other's negatives."""
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    alike = (texts @ texts.T).detach() >= threshold
    alike.fill_diagonal_(False)
    logits = (logit_scale * images @ texts.T).masked_fill(alike, -1e4)
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def train_arm(
    arm: Arm,
    sizes: Sizes,
    seed: int,
    data: StudyData,
    base: Path,
    processor: FastGoalProcessor,
    similarity: Sequence[torch.Tensor] | None = None,
) -> tuple[Any, dict[str, float]]:
    """Fine-tune the base on an arm; its `average` is left to the caller, who has the tuned weights then.

    Returns:
        The model, in eval mode, and `steps`, `train_seconds`, `samples`.
    """
    model = FastGoalCLIPModel.from_clip(str(base))
    model.set_attn_implementation("eager")  # on a CPU in bfloat16 more than twice as fast as SDPA's backward
    if "scale" in dict(arm.extras):
        model.logit_scale.data.fill_(math.log(dict(arm.extras)["scale"]))
        model.logit_scale.requires_grad_(False)
    if arm.objective == "none":
        return model, {"steps": 0, "train_seconds": 0.0, "samples": 0}
    rate, warmup = arm.in_force(sizes)
    steps = int(sizes.epochs * arm.epochs * (len(data.ids) // sizes.batch_size))
    with tempfile.TemporaryDirectory() as folder:
        args = FastGoalTrainingArguments(
            output_dir=folder,
            objective=arm.objective,
            num_train_epochs=sizes.epochs * arm.epochs,
            per_device_train_batch_size=sizes.batch_size,
            learning_rate=rate,
            warmup_steps=round(warmup * steps),
            seed=seed,
            dataloader_num_workers=0,
            dataloader_drop_last=True,
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
            report_to="none",
            bf16=True,
            use_cpu=True,
            **dict(arm.settings),
        )
        trainer = StudyTrainer(
            model=model,
            args=args,
            processing_class=processor,
            train_dataset=list(range(len(data.ids))),
            data_collator=StudyCollator(data, arm, seed, similarity),
        )
        trainer.data = data
        trainer.extras = dict(arm.extras)
        trainer.near = arm.near
        trainer.callback_handler.callbacks = [
            callback for callback in trainer.callback_handler.callbacks if type(callback).__name__ != "PrinterCallback"
        ]
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        steps = trainer.state.global_step
    return model.eval(), {"steps": steps, "train_seconds": seconds, "samples": steps * sizes.batch_size}


class Test:
    """A gallery of scenes with what is asked of it, at the model's size."""

    def __init__(self, scenes: Sequence[Crowd], processor: FastGoalProcessor, seed: int, gallery: int):
        self.gallery = gallery
        image_processor = processor.image_processor
        self.pixels = StudyData._to_uint8([scene.image for scene in scenes], image_processor)
        self.captions = [scene.caption for scene in scenes]
        self.twins = [(scene.twin_of, i) for i, scene in enumerate(scenes) if scene.twin_of is not None]
        rng = random.Random(f"short/{seed}")
        views, self.short_texts = [], []
        for scene in scenes[:SHORT_ROWS]:
            number = rng.randrange(len(scene.things))
            views.append(enlarge(scene, number, rng))
            self.short_texts.append(short_caption(scene, [number], rng, 1.0))
        self.short_pixels = StudyData._to_uint8(views, image_processor)
        self.mean = torch.tensor(image_processor.image_mean)[:, None, None]
        self.std = torch.tensor(image_processor.image_std)[:, None, None]

    def measure(self, model: Any, processor: FastGoalProcessor) -> dict[str, Any]:
        """R@K both ways, the share of twins told apart, short-caption R@1, and each query's rank.

        `ranks` has the rank of each caption's image, then of each image's caption, for paired intervals.
        """
        with eval_mode(model), torch.no_grad():
            images, short_images = (self._embed(model, pixels) for pixels in (self.pixels, self.short_pixels))
            texts, short_texts = (
                embed_texts(texts, model, processor.tokenizer, 64) for texts in (self.captions, self.short_texts)
            )
        blocks = zip(images.split(self.gallery), texts.split(self.gallery), strict=True)
        found = [retrieval_ranks(*block) for block in blocks]
        by_text = torch.cat([ranks.text_to_image for ranks in found])
        by_image = torch.cat([ranks.image_to_text for ranks in found])
        short = retrieval_ranks(short_images, short_texts).text_to_image
        similarity = texts @ images.T
        told = [float(similarity[a, a] > similarity[a, b]) for pair in self.twins for a, b in (pair, pair[::-1])]
        metrics: dict[str, Any] = {}
        for name, ranks in (("text_to_image", by_text), ("image_to_text", by_image)):
            for k in (1, 5, 10):
                metrics[f"{name}_R@{k}"] = float((ranks <= k).float().mean())
        metrics["R@1"] = (metrics["text_to_image_R@1"] + metrics["image_to_text_R@1"]) / 2
        metrics["R@5"] = (metrics["text_to_image_R@5"] + metrics["image_to_text_R@5"]) / 2
        metrics["twins"] = sum(told) / max(len(told), 1)
        metrics["short_R@1"] = float((short <= 1).float().mean())
        metrics["ranks"] = [[int(rank) for rank in ranks] for ranks in (by_text, by_image)]
        return metrics

    def _embed(self, model: Any, pixels: torch.Tensor) -> torch.Tensor:
        parts = [
            model.get_image_features(pixel_values=(part.float() / 255 - self.mean) / self.std).pooler_output
            for part in pixels.split(100)
        ]
        return F.normalize(torch.cat(parts).float(), dim=-1)


def matching_quality(data: StudyData, pairs: Callable[[int], list[LocalPair]]) -> dict[str, float]:
    """Shares of sentences about one thing whose region shows it: IoU of at least 0.5, or its box contained.

    Returns:
        `all` over every such sentence, `best` over the scenes whose best pair is about one thing, and `best_tight`
        with IoU alone.
    """
    hits: dict[str, list[bool]] = {"all": [], "best": [], "best_tight": []}
    for index, scene in enumerate(data.scenes):
        for pair in pairs(index):
            things = scene.sentence_things[pair.sentence_index]
            if len(things) != 1:
                continue
            tight, contained = overlap(pair.region.box, scene.boxes[things[0]])
            hits["all"].append(tight or contained)
            if pair.best:
                hits["best"].append(tight or contained)
                hits["best_tight"].append(tight)
    return {name: sum(values) / max(len(values), 1) for name, values in hits.items()}


def fingerprint(base: Path) -> str:
    """A name for the base's weights."""
    return hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()[:16]


def load_base(base: Path) -> tuple[Any, FastGoalProcessor]:
    """The base with stretched positions, and its processor."""
    return FastGoalCLIPModel.from_clip(str(base)), FastGoalProcessor.from_clip(str(base))


def make_data(sizes: Sizes, seed: int, base: Path, split: Split = "train") -> StudyData:
    """The training scenes of a seed with everything computed."""
    model, processor = load_base(base)
    scenes = draw_crowds(sizes.train_scenes, seed, split, max_things=sizes.max_things)
    return StudyData(scenes, processor, model)


def make_test(sizes: Sizes, seed: int | str, base: Path, split: Split) -> Test:
    """The scenes to measure on."""
    scenes = draw_crowds(sizes.test_scenes, seed, split, max_things=sizes.max_things)
    return Test(scenes, load_base(base)[1], 0, sizes.gallery)
