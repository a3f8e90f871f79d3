"""Complete a saved model's folder with its card and handler, filled from the training that ran."""

import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState

from fastgoal.hub_cards import model_card as cards
from fastgoal.hub_cards.cards import PAIRS_IMAGE, card_name, check_license, pairs_image, public_name
from fastgoal.modeling_fastgoal.losses_fastgoal import TERMS
from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.adapters import ADAPTER_FOLDER, describe_base, is_adapted, is_adapter, write_base
from fastgoal.processing.data.sources import SourceRow
from fastgoal.processing.files import write_inside
from fastgoal.processing.images import load_image
from fastgoal.processing.texts import shortened

from .batches.rows import TrainingRow, source_of
from .batches.streams import StreamData
from .evaluation.report import gain_rows
from .gains import read_gains
from .summary import TrainingRun

IMAGES = 3
# Arguments of ours that a card lists where they have a value.
LISTED = ("crop_size", "hard_negative_refresh", "l2sp_weight", "decay_all", "freeze", "freeze_layers")


@dataclass(frozen=True)
class CardOptions:
    """Information for the model card that the trainer does not have.

    Attributes:
        base_model: Hub id or folder of the model that the training started from.
        license: License of the model, an identifier of the Hub such as `mit`.
        images: Whether the card shows a few images of the data, which are copied next to the model. A push publishes
            them.
        note: A sentence at the top of the card, such as a warning.

    Raises:
        ValueError: The license is not an identifier of the Hub.
    """

    base_model: str | None = None
    license: str | None = None
    images: bool = False
    note: str | None = None

    def __post_init__(self) -> None:
        check_license(self.license)


def finish_folder(
    folder: str | os.PathLike[str],
    run: TrainingRun,
    state: TrainerState,
    options: CardOptions,
    hub_model_id: str | None = None,
    images: bool = False,
    processor: Any = None,
) -> None:
    """Write the model card and `handler.py` (or `fastgoal_base.json`) into the folder of a saved model (or adapter).

    Args:
        folder: The folder.
        run: The training.
        state: What it has done so far.
        options: Contents of the card that the training does not tell.
        hub_model_id: Name of the model on the Hub, where it has one.
        images: Whether to add images, if `options` allow them.
        processor: Processor of the model; None leaves out the images that the model itself labels.
    """
    folder, model = Path(folder), run.model
    own_name = card_name(Path(run.args.output_dir or ".").resolve().name)
    name, base_model, merged = hub_model_id or run.args.hub_model_id or own_name, options.base_model, None
    if is_adapted(model):
        base = describe_base(model, options.base_model)
        base_model = base.base or None
        merged = cards.AdapterFacts(model.active_peft_config.r, model.active_peft_config.lora_alpha)
    if merged and is_adapter(folder):
        write_base(folder, base)
        merged = None
        name = f"{own_name}/{ADAPTER_FOLDER}" if folder.name == ADAPTER_FOLDER else name
    else:
        cards.copy_handler(folder)
    facts = cards.ModelFacts.of_folder(
        folder,
        name=name,
        base_model=base_model,
        merged_adapter=merged,
        license=options.license,
        note=options.note,
        training=training_facts(run, state),
        evaluation=evaluation_facts(run, state),
        gains=gain_rows(read_gains(folder)),
        **(_save_images(folder, run, processor) if images and options.images else {}),
    )
    cards.write_model_card(folder, facts)


def training_facts(run: TrainingRun, state: TrainerState) -> cards.TrainingFacts | None:
    """Return what was trained so far, None before the first step."""
    args, objective, log = run.args, run.objective, state.log_history
    if not state.global_step:
        return None
    rows, epochs = _rows_and_epochs(run, state)
    columns = ("step", "loss", *(term.name for term in TERMS), "logit_scale")
    listed = {name: getattr(args, name) for name in LISTED if getattr(args, name)}
    if not args.hard_negatives:
        listed.pop("hard_negative_refresh", None)
    return cards.TrainingFacts(
        data=_data_name(run.train_dataset),
        rows=rows,
        objective=objective.name,
        weights=objective.labeled_weights,
        settings={
            **cards.listed_settings(args),
            "recipe": args.recipe,
            **({"pair_sampling": args.pair_sampling} if objective.needs_pairs else {}),
            "hard_negatives": args.hard_negatives,
            "max_logit_scale": run.max_logit_scale or "none",
            **listed,
        },
        steps=state.global_step,
        epochs=epochs,
        losses=[{name: line[name] for name in columns if name in line} for line in log if "loss" in line],
        hardware=cards.hardware(args.world_size),
        seconds=next(
            (run.seconds_before + line["train_runtime"] for line in log[::-1] if "train_runtime" in line), None
        ),
        versions=cards.versions(),
        captions=_caption_lengths(run.caption_lengths),
        is_sigmoid=run.is_sigmoid,
        best=_describe_best(run, state),
        evaluations=[*{line["step"]: line for line in log if "eval_text_to_image_R@1" in line}.values()],
    )


