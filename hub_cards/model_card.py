"""The card of a model, filled from what really ran, and the handler that serves it as an inference endpoint."""

import json
import math
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from PIL import Image
from safetensors import safe_open

from fastgoal.modeling_fastgoal.families_fastgoal import FAMILIES, Family, family_of
from fastgoal.processing.checkpoints.adapters import BASE_FILE

from .cards import EXAMPLES, HERE, card_name, is_hub_id, write_card
from .wording import count

LOSS_LINES = 8

# Settings that every card lists; of the others those that were changed.
CORE_SETTINGS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("bf16", "fp16", "gradient_checkpointing", "seed"),
)
# Settings of the machine, the log and the upload: they do not change the weights, and may hold paths and secrets.
NOT_LISTED = re.compile(
    r"token|_dir|^hub|push|report_to|run_name|project|trackio|^log|^save|^eval|^resume|^do_|dataloader|tqdm|^use_cpu|"
    r"ddp|fsdp|deepspeed|accelerator|parallelism|load_best|metric|greater|batch_eval|include_|per_device_eval|"
    r"activation_checkpointing|prediction_loss|remove_unused|label_names|disable|local_rank|debug|auto_find|torch_empty"
)


@dataclass(frozen=True)
class TrainingFacts:
    """How a model was trained.

    Attributes:
        data: Name of the dataset, a Hub id or a folder's last name.
        rows: Rows trained on.
        objective: Name of the objective.
        weights: Weight of each loss.
        settings: Hyper-parameters by name.
        steps: Optimizer steps made.
        epochs: Times the rows were gone through.
        losses: Lines of the log: `step` and the loss and its parts.
        hardware: Devices, in words.
        seconds: Wall-clock time, None while it still runs.
        versions: Libraries by name.
        captions: How long they are, in words.
        evaluations: Lines of the log with `step` and the metrics of an evaluation.
        contrastive: Whose contrastive losses they are, `CLIP's` or `SigLIP's`.
    """

    data: str
    rows: int
    objective: str
    weights: dict[str, float]
    settings: dict[str, Any]
    steps: int
    epochs: float
    losses: list[dict[str, float]]
    hardware: str
    seconds: float | None
    versions: dict[str, str]
    captions: str | None = None
    evaluations: list[dict[str, float]] = field(default_factory=list)
    contrastive: str = "CLIP's"

    @property
    def shown_losses(self) -> list[dict[str, float]]:
        """Some lines of the log, evenly spaced, the first and the last among them."""
        return _some(self.losses)

    @property
    def shown_evaluations(self) -> list[dict[str, float]]:
        """Likewise."""
        return _some(self.evaluations)

    @property
    def duration(self) -> str | None:
        """The wall-clock time in words."""
        if self.seconds is None:
            return None
        if self.seconds < 120:
            return f"{self.seconds:.0f} s"
        return f"{self.seconds / 60:.0f} min" if self.seconds < 7200 else f"{self.seconds / 3600:.1f} h"


@dataclass(frozen=True)
class EvaluationFacts:
    """Retrieval that was measured.

    Attributes:
        data: Name of the dataset, a Hub id or a folder's last name.
        images: Images in the gallery.
        captions: Captions in the gallery.
        metrics: Of `retrieval_metrics`, fractions and ranks.
        protocol: Everything that the numbers depend on, in words.
        base: The same of the model before its training, where that was measured.
    """

    data: str
    images: int
    captions: int
    metrics: dict[str, float]
    protocol: str
    base: dict[str, float] | None = None

    @property
    def recalls(self) -> list[tuple[str, int, float]]:
        """What was measured as recall@k: direction (`text_to_image`, `image_to_text`), k and the fraction."""
        parts = [(*name.rpartition("_R@")[::2], value) for name, value in self.metrics.items()]
        return [(direction, int(k), value) for direction, k, value in parts if k.isdigit()]


