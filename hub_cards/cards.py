"""Model and data cards, filled from what really ran.

The facts are gathered into dataclasses first (`ModelFacts`, `DataFacts`); the templates beside this file only lay them
out. A card names no folder of the machine that wrote it, and no secret.
"""

import json
import math
import os
import platform
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from PIL import Image

HERE = Path(__file__).parent
CARD = "README.md"
EXAMPLES = "examples"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))

# Settings that every card lists; of the others those that were changed.
CORE_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "seed",
)
# Settings of the machine, the log and the upload: they do not change the weights, and may hold paths and secrets.
NOT_LISTED = re.compile(
    r".*(token|_dir|^hub|push|report_to|run_name|project|trackio|^log|^save|^eval|^resume|^do_|dataloader|tqdm|"
    r"^use_cpu|ddp|fsdp|deepspeed|accelerator|parallelism|objective|_weight|load_best|metric|greater|batch_eval|"
    r"include_|per_device_eval|activation_checkpointing|prediction_loss|remove_unused|label_names|disable|local_rank|debug|auto_find|torch_empty).*|"
    r"(global|local|tsl)_weight"
)


@dataclass(frozen=True)
class Example:
    """A picture with labels and the model's scores for them, for the widget of the model's page.

    Attributes:
        image: Path inside the model's folder.
        scores: Probability by label, best first.
    """

    image: str
    scores: dict[str, float]


