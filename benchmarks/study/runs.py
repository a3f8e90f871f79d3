"""Train and measure the arms of a seed, each of them once, and keep the results.

Arms are trained by `FastGoalTrainer`. The collator is the study's own: it takes pixels and ids from memory where
`FastGoalCollator` reads files. A test compares their batches.
"""

import hashlib
import json
import math
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from fastgoal import FastGoalModel, FastGoalProcessor, FastGoalTrainer
from fastgoal.export.average import average_weights
from fastgoal.processing.embedding import eval_mode
from fastgoal.processing.tokens import pad_ids
from fastgoal.quickstart.drawing import Split
from fastgoal.quickstart.train_base import embed_pixels
from fastgoal.quickstart.training import quiet_trainer
from fastgoal.trainer.batches.hard_negatives import nearest_rows
from fastgoal.trainer.batches.samplers import CaptionLengthSampler, HardNegativeSampler

from .arms import Arm, Sizes
from .data import MEASURES, Gallery, StudyData
from .scenes import draw_crowds


class StudyCollator:
    """Build the batches of an arm from row numbers. Random pairs depend on the seed and on the number of draws."""

    def __init__(self, data: StudyData, arm: Arm, seed: int):
        self.data = data
        self.arm = arm
        self.rng = random.Random(f"pairs/{seed}")
        self.short_rng = random.Random(f"short/{seed}")
        self.size_rng = random.Random(f"crops/{seed}")
        most = {"best": 1, "top3": 3}.get(arm.pairs)
        self.choices = []
        for index in range(len(data.ids)):
            pairs = data.true_pairs(index) if arm.pairs == "true" else data.pairs(index, arm.regions)
            self.choices.append(data.ranked(index, pairs)[:most])

    def __call__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Build the batch of `FastGoalCollator`."""
        data, arm = self.data, self.arm
        chosen = [(row, self.rng.choice(self.choices[row])) for row in rows]
        batch = {**self._pad([data.ids[row] for row in rows], are_short=False), "pixel_values": data.pixels[rows]}
        if dict(arm.settings).get("short_weight"):
            short = self._pad([self.short_rng.choice(data.short_ids[row]) for row in rows])
            batch |= {f"short_{name}": value for name, value in short.items()}
        if arm.objective in ("global", "sparc"):
            return batch
        texts = self._pad([data.sentence_ids[row][pair.sentence_index] for row, pair in chosen])
        masks = data.squashed_masks if arm.squashed_boxes else data.region_masks
        tokens = [data.sentence_masks[row][pair.sentence_index].roll(arm.sentence_shift) for row, pair in chosen]
        sentence_mask = pad_sequence(tokens, batch_first=True)
        short_of = batch["input_ids"].shape[1] - sentence_mask.shape[1]
        return {
            **batch,
            **{f"local_{name}": value for name, value in texts.items()},
            "local_pixel_values": self._crops([data.first_crop[row] + pair.region_index for row, pair in chosen]),
            "region_mask": torch.stack([masks[row][pair.region_index] for row, pair in chosen]),
            "sentence_mask": torch.nn.functional.pad(sentence_mask, (0, short_of)),
        }

    def _crops(self, rows: Sequence[int]) -> torch.Tensor:
        crops, side = self.data.crops[rows], dict(self.arm.settings).get("crop_size")
        if self.arm.crop_sizes:
            side = self.size_rng.choice(self.arm.crop_sizes)
        if side in (None, crops.shape[-1]):
            return crops
        return torch.nn.functional.interpolate(crops, (side, side), mode="bicubic", antialias=True)

    def _pad(self, texts: Sequence[torch.Tensor], are_short: bool = True) -> dict[str, torch.Tensor]:
        return pad_ids(self.data.tokenizer, texts, are_short)


class StudyTrainer(FastGoalTrainer):
    """The trainer over row numbers, with batches of captions of similar length, or with hard negatives."""

    data: StudyData
    near: bool

    def train_sampler(self, data: Any) -> Any:
        lengths = [len(ids) for ids in self.data.ids]
        if not self.near:
            return CaptionLengthSampler(lengths, self.args.train_batch_size, self.args.seed)
        size, seed = self.args.train_batch_size, self.args.seed
        return HardNegativeSampler(self._find_neighbors(None), size, seed, lengths, self._renewed_neighbors)

    @torch.no_grad()
    def _find_neighbors(self, data: Any, **options: Any) -> torch.Tensor:
        with self.compute_loss_context_manager(), eval_mode(self.model):
            embeds = embed_pixels(self.model, self.data.pixels).float()
            return nearest_rows(torch.nn.functional.normalize(embeds, dim=-1))


def train_arm(
    arm: Arm, sizes: Sizes, seed: int, data: StudyData, base: Path, processor: FastGoalProcessor
) -> tuple[Any, dict[str, float]]:
    """Fine-tune the base on an arm, without its `average`.

    Returns:
        The model, and its cost: `steps`, `samples` and `train_seconds` of processor time.
    """
    model = FastGoalModel.from_base(str(base), arm.max_text_length)
    model.set_attn_implementation("eager")  # on a CPU in bfloat16 more than twice as fast as SDPA's backward
    if arm.scale is not None:
        model.logit_scale.data.fill_(math.log(arm.scale))
        model.logit_scale.requires_grad_(False)
    if arm.objective == "none":
        return model, {"steps": 0, "train_seconds": 0.0, "samples": 0}
    rate, warmup = arm.in_force(sizes)
    epochs = sizes.epochs * arm.epochs
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(
            model,
            processor,
            range(len(data.ids)),
            StudyCollator(data, arm, seed),
            StudyTrainer,
            output_dir=folder,
            objective=arm.objective,
            num_train_epochs=epochs,
            per_device_train_batch_size=sizes.batch_size,
            learning_rate=rate,
            warmup_steps=round(warmup * int(epochs * (len(data.ids) // sizes.batch_size))),
            seed=seed,
            logging_steps=1000,
            bf16=True,
            use_cpu=True,
            **dict(arm.settings),
        )
        trainer.data, trainer.near = data, arm.near
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
    steps = trainer.state.global_step
    return model, {"steps": steps, "train_seconds": seconds, "samples": steps * sizes.batch_size}


class Seed:
    """All trainings of one seed. Scenes are drawn only if there is something to train or measure.

    Args:
        seed: The seed of the scenes, the order of rows and the random pairs.
        sizes: The settings that all arms share.
        split: The split of the scenes to measure on.
        fresh: A seed for the scenes to measure on, instead of `seed`.
        base: Folder of the base model.
        work: Folder of the results.
    """

    def __init__(self, seed: int, sizes: Sizes, split: Split, fresh: str | None, base: Path, work: Path) -> None:
        self.seed, self.sizes, self.split, self.fresh, self.base = seed, sizes, split, fresh, base
        self.work = work / "runs"
        self.work.mkdir(parents=True, exist_ok=True)
        self.fingerprint = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()[:16]

    @cached_property
    def processor(self) -> FastGoalProcessor:
        return FastGoalProcessor.from_base(str(self.base))

    @cached_property
    def data(self) -> StudyData:
        scenes = draw_crowds(self.sizes.train_scenes, self.seed, "train", **self._world)
        return StudyData(scenes, self.processor, FastGoalModel.from_base(str(self.base)))

    @property
    def _world(self) -> dict[str, int]:
        return {name: getattr(self.sizes, name) for name in ("min_things", "max_things", "relations")}

    @cached_property
    def gallery(self) -> Gallery:
        seed = self.seed if self.fresh is None else f"fresh-{self.fresh}"
        scenes = draw_crowds(self.sizes.test_scenes, seed, self.split, **self._world)
        return Gallery(scenes, self.processor, self.sizes.gallery)

    def run(self, arms: Sequence[Arm]) -> None:
        """Train and measure the arms that have no results yet, and print the results of all."""
        for arm in arms:
            result = self.result(arm)
            line = "  ".join(f"{name} {100 * result[name]:.1f}" for name in MEASURES)
            print(f"seed {self.seed}  {arm.name:<32} {line}  {result['train_seconds']:.0f} s", flush=True)

    def _path(self, arm: Arm, label: str, suffix: str) -> Path:
        return self.work / f"{arm.key(self.sizes, self.seed, label, self.fingerprint)}{suffix}"

    def result_path(self, arm: Arm) -> Path:
        """Return the file of an arm's results."""
        return self._path(arm, self.split if self.fresh is None else f"{self.split}-{self.fresh}", ".json")

    def finished(self, arm: Arm) -> dict[str, Any] | None:
        """Return the results of an arm if they are in the folder."""
        path = self.result_path(arm)
        return dict(json.loads(path.read_text())) if path.exists() else None

    def result(self, arm: Arm) -> dict[str, Any]:
        """Return the results of an arm, from the folder or from a training."""
        path = self.result_path(arm)
        if not path.exists():
            model, cost = self.model(arm)
            measured = self.gallery.measure(model, FastGoalProcessor.from_base(str(self.base), arm.max_text_length))
            result = {"arm": asdict(arm), "seed": self.seed, **cost, **measured}
            part = path.with_suffix(".part")
            part.write_text(json.dumps(result))
            part.rename(path)
        return dict(json.loads(path.read_text()))

    def model(self, arm: Arm) -> tuple[Any, dict[str, Any]]:
        """Return the tuned model, from the folder or from a training, and its cost."""
        trained = replace(arm, average=1.0)
        path = self._path(trained, "weights", ".safetensors")
        cost_path, part = path.with_suffix(".cost"), path.with_suffix(".part")
        if path.exists():
            model = FastGoalModel.from_base(str(self.base), arm.max_text_length)
            cost = json.loads(cost_path.read_text())
            model.load_state_dict(load_file(path))
        else:
            data = self.data
            if arm.max_text_length is not None:
                data = data.read_by(FastGoalProcessor.from_base(str(self.base), arm.max_text_length))
            model, cost = train_arm(trained, self.sizes, self.seed, data, self.base, data.processor)
            cost_path.write_text(json.dumps(cost))
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, part)
            part.rename(path)
        if arm.average != 1.0:
            start = FastGoalModel.from_base(str(self.base), arm.max_text_length).state_dict()
            model.load_state_dict(average_weights(start, model.state_dict(), arm.average))
        return model.eval(), cost