@dataclass(frozen=True)
class ModelFacts:
    """What a model card says.

    Attributes:
        name: Hub id, or the folder's last name where there is none yet.
        max_text_length: Tokens that the text tower reads.
        image_size: Side of the input in pixels.
        patch_size: Side of a patch in pixels.
        dim: Width of the embeddings.
        parameters: Number of weights.
        family: What people call its kind, `CLIP` or another label of `FAMILIES`.
        base_model: Hub id or folder of what it was made of, where it is known.
        license: Identifier as on the Hub; None if nobody stated it.
        note: A sentence that stands before everything else: what nobody must mistake the model for.
        converted_from: File that the weights come from.
        merged_from: Adapter whose weights are in it.
        adapter: For a folder that holds an adapter, its `rank`, `alpha` and number of `layers`.
        training: How it was trained here.
        evaluation: What was measured here.
        pictures: Path of a sheet of matched pairs inside the folder.
        examples: Pictures with the model's scores of labels, for the widget of the model's page.
    """

    name: str
    max_text_length: int
    image_size: int
    patch_size: int
    dim: int
    parameters: int
    family: str = "CLIP"
    base_model: str | None = None
    license: str | None = None
    note: str | None = None
    converted_from: str | None = None
    merged_from: str | None = None
    adapter: dict[str, Any] | None = None
    training: TrainingFacts | None = None
    evaluation: EvaluationFacts | None = None
    pictures: str | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str], **facts: Any) -> "ModelFacts":
        """The facts that a saved model's files tell, beside those given."""
        folder = Path(folder)
        if (folder / BASE_FILE).is_file():
            base = json.loads((folder / BASE_FILE).read_bytes())
            lora = json.loads((folder / "adapter_config.json").read_bytes())
            known = {name: base[name] for name in ("max_text_length", "image_size", "patch_size", "dim")}
            known |= {"family": base.get("family", "CLIP")}
            known |= {"base_model": base["base"], "adapter": {"rank": lora["r"], "alpha": lora["lora_alpha"]}}
        else:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            text, family = config["text_config"], family_of(SimpleNamespace(**config), folder.name)
            known = {
                "family": family.label,
                "max_text_length": text["max_position_embeddings"],
                "image_size": config["vision_config"]["image_size"],
                "patch_size": config["vision_config"]["patch_size"],
                "dim": text["projection_size"] if family.pools_last else config["projection_dim"],
            }
        return cls(
            **{
                "name": card_name(folder.resolve().name),
                **known,
                "parameters": count_parameters(folder),
                **facts,
            }
        )

    @property
    def is_siglip(self) -> bool:
        """Whether texts are padded to the model's length, and each label is scored by itself."""
        return self.family_facts.pools_last

    @property
    def family_facts(self) -> Family:
        """What is known of its family."""
        return next(family for family in FAMILIES.values() if family.label == self.family)