@dataclass(frozen=True)
class TrainingFacts:
    """How a model was trained.

    Attributes:
        data: Name of the data set, a Hub id or a folder's last name.
        rows: Rows trained on.
        objective: Name of the objective.
        weights: Weight of each loss.
        settings: Hyper-parameters by name.
        steps: Optimiser steps made.
        epochs: Times the rows were gone through.
        losses: Lines of the log: `step` and the loss and its parts.
        hardware: Devices, in words.
        seconds: Wall-clock time, None while it still runs.
        versions: Libraries by name.
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


@dataclass(frozen=True)
class EvaluationFacts:
    """Retrieval that was measured.

    Attributes:
        data: Name of the data set, a Hub id or a folder's last name.
        images: Images in the gallery.
        captions: Captions in the gallery.
        metrics: Of `retrieval_metrics`, fractions and ranks.
        protocol: Everything that the numbers depend on, in words.
    """

    data: str
    images: int
    captions: int
    metrics: dict[str, float]
    protocol: str


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
        base_model: Hub id or folder of the CLIP it was made of, where it is known.
        license: Identifier as on the Hub; None if nobody stated it.
        note: A sentence that stands before everything else: what nobody must mistake the model for.
        converted_from: File that the weights come from.
        training: How it was trained here.
        evaluation: What was measured here.
        pictures: Path of a sheet of matched pairs inside the folder.
        examples: For the widget.
    """

    name: str
    max_text_length: int
    image_size: int
    patch_size: int
    dim: int
    parameters: int
    base_model: str | None = None
    license: str | None = None
    note: str | None = None
    converted_from: str | None = None
    training: TrainingFacts | None = None
    evaluation: EvaluationFacts | None = None
    pictures: str | None = None
    examples: list[Example] = field(default_factory=list)

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str], **facts: Any) -> "ModelFacts":
        """The facts that a saved model's files tell, beside those given."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(
            **{
                "name": folder.resolve().name,
                "max_text_length": config["text_config"]["max_position_embeddings"],
                "image_size": config["vision_config"]["image_size"],
                "patch_size": config["vision_config"]["patch_size"],
                "dim": config["projection_dim"],
                "parameters": count_parameters(folder),
                **facts,
            }
        )


@dataclass(frozen=True)
class Spread:
    """One number a row: its mean and median over the rows, and the highest."""

    mean: float
    median: float
    highest: int


@dataclass(frozen=True)
class DataFigures:
    """What was counted in the rows of a pairs data set.

    Attributes:
        words: Of a caption, as white space parts them.
        sentences: Of a caption.
        score: Mean cosine of all pairs of sentence and region.
        best_score: Mean cosine of the pairs for training.
        tokens: Of a caption in CLIP's count, start and end included; None if nobody counted.
        tokenizer: Name of the tokenizer that counted.
        longer: Share of the captions with more tokens than a number of them.
    """

    words: Spread
    sentences: Spread
    score: float
    best_score: float
    tokens: Spread | None = None
    tokenizer: str | None = None
    longer: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionerFacts:
    """What wrote the captions of a data set.

    Attributes:
        model: Hub id or a folder's last name.
        prompt: What it was asked.
        source: Where the images come from: a Hub id or a folder's last name.
        settings: Of `fastgoal caption` that the text depends on, by name.
        captions: How many it wrote.
        cut: How many reached the token limit.
    """

    model: str
    prompt: str
    source: str
    settings: dict[str, Any]
    captions: int
    cut: int

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str]) -> "CaptionerFacts":
        """The facts of a folder that `fastgoal caption` wrote.

        Raises:
            ValueError: The folder is none, or was not finished.
        """
        try:
            manifest = json.loads((Path(folder) / "fastgoal_captions.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            manifest = {}
        if "summary" not in manifest:
            raise ValueError(f"captions='{folder}' is not a finished folder of `fastgoal caption`.")
        settings, summary = manifest["settings"], manifest["summary"]
        sampled = "temperature {temperature}, top-p {top_p}, seed {seed}".format_map(settings)
        return cls(
            model=public_weights(settings["model"]),
            prompt=settings["prompt"],
            source=public_name(manifest["source"]),
            settings={
                "decoding": sampled if settings["temperature"] > 0 else "greedy",
                "most tokens": settings["max_new_tokens"],
                "number format": settings["dtype"],
            },
            captions=summary["images"],
            cut=summary["cut"],
        )


@dataclass(frozen=True)
class DataFacts:
    """What the card of a pairs data set says.

    Attributes:
        name: Hub id, or the folder's last name.
        source: Where images and captions come from: a Hub id or a folder's last name.
        images: Rows.
        sentences: Sentences of all captions.
        pairs: Local pairs.
        regions: Candidate regions by source.
        best_regions: Regions of the best pairs by source.
        settings: Of `fastgoal pairs`, by name.
        versions: Libraries by name.
        skipped: Rows of the source that were left out.
        license: Identifier as on the Hub; None if nobody stated it.
        image_license: Of the images, in words, where it was stated.
        caption_license: Likewise of the captions.
        figures: Lengths of the captions and scores of the pairs, where they were measured.
        captioner: What wrote the captions, where `fastgoal caption` did.
        pictures: Path of a sheet of sample rows inside the folder.
    """

    name: str
    source: str
    images: int
    sentences: int
    pairs: int
    regions: dict[str, int]
    best_regions: dict[str, int]
    settings: dict[str, Any]
    versions: dict[str, str]
    skipped: int = 0
    license: str | None = None
    image_license: str | None = None
    caption_license: str | None = None
    figures: DataFigures | None = None
    captioner: CaptionerFacts | None = None
    pictures: str | None = None

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str], license: str | None = None, **facts: Any) -> "DataFacts":
        """The facts of a folder that `fastgoal pairs` wrote, beside those given.

        Raises:
            ValueError: The folder is none, or was not finished.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "fastgoal_pairs.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            manifest = {}
        if "summary" not in manifest:
            raise ValueError(
                f"folder='{folder}' is not a finished data set of `fastgoal pairs`; run that command first."
            )
        summary, settings = manifest["summary"], dict(manifest["settings"])
        for key in ("source_rows", "source_fingerprint", "image_column", "caption_column"):
            settings.pop(key, None)
        for key in ("model", "detector"):
            settings[key] = public_weights(str(settings[key]))
        return cls(
            name=facts.pop("name", None) or folder.resolve().name,
            source=facts["captioner"].source if facts.get("captioner") else public_name(manifest["source"]),
            images=summary["images"],
            sentences=summary["sentences"],
            pairs=summary["pairs"],
            regions=summary["regions"],
            best_regions=summary["best_regions"],
            settings={name: value for name, value in settings.items() if value is not None},
            versions=manifest["versions"],
            skipped=len(summary["skipped"]),
            license=license,
            **facts,
        )


