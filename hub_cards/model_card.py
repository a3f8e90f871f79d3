"""The card of a model, filled with what was trained and measured, and the handler that serves it as an endpoint."""

import io
import json
import math
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from PIL import Image
from safetensors import safe_open
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from fastgoal.modeling_fastgoal.families_fastgoal import CLIP, FAMILIES, Family, family_of
from fastgoal.modeling_fastgoal.towers_fastgoal import embedding_width, is_sigmoid, text_positions
from fastgoal.processing.checkpoints.adapters import is_adapter, read_base
from fastgoal.processing.checkpoints.load import check_model
from fastgoal.processing.files import write_inside, write_text

from .cards import CARD, EXAMPLES, HERE, card_name, is_hub_id, render_card
from .wording import count

HANDLER = "handler.py"
# Settings that every card lists. Others are listed if they were changed.
CORE_SETTINGS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("bf16", "fp16", "gradient_checkpointing", "seed"),
)
# Settings of the machine, the log and the upload do not change the weights, and may hold paths and secrets.
NOT_LISTED = re.compile(
    r"token|_dir|^hub|push|report_to|run_name|project|trackio|^log|^save|^eval|^resume|^do_|dataloader|tqdm|^use_cpu|"
    r"ddp|fsdp|deepspeed|accelerator|parallelism|load_best|metric|greater|batch_eval|include_|per_device_eval|"
    r"activation_checkpointing|prediction_loss|remove_unused|label_names|disable|local_rank|debug|auto_find|torch_empty"
)


@dataclass(frozen=True)
class TrainingFacts:
    """How a model was trained.

    Attributes:
        data: Hub id of the dataset, or the last name of its folder.
        rows: Number of rows.
        objective: Name of the objective.
        weights: Weight of each loss by its label.
        settings: Hyperparameters by name.
        steps: Number of optimizer steps.
        epochs: Number of epochs over the rows.
        losses: Lines of the log with `step`, the loss and its parts.
        hardware: Devices, in words.
        seconds: Wall-clock time; None while the training runs.
        versions: Versions of libraries by name.
        captions: Lengths of the captions, in words.
        evaluations: Lines of the log with `step` and the metrics of an evaluation.
        is_sigmoid: Whether the contrastive losses are sigmoid losses.
        best: Which checkpoint was best, and on which data.
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
    is_sigmoid: bool = False
    best: str | None = None

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
    """The result of a retrieval evaluation.

    Attributes:
        data: Hub id of the dataset, or the last name of its folder.
        images: Number of images in the gallery.
        captions: Number of captions in the gallery.
        metrics: Metrics as `retrieval_metrics` names them: fractions and ranks.
        protocol: Everything that the metrics depend on, in words.
        base: Metrics of the model before its training, if they were measured.
    """

    data: str
    images: int
    captions: int
    metrics: dict[str, float]
    protocol: str
    base: dict[str, float] | None = None

    @property
    def recalls(self) -> list[tuple[str, int, float]]:
        """Direction (`text_to_image` or `image_to_text`), k and fraction of each recall@k."""
        parts = [(*name.rpartition("_R@")[::2], value) for name, value in self.metrics.items()]
        return [(direction, int(k), value) for direction, k, value in parts if k.isdigit()]


@dataclass(frozen=True)
class AdapterFacts:
    """A LoRA adapter: its rank, and its alpha."""

    rank: int
    alpha: float


@dataclass(frozen=True)
class AverageFacts:
    """An average of the weights of two models, see `fastgoal.average`.

    Attributes:
        tuned: Folder or Hub id of the tuned model, or of an adapter.
        alpha: Share of its weights; the rest is that of the base model.
    """

    tuned: str
    alpha: float


@dataclass(frozen=True)
class ModelFacts:
    """What a model card says.

    Attributes:
        name: Hub id, or the last name of the folder before the model has one.
        max_text_length: Number of tokens that the text tower reads.
        image_size: Side of the input in pixels.
        patch_size: Side of a patch in pixels.
        dim: Width of the embeddings.
        parameters: Number of weights.
        family: The model's family.
        is_sigmoid: Whether the probability of a caption is the sigmoid of its logit, rather than a softmax over all.
        base_model: Hub id or folder of the model that it was made from, if known.
        license: License, an identifier of the Hub; None if nobody stated one.
        note: A sentence at the top of the card, such as a warning.
        converted_from: File that the weights come from.
        merged_from: Adapter that was merged into the weights.
        average: The tuned model that the weights are an average of, with the base model.
        adapter: For a folder with an adapter, its facts.
        merged_adapter: The adapter that was trained here and merged into the weights.
        training: How the model was trained here.
        evaluation: What was measured here.
        gains: What the training gained and lost: the measure, and in percent the value of the base model, that of this
            model, the difference and its 95 % interval; and the verdict.
        pairs_image: Path inside the folder of an image that shows matched pairs.
        examples: Images with the scores of their labels, for the widget of the model page.
    """

    name: str
    max_text_length: int
    image_size: int
    patch_size: int
    dim: int
    parameters: int
    family: Family = CLIP
    is_sigmoid: bool = False
    base_model: str | None = None
    license: str | None = None
    note: str | None = None
    converted_from: str | None = None
    merged_from: str | None = None
    average: AverageFacts | None = None
    adapter: AdapterFacts | None = None
    merged_adapter: AdapterFacts | None = None
    training: TrainingFacts | None = None
    evaluation: EvaluationFacts | None = None
    gains: list[list[str]] = field(default_factory=list)
    pairs_image: str | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str], **facts: Any) -> "ModelFacts":
        """Read the facts that the files of a saved model or adapter tell; `facts` are others, by attribute.

        Raises:
            ValueError: The configuration of the model cannot be read.
        """
        folder = Path(folder)
        known: dict[str, Any] = {"name": card_name(folder.resolve().name), "parameters": count_parameters(folder)}
        if is_adapter(folder):
            base, lora = read_base(folder), json.loads((folder / ADAPTER_CONFIG_NAME).read_bytes())
            known |= {name: getattr(base, name) for name in ("max_text_length", "image_size", "patch_size", "dim")}
            known |= {"family": FAMILIES[base.model_type], "base_model": base.base or None}
            known["adapter"] = AdapterFacts(lora["r"], lora["lora_alpha"])
        else:
            config = check_model(str(folder), "folder")
            known |= {"family": family_of(config), "max_text_length": text_positions(config)}
            known["is_sigmoid"] = is_sigmoid(config, getattr(config, "contrastive", None))
            known |= {name: getattr(config.vision_config, name) for name in ("image_size", "patch_size")}
            known["dim"] = embedding_width(config)
        return cls(**{**known, **facts})


def copy_handler(folder: str | os.PathLike[str]) -> None:
    """Copy `handler.py`, which serves a model as an inference endpoint, into a folder."""
    write_inside(folder, HANDLER, (HERE / HANDLER).read_bytes())


def write_model_card(folder: str | os.PathLike[str], facts: ModelFacts) -> Path:
    """Write the model card `README.md` into a folder, complete or not at all; return its path."""
    write_text(path := Path(folder) / CARD, render_model_card(facts))
    return path


def render_model_card(facts: ModelFacts) -> str:
    """Return the text of a model card with its metadata."""
    data = ModelCardData(
        base_model=facts.base_model if facts.base_model and is_hub_id(facts.base_model) else None,
        datasets=[facts.training.data] if facts.training and is_hub_id(facts.training.data) else None,
        library_name="peft" if facts.adapter else "transformers",
        license=facts.license,
        pipeline_tag="zero-shot-image-classification",
        tags=[
            "siglip" if facts.family.is_sigmoid else "clip",
            *("long-captions", "image-text-retrieval", "fast-goal", "fastgoal"),
            "lora" if facts.adapter else "sentence-transformers",
        ],
        widget=facts.examples or None,
        model_name=facts.name,
        eval_results=_eval_results(facts.evaluation) if facts.evaluation else None,
        ignore_metadata_errors=False,
    )
    return render_card("model_card.md", data, facts)


def count_parameters(folder: Path) -> int:
    """Return the number of weights in the safetensors files of a folder, from their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def listed_settings(args: Any) -> dict[str, Any]:
    """Return the hyperparameters of `TrainingArguments` that a card lists: the core ones, and those that changed."""
    from transformers import TrainingArguments

    values = args.to_dict()
    settings = {name: values[name] for name in CORE_SETTINGS}
    for name, entry in TrainingArguments.__dataclass_fields__.items():
        value = values.get(name)
        is_changed = isinstance(value, bool | int | float | str) and value != entry.default
        if is_changed and not NOT_LISTED.search(name):
            settings[name] = value
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {**settings, "total_train_batch_size": batch}


