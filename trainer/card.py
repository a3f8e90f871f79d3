"""From a trainer to the model card: gathers what ran, and completes a saved folder with card and handler."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgoal.hub_cards import cards as shared
from fastgoal.hub_cards import model_card as cards
from fastgoal.processing.images import load_image

from .batches.pair_data import PairData

if TYPE_CHECKING:
    from .fastgoal_trainer import FastGoalTrainer

PICTURES = 3
LOSS_COLUMNS = ("loss", "loss_global", "loss_local", "loss_tsl_image", "loss_tsl_text", "loss_sparc", "logit_scale")


@dataclass(frozen=True)
class CardOptions:
    """What a card says that the trainer cannot know by itself.

    Attributes:
        base_model: Hub id or folder of the CLIP that the training began with.
        license: Identifier as on the Hub.
        note: A sentence that the card begins with: what nobody must mistake the model for.
        pictures: Whether the card shows pictures of the data: they are copied beside the model and pushed with it.
    """

    base_model: str | None = None
    license: str | None = None
    pictures: bool = True
    note: str | None = None


def finish_folder(trainer: "FastGoalTrainer", folder: str | os.PathLike[str]) -> None:
    """Add the model card and `handler.py` to a folder that the trainer saved; pictures to its output folder only."""
    folder = Path(folder)
    cards.copy_handler(folder)
    facts: dict[str, Any] = {}
    if trainer.card.pictures and folder == Path(trainer.args.output_dir):
        facts = _pictures(trainer, folder)
    cards.write_model_card(
        folder,
        cards.ModelFacts.of_folder(
            folder,
            name=trainer.hub_model_id or trainer.args.hub_model_id or Path(trainer.args.output_dir).resolve().name,
            base_model=trainer.card.base_model,
            license=trainer.card.license,
            note=trainer.card.note,
            training=training_facts(trainer),
            evaluation=evaluation_facts(trainer),
            **facts,
        ),
    )


def training_facts(trainer: "FastGoalTrainer") -> cards.TrainingFacts | None:
    """What was trained so far; None before the first step."""
    state, objective = trainer.state, trainer.objective
    if not state.global_step:
        return None
    history = state.log_history
    losses = [
        {"step": line["step"], **{name: line[name] for name in LOSS_COLUMNS if name in line}}
        for line in history
        if "loss" in line
    ]
    return cards.TrainingFacts(
        data=_data_name(trainer.train_dataset),
        rows=_length(trainer.train_dataset),
        objective=objective.name,
        weights={
            name: value
            for name, value in (
                ("global", objective.global_weight),
                ("local", objective.local_weight),
                ("TSL", objective.tsl_weight),
                ("SPARC", objective.sparc_weight),
            )
            if value
        },
        settings={
            **cards.listed_settings(trainer.args),
            "recipe": trainer.args.recipe,
            **({"pair_choice": trainer.args.pair_choice} if objective.needs_pairs else {}),
            "near_batches": trainer.args.near_batches,
        },
        steps=state.global_step,
        epochs=round(state.epoch or 0.0, 2),
        losses=losses,
        hardware=cards.hardware(trainer.args.world_size),
        seconds=next((line["train_runtime"] for line in reversed(history) if "train_runtime" in line), None),
        versions=cards.versions(),
    )


def evaluation_facts(trainer: "FastGoalTrainer") -> cards.EvaluationFacts | None:
    """The newest evaluation of this training; None where there was none."""
    line = next((line for line in reversed(trainer.state.log_history) if "eval_text_to_image_R@1" in line), None)
    if line is None:
        return None
    rows = _length(trainer.eval_dataset)
    length = trainer.accelerator.unwrap_model(trainer.model).config.text_config.max_position_embeddings
    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "float32"
    return cards.EvaluationFacts(
        data=_data_name(trainer.eval_dataset),
        images=rows,
        captions=rows,
        metrics={name.removeprefix("eval_"): value for name, value in line.items() if "_to_" in name},
        protocol=(
            f"all {rows} images against all {rows} captions, one caption an image (several of an image are joined), "
            f"captions cut at {length} tokens, ties count against the model, {precision}, after step {line['step']}."
        ),
    )


def _pictures(trainer: "FastGoalTrainer", folder: Path) -> dict[str, Any]:
    """Draw matched pairs of the training data, and let the model label a few pictures it is evaluated on."""
    facts: dict[str, Any] = {}
    train = _rows(trainer.train_dataset)
    if trainer.objective.needs_pairs and train and all(row.get("pairs") for row in train):
        facts["pictures"] = shared.save_pairs_sheet(folder, train)
    shown = _rows(trainer.eval_dataset) or train
    # A sharded model only runs on all processes at once.
    if shown and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        processor: Any = trainer.processing_class
        facts["examples"] = cards.save_examples(
            folder,
            [load_image(row["image"], name=row.get("file_name")) for row in shown],
            [_label(row, processor) for row in shown],
            trainer.accelerator.unwrap_model(trainer.model),
            processor,
        )
    return facts


def _label(row: Mapping[str, Any], processor: Any) -> str:
    """A sentence of the caption, shortened if it is very long."""
    sentences = processor.split_sentences(row["caption"])
    text: str = sentences[0].text if sentences else row["caption"]
    return text if len(text) <= 200 else text[:200].rsplit(" ", 1)[0] + " …"


def _rows(data: Any) -> list[Mapping[str, Any]]:
    """The first rows of a data set that is read by number."""
    if data is None or isinstance(data, Mapping) or not hasattr(data, "__getitem__"):
        return []
    rows = [data[index] for index in range(min(PICTURES, len(data)))]
    return [row for row in rows if isinstance(row, Mapping) and "image" in row and "caption" in row]


def _length(data: Any) -> int:
    return len(data) if hasattr(data, "__len__") else 0


def _data_name(data: Any) -> str:
    return shared.public_name(data.source.name) if isinstance(data, PairData) else "a data set in memory"