def copy_handler(folder: str | os.PathLike[str]) -> Path:
    """Put `handler.py`, which serves the model as an inference endpoint, into its folder; returns its path."""
    return Path(shutil.copyfile(HERE / "handler.py", Path(folder) / "handler.py"))


def write_model_card(folder: str | os.PathLike[str], facts: ModelFacts) -> Path:
    """Write `README.md`, with its metadata, into a model's folder; returns its path."""
    data = ModelCardData(
        base_model=facts.base_model if facts.base_model and is_hub_id(facts.base_model) else None,
        datasets=_datasets(facts),
        library_name="transformers",
        license=facts.license,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "long-captions", "image-text-retrieval", "fast-goal", "fastgoal", "sentence-transformers"],
        widget=[_widget(example) for example in facts.examples] or None,
        model_name=facts.name,
        eval_results=_eval_results(facts),
        ignore_metadata_errors=False,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(HERE / "model_card.md"),
        facts=facts,
        title=facts.name.split("/")[-1],
        base=public_name(facts.base_model) if facts.base_model else None,
        recalls=_recall_table(facts.evaluation) if facts.evaluation else "",
        losses=_loss_table(facts.training.losses) if facts.training else "",
        duration=_duration(facts.training.seconds) if facts.training and facts.training.seconds else None,
    )
    return _write(Path(folder) / CARD, str(card))


def write_data_card(folder: str | os.PathLike[str], facts: DataFacts) -> Path:
    """Write `README.md`, with its metadata, into a pairs data set's folder; returns its path."""
    data = DatasetCardData(
        license=facts.license,
        size_categories=[next((name for limit, name in SIZES if facts.images < limit), "n>10M")],
        task_categories=["zero-shot-image-classification", "image-feature-extraction"],
        tags=["image-text-retrieval", "long-captions", "fast-goal", "fastgoal"],
        pretty_name=facts.name.split("/")[-1],
        source_datasets=[facts.source] if is_hub_id(facts.source) else None,
        annotations_creators=["machine-generated"],
        # Said, not left to be guessed: there is a picture beside the data.
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    card = DatasetCard.from_template(
        data, template_path=str(HERE / "data_card.md"), facts=facts, title=facts.name.split("/")[-1]
    )
    return _write(Path(folder) / CARD, str(card))


def rename_card(text: str, repo: str) -> str:
    """A card's text with the Hub id in place of the folder's name: in the usage, the title's metadata, the widget."""
    old = re.search(r'^name = "(.*)"$', text, re.MULTILINE)
    text = re.sub(r'^name = ".*"$', lambda _: f'name = "{repo}"', text, flags=re.MULTILINE)
    address = f"https://huggingface.co/{repo}/resolve/main/{EXAMPLES}/"
    text = re.sub(rf"(src: )(?:https://huggingface\.co/\S+?/)?{EXAMPLES}/", lambda m: m[1] + address, text)
    if old:
        text = re.sub(rf"^- name: {re.escape(old[1])}$", lambda _: f"- name: {repo}", text, flags=re.MULTILINE)
        text = re.sub(rf"^# {re.escape(old[1].split('/')[-1])}$", f"# {repo.split('/')[-1]}", text, flags=re.MULTILINE)
    return text


def public_name(name: str) -> str:
    """A model's or data set's name for the public: a Hub id as it is, of a folder or a file only the last name."""
    return name if is_hub_id(name) else Path(name).name or Path(name).resolve().name


def public_weights(mark: str) -> str:
    """The name of weights for the public: of `name#hash` of local ones the name, `name@revision` of the Hub's whole."""
    name, at, revision = mark.partition("#")[0].partition("@")
    return public_name(name) + at + revision


def is_hub_id(name: str) -> bool:
    """Whether a name is OWNER/NAME on the Hub rather than something on this machine."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def count_parameters(folder: Path) -> int:
    """Number of weights in a folder's safetensors files, from their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def listed_settings(args: Any) -> dict[str, Any]:
    """The hyper-parameters of `TrainingArguments` that a card lists: the core ones, and what was changed."""
    from transformers import TrainingArguments

    defaults = {name: entry.default for name, entry in TrainingArguments.__dataclass_fields__.items()}
    settings: dict[str, Any] = {}
    for name in [*CORE_SETTINGS, *(name for name in defaults if name not in CORE_SETTINGS)]:
        value = getattr(args, name, None)
        value = getattr(value, "value", value)
        if name not in CORE_SETTINGS and (
            NOT_LISTED.fullmatch(name) or not isinstance(value, bool | int | float | str) or value == defaults[name]
        ):
            continue
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
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads{processes})"