def hardware(world_size: int) -> str:
    """Describe the devices of a training in words."""
    import torch

    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        return f"{world_size} x {torch.cuda.get_device_name() if torch.cuda.is_available() else device}"
    processes = f", {world_size} processes" if world_size > 1 else ""
    return f"CPU ({platform.machine()}, {count(torch.get_num_threads(), 'thread')}{processes})"


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a training depends on."""
    from importlib.metadata import version

    names = ("fastgoal", "torch", "transformers", "accelerate", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def save_examples(
    folder: Path, images: Sequence[Image.Image], labels: Sequence[str], model: Any, processor: Any
) -> list[dict[str, Any]]:
    """Save small copies of images, score all labels for each image, and return the entries of the widget.

    Labels lose their commas, which separate labels in the widget.
    """
    import torch

    from fastgoal.processing.embedding import eval_mode

    labels = list(dict.fromkeys(label.replace(",", "") for label in labels))
    with eval_mode(model), torch.no_grad():
        inputs = processor(images=list(images), text=labels).to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        logits = model(**inputs).logits_per_image.float()
    scores_of = (
        torch.sigmoid
        if is_sigmoid(model, getattr(model.config, "contrastive", None))
        else partial(torch.softmax, dim=-1)
    )
    examples = []
    for number, (image, row) in enumerate(zip(images, scores_of(logits).tolist(), strict=True), start=1):
        path, small = f"{EXAMPLES}/{number}.jpg", image.convert("RGB")
        small.thumbnail((512, 512))
        small.save(buffer := io.BytesIO(), "JPEG", quality=88)
        write_inside(folder, path, buffer.getvalue())
        ranked = sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])
        output = [{"label": label, "score": round(score, 4)} for label, score in ranked]
        texts = ", ".join(label for label, _ in ranked)
        examples.append({"src": path, "candidate_labels": texts, "example_title": str(number), "output": output})
    return examples


def _eval_results(facts: EvaluationFacts) -> list[EvalResult]:
    """Return the recalls in percent with their protocol, as the metadata of a card."""
    return [
        EvalResult(
            task_type="image-text-retrieval",
            task_name="Retrieval with long captions",
            dataset_type=facts.data if is_hub_id(facts.data) else "custom",
            dataset_name=facts.data,
            dataset_args={"protocol": facts.protocol},
            metric_type=f"recall@{k}",
            metric_name=f"{direction.replace('_', ' ')} R@{k} (%)",
            metric_value=round(100 * value, 2),
        )
        for direction, k, value in facts.recalls
    ]
