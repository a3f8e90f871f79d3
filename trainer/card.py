"""From a training to the model card: gathers what ran, and completes a saved folder with card and handler."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import TrainerState

from fastgoal.hub_cards import model_card as cards
from fastgoal.hub_cards.cards import public_name, save_pairs_sheet
from fastgoal.modeling_fastgoal.losses_fastgoal import TERMS, LossWeights
from fastgoal.processing.images import load_image

from .batches.pair_data import PairData
from .objectives import Objective
from .training_arguments import FastGoalTrainingArguments

PICTURES = 3
LOSS_COLUMNS = ("loss", *(term.name for term in TERMS), "logit_scale")


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


@dataclass(frozen=True)
class TrainingRun:
    """What a training is, as far as cards tell of it.

    Attributes:
        name: What to call the model.
        args: The training's arguments.
        objective: What is trained for.
        state: How far it is, and its log.
        train_data: Rows trained on, or None.
        eval_data: Rows evaluated on, or None.
        processor: The model's processor.
        model: The model, not wrapped; None where it lies in shards and cannot run by itself.
        text_length: Tokens of a caption that the model reads.
    """

    name: str
    args: FastGoalTrainingArguments
    objective: Objective
    state: TrainerState
    train_data: Any
    eval_data: Any
    processor: Any
    model: Any
    text_length: int


def finish_folder(folder: str | os.PathLike[str], run: TrainingRun, options: CardOptions) -> None:
    """Add the model card and `handler.py` to a folder with a saved model; pictures to the output folder only."""
    folder = Path(folder)
    cards.copy_handler(folder)
    facts = _pictures(run, folder) if options.pictures and folder == Path(run.args.output_dir) else {}
    cards.write_model_card(
        folder,
        cards.ModelFacts.of_folder(
            folder,
            name=run.name,
            base_model=options.base_model,
            license=options.license,
            note=options.note,
            training=training_facts(run),
            evaluation=evaluation_facts(run),
            **facts,
        ),
    )


def training_facts(run: TrainingRun) -> cards.TrainingFacts | None:
    """What was trained so far; None before the first step."""
    args, history = run.args, run.state.log_history
    if not run.state.global_step:
        return None
    losses = [
        {"step": line["step"], **{name: line[name] for name in LOSS_COLUMNS if name in line}}
        for line in history
        if "loss" in line
    ]
    weights = {weight.metadata["label"]: getattr(run.objective.weights, weight.name) for weight in fields(LossWeights)}
    return cards.TrainingFacts(
        data=_data_name(run.train_data),
        rows=_length(run.train_data),
        objective=run.objective.name,
        weights={label: weight for label, weight in weights.items() if weight},
        settings={
            **cards.listed_settings(args),
            "recipe": args.recipe,
            **({"pair_choice": args.pair_choice} if run.objective.needs_pairs else {}),
            "near_batches": args.near_batches,
            **({"decay_all": True} if args.decay_all else {}),
        },
        steps=run.state.global_step,
        epochs=round(run.state.epoch or 0.0, 2),
        losses=losses,
        hardware=cards.hardware(args.world_size),
        seconds=next((line["train_runtime"] for line in reversed(history) if "train_runtime" in line), None),
        versions=cards.versions(),
    )


def evaluation_facts(run: TrainingRun) -> cards.EvaluationFacts | None:
    """The newest evaluation of this training; None where there was none."""
    line = next((line for line in reversed(run.state.log_history) if "eval_text_to_image_R@1" in line), None)
    if line is None:
        return None
    rows = _length(run.eval_data)
    precision = "bf16" if run.args.bf16 else "fp16" if run.args.fp16 else "float32"
    return cards.EvaluationFacts(
        data=_data_name(run.eval_data),
        images=rows,
        captions=rows,
        metrics={name.removeprefix("eval_"): value for name, value in line.items() if "_to_" in name},
        protocol=(
            f"all {rows} images against all {rows} captions, one caption an image (several of an image are joined), "
            f"captions cut at {run.text_length} tokens, ties count against the model, {precision}, after step "
            f"{line['step']}."
        ),
    )


def _pictures(run: TrainingRun, folder: Path) -> dict[str, Any]:
    """Draw matched pairs of the training data, and let the model label a few pictures it is evaluated on."""
    facts: dict[str, Any] = {}
    train = _rows(run.train_data)
    if run.objective.needs_pairs and train and all(row.get("pairs") for row in train):
        facts["pictures"] = save_pairs_sheet(folder, train)
    shown = _rows(run.eval_data) or train
    if shown and run.model is not None:
        facts["examples"] = cards.save_examples(
            folder,
            [load_image(row["image"], name=row.get("file_name")) for row in shown],
            [_label(row, run.processor) for row in shown],
            run.model,
            run.processor,
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
    return public_name(data.source.name) if isinstance(data, PairData) else "a data set in memory"