def versions() -> dict[str, str]:
    """The libraries that a training depends on."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("fastgoal", "torch", "transformers", "accelerate", "datasets")},
    }


def save_pairs_sheet(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw rows with their local pairs into a model's folder; returns the picture's path inside it."""
    from fastgoal.hub_cards.pictures import pairs_sheet

    path = folder / EXAMPLES / "pairs.jpg"
    path.parent.mkdir(exist_ok=True)
    pairs_sheet(rows).save(path, quality=88)
    return f"{EXAMPLES}/{path.name}"


def save_examples(
    folder: Path, images: Sequence[Image.Image], labels: Sequence[str], model: Any, processor: Any
) -> list[Example]:
    """Let the model tell the labels of some images apart, and keep small copies of the images.

    Args:
        folder: The model's folder.
        images: A few pictures.
        labels: What may be in them, the same for all; the widget separates labels by commas, so they are taken out.
        model: A CLIP.
        processor: Its `FastGoalProcessor`.
    """
    import torch

    from fastgoal.processing.matching import eval_mode

    labels = list(dict.fromkeys(label.replace(",", "") for label in labels))
    (folder / EXAMPLES).mkdir(exist_ok=True)
    with eval_mode(model), torch.no_grad():
        inputs = processor(images=list(images), text=labels).to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        logits = model(**inputs).logits_per_image.float()
    examples = []
    for number, (image, row) in enumerate(zip(images, logits.softmax(dim=-1).tolist(), strict=True), start=1):
        small = image.convert("RGB")
        small.thumbnail((512, 512))
        small.save(folder / EXAMPLES / f"{number}.jpg", quality=88)
        scores = sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])
        examples.append(Example(f"{EXAMPLES}/{number}.jpg", {label: round(score, 4) for label, score in scores}))
    return examples


def _widget(example: Example) -> dict[str, Any]:
    return {
        "src": example.image,
        "candidate_labels": ", ".join(example.scores),
        "example_title": Path(example.image).stem,
        "output": [{"label": label, "score": score} for label, score in example.scores.items()],
    }


def _datasets(facts: ModelFacts) -> list[str] | None:
    names = [facts.training.data] if facts.training and is_hub_id(facts.training.data) else []
    return names or None


def _eval_results(facts: ModelFacts) -> list[EvalResult] | None:
    """Recalls in percent, each with the protocol it was measured by."""
    if facts.evaluation is None:
        return None
    found = facts.evaluation
    results = []
    for name, value in found.metrics.items():
        direction, _, k = name.rpartition("_R@")
        if not k.isdigit():
            continue
        results.append(
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
        )
    return results or None


def _recall_table(evaluation: EvaluationFacts) -> str:
    ks = sorted({int(name.rpartition("@")[2]) for name in evaluation.metrics if "_R@" in name})
    lines = ["| | " + " | ".join(f"R@{k}" for k in ks) + " | median rank |", "|---" * (len(ks) + 2) + "|"]
    for direction in ("text_to_image", "image_to_text"):
        values = [f"{100 * evaluation.metrics[f'{direction}_R@{k}']:.2f}" for k in ks]
        rank = evaluation.metrics.get(f"{direction}_median_rank")
        cells = [*values, "" if rank is None else f"{rank:g}"]
        lines.append(f"| {direction.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _loss_table(lines: list[dict[str, float]], limit: int = 8) -> str:
    """Some lines of the log, the first and the last among them."""
    if not lines:
        return ""
    last = len(lines) - 1
    chosen = sorted({round(i * last / max(1, min(limit, len(lines)) - 1)) for i in range(min(limit, len(lines)))})
    columns = ["step", *(name for name in lines[last] if name != "step")]
    table = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    table += ["| " + " | ".join(f"{lines[i].get(name, math.nan):.5g}" for name in columns) + " |" for i in chosen]
    return "\n".join(table)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _write(path: Path, text: str) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return path