def evaluation_facts(run: TrainingRun, state: TrainerState) -> cards.EvaluationFacts | None:
    """Return the last evaluation of a training, None without one."""
    lines = [line for line in state.log_history if "eval_text_to_image_R@1" in line]
    if not lines:
        return None
    line = lines[-1]
    rows = _length(run.eval_dataset)
    precision = "bf16" if run.args.bf16 else "fp16" if run.args.fp16 else "float32"
    return cards.EvaluationFacts(
        data=_data_name(run.eval_dataset),
        images=rows,
        captions=rows,
        metrics=_metrics(line),
        base=_metrics(lines[0]) if lines[0]["step"] == 0 < line["step"] else None,
        protocol=(
            f"all {rows} images against all {rows} captions, one caption an image (several of an image are joined), "
            f"captions cut at {text_positions(run.model)} tokens, ties count against the model, {precision}, after "
            f"step {line['step']}."
        ),
    )


def _describe_best(run: TrainingRun, state: TrainerState) -> str | None:
    """Say which checkpoint was best on which data, and which model the folder has."""
    if not state.best_global_step or state.best_metric is None:
        return None
    metric = (run.args.metric_for_best_model or "").removeprefix("eval_")
    chosen = (
        "That is the model here." if run.args.load_best_model_at_end else "The model here is that of the last step."
    )
    return (
        f"The best {metric} on {_data_name(run.eval_dataset)} was {state.best_metric:.4g}, after step "
        f"{state.best_global_step}. {chosen}"
    )


def _caption_lengths(lengths: Sequence[int] | None) -> str | None:
    """Describe the number of tokens of the training captions."""
    if not lengths:
        return None
    return f"{sum(lengths) / len(lengths):.0f} tokens in the mean, {min(lengths)} to {max(lengths)}"


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the retrieval metrics in a line of the log, recalls as fractions."""
    metrics = {name.removeprefix("eval_"): value for name, value in line.items() if "_to_" in name}
    return {name: value / 100 if "_R@" in name else value for name, value in metrics.items()}


def _save_images(folder: Path, run: TrainingRun, processor: Any) -> dict[str, Any]:
    """Draw matched pairs of the training data, and let the model label a few evaluation images."""
    facts: dict[str, Any] = {}
    train = _first_rows(run.train_dataset)
    if run.objective.needs_pairs and train and all(row.pairs for row in train):
        facts["pairs_image"] = PAIRS_IMAGE
        write_inside(folder, PAIRS_IMAGE, pairs_image([row.as_dict() for row in train]))
    shown = _first_rows(run.eval_dataset) or train
    if shown and processor is not None:
        facts["examples"] = cards.save_examples(
            folder,
            [load_image(row.image, name=row.name) for row in shown],
            [_label(row.caption, processor) for row in shown],
            run.model,
            processor,
        )
    return facts


def _label(caption: str, processor: Any) -> str:
    """Return the first sentence of a caption, shortened if it is very long."""
    sentences = processor.split_sentences(caption)
    text: str = sentences[0].text if sentences else caption
    return shortened(text, 200)


def _first_rows(data: Any) -> list[TrainingRow]:
    """Return the first rows of a dataset that is read by number."""
    if isinstance(data, Mapping | StreamData) or not (isinstance(data, Sized) and hasattr(data, "__getitem__")):
        return []
    rows = [data[index] for index in range(min(IMAGES, len(data)))]
    return [
        TrainingRow.of(row)
        for row in rows
        if isinstance(row, TrainingRow | SourceRow) or (isinstance(row, Mapping) and row.keys() >= {"image", "caption"})
    ]


def _length(data: Any) -> int:
    return len(data) if hasattr(data, "__len__") else 0


def _rows_and_epochs(run: TrainingRun, state: TrainerState) -> tuple[int, float]:
    """Return the number of rows that were trained on, and the number of epochs over them."""
    args, data = run.args, run.train_dataset
    if not isinstance(data, StreamData) or data.rows:
        return _length(data), round(state.epoch or 0.0, 2)
    # All steps on a stream of unknown length are one epoch.
    return state.global_step * args.train_batch_size * args.world_size * args.gradient_accumulation_steps, 1.0


def _data_name(data: Any) -> str:
    source = source_of(data)
    return "a dataset in memory" if source is None else public_name(source.name)
