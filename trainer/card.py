"""From a training to the model card: gathers what ran, and completes a saved folder with card and handler.

`trainer` is a `FastGoalTrainer`, of which this only reads.
"""

import os
from collections.abc import Mapping, Sized
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastgoal.hub_cards import model_card as cards
from fastgoal.hub_cards.cards import card_name, public_name, save_pairs_sheet
from fastgoal.modeling_fastgoal.losses_fastgoal import TERMS, LossWeights
from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.adapters import adapted_layers, describe_base, is_adapted, write_base
from fastgoal.processing.images import load_image
from fastgoal.processing.texts import shortened

from .batches.rows import PairData
from .batches.streams import StreamData

PICTURES = 3


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


def finish_folder(folder: str | os.PathLike[str], trainer: Any, pictures: bool) -> None:
    """Add the model card and `handler.py` to a folder with a saved model, and where they are wanted pictures."""
    folder, options = Path(folder), trainer.card
    output = Path(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    base_model, adapter = options.base_model, None
    if is_adapted(model):
        base, lora = describe_base(model, options.base_model), model.peft_config[model.active_adapter]
        write_base(folder, base)
        base_model = base.base or None
        adapter = {"rank": lora.r, "alpha": lora.lora_alpha, "layers": len(adapted_layers(model))}
    else:
        cards.copy_handler(folder)
    facts = cards.ModelFacts.of_folder(
        folder,
        name=trainer.hub_model_id or trainer.args.hub_model_id or card_name(output.resolve().name),
        base_model=base_model,
        license=options.license,
        note=options.note,
        adapter=adapter,
        training=training_facts(trainer),
        evaluation=evaluation_facts(trainer),
        **(_pictures(trainer, folder) if options.pictures and pictures else {}),
    )
    cards.write_model_card(folder, facts)


def training_facts(trainer: Any) -> cards.TrainingFacts | None:
    """What was trained so far; None before the first step."""
    args, state, objective = trainer.args, trainer.state, trainer.objective
    if not state.global_step:
        return None
    rows, epochs = _trained(trainer)
    columns = ("step", "loss", *(term.name for term in TERMS), "logit_scale")
    weights = {weight.metadata["label"]: getattr(objective.weights, weight.name) for weight in fields(LossWeights)}
    return cards.TrainingFacts(
        data=_data_name(trainer.train_dataset),
        rows=rows,
        objective=objective.name,
        weights={label: weight for label, weight in weights.items() if weight},
        settings={
            **cards.listed_settings(args),
            "recipe": args.recipe,
            **({"pair_sampling": args.pair_sampling} if objective.needs_pairs else {}),
            "hard_negatives": args.hard_negatives,
            **(
                {"hard_negative_refresh": args.hard_negative_refresh}
                if args.hard_negatives and args.hard_negative_refresh
                else {}
            ),
            **({"l2sp_weight": args.l2sp_weight} if args.l2sp_weight else {}),
            "max_logit_scale": args.max_logit_scale or "none",
            **({"decay_all": True} if args.decay_all else {}),
            **({"freeze": args.freeze} if args.freeze else {}),
            **({"freeze_layers": args.freeze_layers} if args.freeze_layers else {}),
        },
        steps=state.global_step,
        epochs=epochs,
        losses=[{name: line[name] for name in columns if name in line} for line in state.log_history if "loss" in line],
        hardware=cards.hardware(args.world_size),
        seconds=_newest(trainer, "train_runtime").get("train_runtime"),
        versions=cards.versions(),
        captions=_captions(trainer.train_dataset),
        contrastive="SigLIP's" if trainer.is_sigmoid else "CLIP's",
        evaluations=[*{line["step"]: line for line in state.log_history if "eval_text_to_image_R@1" in line}.values()],
    )


def _captions(data: Any) -> str | None:
    """How many tokens the captions have that were read, where all of them were counted."""
    if not isinstance(data, PairData) or data.tokens is None:
        return None
    lengths = data.tokens.lengths
    return f"{sum(lengths) / len(lengths):.0f} tokens in the mean, {min(lengths)} to {max(lengths)}"


def evaluation_facts(trainer: Any) -> cards.EvaluationFacts | None:
    """The newest evaluation of this training; None where there was none."""
    lines = [line for line in trainer.state.log_history if "eval_text_to_image_R@1" in line]
    if not lines:
        return None
    line = lines[-1]
    rows = _length(trainer.eval_dataset)
    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "float32"
    tokens = text_positions(trainer.accelerator.unwrap_model(trainer.model))
    return cards.EvaluationFacts(
        data=_data_name(trainer.eval_dataset),
        images=rows,
        captions=rows,
        metrics=_metrics(line),
        base=_metrics(lines[0]) if lines[0]["step"] == 0 < line["step"] else None,
        protocol=(
            f"all {rows} images against all {rows} captions, one caption an image (several of an image are joined), "
            f"captions cut at {tokens} tokens, ties count against the model, {precision}, after step {line['step']}."
        ),
    )


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics in a line of the log, recalls as fractions."""
    found = {name.removeprefix("eval_"): value for name, value in line.items() if "_to_" in name}
    return {name: value / 100 if "_R@" in name else value for name, value in found.items()}


def _newest(trainer: Any, key: str) -> dict[str, Any]:
    """The last line of the log that has a key; empty where there is none."""
    return next((line for line in reversed(trainer.state.log_history) if key in line), {})


def _pictures(trainer: Any, folder: Path) -> dict[str, Any]:
    """Draw matched pairs of the training data, and let the model label a few pictures it is evaluated on."""
    facts: dict[str, Any] = {}
    train = _rows(trainer.train_dataset)
    if trainer.objective.needs_pairs and train and all(row.get("pairs") for row in train):
        facts["pictures"] = save_pairs_sheet(folder, train)
    shown = _rows(trainer.eval_dataset) or train
    # A sharded model only runs on all processes at once.
    if shown and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        facts["examples"] = cards.save_examples(
            folder,
            [load_image(row["image"], name=row.get("file_name")) for row in shown],
            [_label(row, trainer.processing_class) for row in shown],
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
        )
    return facts


def _label(row: Mapping[str, Any], processor: Any) -> str:
    """A sentence of the caption, shortened if it is very long."""
    sentences = processor.split_sentences(row["caption"])
    text: str = sentences[0].text if sentences else row["caption"]
    return shortened(text, 200)


def _rows(data: Any) -> list[Mapping[str, Any]]:
    """The first rows of a dataset that is read by number."""
    if isinstance(data, Mapping) or not (isinstance(data, Sized) and hasattr(data, "__getitem__")):
        return []
    rows = [data[index] for index in range(min(PICTURES, len(data)))]
    return [row for row in rows if isinstance(row, Mapping) and "image" in row and "caption" in row]


def _length(data: Any) -> int:
    return len(data) if hasattr(data, "__len__") else 0


def _trained(trainer: Any) -> tuple[int, float]:
    """The rows that were trained on, and how many times."""
    args, data, epochs = trainer.args, trainer.train_dataset, trainer.state.epoch or 0.0
    if not isinstance(data, StreamData):
        return _length(data), round(epochs, 2)
    # The Trainer calls all the steps one epoch.
    seen = trainer.state.global_step * args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    rows = min(seen, data.rows or seen)
    return rows, round(seen / rows, 2)


def _data_name(data: Any) -> str:
    return public_name(data.source.name) if isinstance(data, PairData | StreamData) else "a dataset in memory"
