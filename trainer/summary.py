"""What a training says before its first step and at its end: what runs, on what, where it goes, what comes next."""

import json
import shlex
from collections.abc import Sized
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from fastgoal.hub_cards.cards import public_name
from fastgoal.hub_cards.wording import count
from fastgoal.modeling_fastgoal.losses_fastgoal import LossWeights
from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.adapters import is_adapted
from fastgoal.processing.data.pairs_dataset import MANIFEST
from fastgoal.processing.sentences import check_language

from .batches.rows import PairData
from .batches.streams import StreamData
from .parallel.strategy import describe


def start_lines(trainer: Any, steps: int) -> str:
    """The training that begins, in lines of a name and what it is.

    Args:
        trainer: A `FastGoalTrainer`.
        steps: That will be made.
    """
    args, objective = trainer.args, trainer.objective
    batch = args.train_batch_size * args.gradient_accumulation_steps
    weights = {weight.metadata["label"]: getattr(objective.weights, weight.name) for weight in fields(LossWeights)}
    terms = " + ".join(f"{weight:g} x {label}" for label, weight in weights.items() if weight)
    values = {
        "objective": f"{objective.name} (recipe {args.recipe}): {terms}",
        "data": _data_in_words(trainer.train_dataset),
        "evaluation": _evaluation(trainer),
        "model": _model_in_words(trainer),
        "steps": f"{steps:,}{_epochs(trainer, steps, batch * args.world_size)}, learning rate {args.learning_rate:g}",
        "runs on": describe(trainer.accelerator, batch),
        "saved in": _place(args),
    }
    return "\n".join(f"{name:<11} {value}" for name, value in values.items())


def end_lines(output: str, metrics: dict[str, float], data: str | None, adapted: bool) -> str:
    """Where the model is, how good it is, and the next command.

    Args:
        output: Folder of the model.
        metrics: Of the last evaluation, R@K in percent; empty without one.
        data: Of the evaluation.
        adapted: Whether the folder holds an adapter.
    """
    place = shlex.quote(str(output))
    lines = [f"{'The adapter' if adapted else 'The model'} is in {output}; README.md there says how it was made."]
    recalls = [metrics.get(f"eval_{way}_R@1") for way in ("text_to_image", "image_to_text")]
    if None not in recalls:
        lines.append("R@1 text to image {:.1f} %, image to text {:.1f} %, on {}.".format(*recalls, data))  # type: ignore[str-format]
    lines.append(f"Next: fastgoal evaluate --model {place} --data {shlex.quote(data or 'TEST-DATA')}")
    if adapted:
        lines.append(f"      fastgoal merge {place} --output MODEL")
    return "\n".join(lines)


def pairs_of(folder: str) -> int | None:
    """The number of pairs in what `fastgoal pairs` wrote; None for other data."""
    try:
        return int(_manifest(folder)["summary"]["pairs"])
    except (ValueError, KeyError, TypeError):
        return None


def language_of(folder: str) -> str | None:
    """The language of the captions in what `fastgoal pairs` wrote; None for other data."""
    try:
        return check_language(_manifest(folder)["settings"].get("language", "en"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _manifest(folder: str) -> Any:
    """What `fastgoal pairs` wrote about its data; empty for other data."""
    try:
        return json.loads((Path(folder) / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}


def _data_in_words(data: Any) -> str:
    if isinstance(data, StreamData):
        return f"{public_name(data.source.name)}, streamed" + (f": {count(data.rows, 'image')}" if data.rows else "")
    rows = count(len(data), "image") if isinstance(data, Sized) else "data of unknown length"
    if not isinstance(data, PairData):
        return rows
    found = pairs_of(data.source.name) if len(data) == len(data.source) else None
    return f"{public_name(data.source.name)}: {rows}" + ("" if found is None else f", {count(found, 'pair')}")


def _evaluation(trainer: Any) -> str:
    if trainer.eval_dataset is None:
        return "none (--eval_data names data for it)"
    args = trainer.args
    when = {"epoch": "every epoch", "steps": f"every {args.eval_steps or 0:g} steps"}
    first = "before the first step and " if args.eval_on_start else ""
    then = when.get(IntervalStrategy(args.eval_strategy), "at the end")
    return f"{_data_in_words(trainer.eval_dataset)}, {first}{then}"


def _model_in_words(trainer: Any) -> str:
    model = trainer.accelerator.unwrap_model(trainer.model)
    every = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    base = f"{public_name(trainer.card.base_model)}, " if trainer.card.base_model else ""
    share = "all" if trained == every else f"{trained / 1e6:.2f} M"
    kind = ", an adapter" if is_adapted(model) else ""
    length, before = text_positions(model), getattr(model, "stretched_from", None)
    longer = f" (stretched from {before}: worse than its base until it is trained)" if before else ""
    return f"{base}{every / 1e6:.1f} M weights, {share} of them trained{kind}; reads {length} tokens{longer}"


def _epochs(trainer: Any, steps: int, batch: int) -> str:
    rows = len(trainer.train_dataset) if isinstance(trainer.train_dataset, Sized) else 0
    epochs = f"{steps * batch / rows:.3g}" if rows else ""
    return f" ({epochs} epoch{'s' if epochs != '1' else ''} of {count(rows, 'image')})" if rows else ""


def _place(args: Any) -> str:
    when = {"epoch": ", a checkpoint every epoch", "steps": f", a checkpoint every {args.save_steps:g} steps"}
    return f"{args.output_dir}{when.get(SaveStrategy(args.save_strategy), '')}"