def _some(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    shown, last = min(LOSS_LINES, len(lines)), len(lines) - 1
    return [lines[place] for place in sorted({round(i * last / max(1, shown - 1)) for i in range(shown)})]


def copy_handler(folder: str | os.PathLike[str]) -> Path:
    """Put `handler.py`, which serves the model as an inference endpoint, into its folder; returns its path."""
    return Path(shutil.copyfile(HERE / "handler.py", Path(folder) / "handler.py"))


def write_model_card(folder: str | os.PathLike[str], facts: ModelFacts) -> Path:
    """Write `README.md`, with its metadata, into a model's folder; returns its path."""
    data = ModelCardData(
        base_model=facts.base_model if facts.base_model and is_hub_id(facts.base_model) else None,
        datasets=[facts.training.data] if facts.training and is_hub_id(facts.training.data) else None,
        library_name="peft" if facts.adapter else "transformers",
        license=facts.license,
        pipeline_tag="zero-shot-image-classification",
        tags=[
            "siglip" if facts.is_siglip else "clip",
            *("long-captions", "image-text-retrieval", "fast-goal", "fastgoal"),
            "lora" if facts.adapter else "sentence-transformers",
        ],
        widget=facts.examples or None,
        model_name=facts.name,
        eval_results=_eval_results(facts.evaluation) if facts.evaluation else None,
        ignore_metadata_errors=False,
    )
    return write_card(folder, "model_card.md", data, facts)


def count_parameters(folder: Path) -> int:
    """Number of weights in a folder's safetensors files, from their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def listed_settings(args: Any) -> dict[str, Any]:
    """The hyper-parameters of `TrainingArguments` that a card lists: the core ones, and what was changed."""
    from transformers import TrainingArguments

    def value_of(name: str) -> Any:
        value = getattr(args, name, None)
        return getattr(value, "value", value)  # of a member of an enumeration

    settings = {name: value_of(name) for name in CORE_SETTINGS}
    for name, entry in TrainingArguments.__dataclass_fields__.items():
        value = value_of(name)
        changed = isinstance(value, bool | int | float | str) and value != entry.default
        if changed and name not in settings and not NOT_LISTED.search(name):
            settings[name] = value
    settings["batch size of all devices and accumulated steps"] = (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    )
    return settings


def hardware(world_size: int) -> str:
    """The devices of a training, in words."""
    import torch

    if torch.cuda.is_available():
        return f"{world_size} x {torch.cuda.get_device_name()}"
    if torch.accelerator.is_available():
        return f"{world_size} x {torch.accelerator.current_accelerator()}"
    processes = f", {world_size} processes" if world_size > 1 else ""
    return f"CPU ({platform.machine()}, {count(torch.get_num_threads(), 'thread')}{processes})"


def versions() -> dict[str, str]:
    """The libraries that a training depends on."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("fastgoal", "torch", "transformers", "accelerate", "datasets")},
    }


def save_examples(
    folder: Path, images: Sequence[Image.Image], labels: Sequence[str], model: Any, processor: Any
) -> list[dict[str, Any]]:
    """Let the model tell the labels of some images apart, and keep small copies of the images; entries of the widget.

    All images have all labels, without commas: the widget separates labels by them.
    """
    import torch

    from fastgoal.processing.embedding import eval_mode

    labels = list(dict.fromkeys(label.replace(",", "") for label in labels))
    (folder / EXAMPLES).mkdir(exist_ok=True)
    with eval_mode(model), torch.no_grad():
        inputs = processor(images=list(images), text=labels).to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        logits = model(**inputs).logits_per_image.float()
    scores_of = torch.sigmoid if family_of(model).is_sigmoid else partial(torch.softmax, dim=-1)
    examples = []
    for number, (image, row) in enumerate(zip(images, scores_of(logits).tolist(), strict=True), start=1):
        small = image.convert("RGB")
        small.thumbnail((512, 512))
        small.save(folder / EXAMPLES / f"{number}.jpg", quality=88)
        scores = [{"label": label, "score": round(score, 4)} for label, score in zip(labels, row, strict=True)]
        scores.sort(key=lambda entry: -entry["score"])
        examples.append(
            {
                "src": f"{EXAMPLES}/{number}.jpg",
                "candidate_labels": ", ".join(entry["label"] for entry in scores),
                "example_title": str(number),
                "output": scores,
            }
        )
    return examples


def _eval_results(found: EvaluationFacts) -> list[EvalResult]:
    """Recalls in percent, each with the protocol it was measured by."""
    return [
        EvalResult(
            task_type="image-text-retrieval",
            task_name="Retrieval with long captions",
            dataset_type=found.data if is_hub_id(found.data) else "custom",
            dataset_name=found.data,
            dataset_args={"protocol": found.protocol},
            metric_type=f"recall@{k}",
            metric_name=f"{direction.replace('_', ' ')} R@{k} (%)",
            metric_value=round(100 * value, 2),
        )
        for direction, k, value in found.recalls
    ]
