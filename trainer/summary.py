"""Describe a training in a few lines: before its first step what runs, and at its end where the model is."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy, has_length

from fastgoal.hub_cards.cards import public_name
from fastgoal.hub_cards.wording import count
from fastgoal.modeling_fastgoal.families_fastgoal import LONGEST
from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.adapters import is_adapted
from fastgoal.processing.data.pairs_dataset import MANIFEST
from fastgoal.processing.data.tokens import fitting_length
from fastgoal.processing.sentences import check_language

from .batches.rows import source_of
from .batches.streams import StreamData
from .evaluation.measures.intervals import Difference
from .evaluation.measures.retrieval import DIRECTIONS
from .evaluation.report import gain_rows
from .objectives import Objective
from .trained_weights import contrasts_rows
from .training_arguments import FastGoalTrainingArguments

_METRIC = re.compile(rf"(?P<prefix>\w+?)_(?:{'|'.join(DIRECTIONS)})_(?P<name>.+)")
LARGE_BATCH = 128
"""Number of pairs from which on a contrastive loss is not called small."""


@dataclass(frozen=True)
class TrainingRun:
    """The values of a training that its first lines and its model card describe.

    Attributes:
        args: The arguments, as given.
        objective: The objective with the loss weights in use.
        is_sigmoid: Whether the contrastive losses are sigmoid losses.
        max_logit_scale: Upper bound of the logit scale, 0 for none.
        model: The model, not wrapped.
        train_dataset: What it is trained on.
        eval_dataset: What it is evaluated on, or None.
        base_model: Hub id or folder of the model that the training started from, where it is known.
        caption_lengths: Number of tokens of each training caption, where they were counted.
        seconds_before: Wall-clock time of the training before it was resumed.
    """

    args: FastGoalTrainingArguments
    objective: Objective
    is_sigmoid: bool
    max_logit_scale: float
    model: Any
    train_dataset: Any
    eval_dataset: Any = None
    base_model: str | None = None
    caption_lengths: Sequence[int] | None = None
    seconds_before: float = 0.0


def start_lines(
    run: TrainingRun, devices: str, steps: int, steps_per_epoch: int = 0, caption_lengths: Sequence[int] = ()
) -> str:
    """Describe a training that is about to start, a name and a value on each line.

    Args:
        run: The training.
        devices: What it runs on, as `parallel.strategy.describe` puts it.
        steps: Number of optimizer steps.
        steps_per_epoch: Number of optimizer steps of an epoch; 0 if it is not known.
        caption_lengths: Number of tokens of captions before they are truncated, of all or of a sample.
    """
    args, objective, data = run.args, run.objective, run.train_dataset
    terms = " + ".join(f"{weight:g} x {label}" for label, weight in objective.labeled_weights.items())
    values = {
        "objective": f"{objective.name} (recipe {args.recipe}): {terms}",
        "data": _describe_data(run.train_dataset),
        "captions": describe_truncation(caption_lengths, text_positions(run.model), has_length(data) and len(data)),
        "evaluation": _describe_evaluation(run),
        "model": _describe_model(run),
        "steps": f"{steps:,}{_describe_epochs(run, steps, steps_per_epoch)}, learning rate {args.learning_rate:g}",
        "runs on": devices,
        "saved in": _describe_output(args),
        "hint": small_batch_hint(run),
    }
    return "\n".join(f"{name:<11} {value}" for name, value in values.items() if value)


def describe_truncation(lengths: Sequence[int], limit: int, rows: int = 0) -> str:
    """Say how many captions are truncated, and which text length would hold 99 % of them.

    Args:
        lengths: Number of tokens of captions before they are truncated.
        limit: Number of tokens that the model reads.
        rows: Number of captions of which `lengths` may be a sample.

    Returns:
        One line; empty if no caption is truncated.
    """
    beyond = sum(length > limit for length in lengths)
    if not beyond:
        return ""
    captions = f"{'a sample of ' if len(lengths) < rows else ''}{len(lengths):,}"
    have, are = ("has", "is") if beyond == 1 else ("have", "are")
    line = f"{beyond:,} of {captions} {have} more than {limit} tokens and {are} truncated"
    if (fitting := fitting_length(lengths)) > LONGEST:
        held = sum(length <= LONGEST for length in lengths) / len(lengths)
        return f"{line}; max_text_length {LONGEST}, the maximum, holds {100 * held:.1f} %"
    return f"{line}; max_text_length {fitting} holds 99 %" if fitting > limit else line


def end_lines(
    output: str,
    metrics: dict[str, float],
    data: str | None,
    adapted: bool,
    gains: Mapping[str, Difference] | None = None,
) -> str:
    """Say where the model is, what the last evaluation measured, and which command comes next.

    Args:
        output: Folder of the model.
        metrics: Metrics of the last evaluation, recalls in percent; empty without one.
        data: Dataset of the evaluation.
        adapted: Whether the folder holds an adapter.
        gains: What the training gained and lost, by measure.
    """
    folder = shlex.quote(str(output))
    lines = [f"{'The adapter' if adapted else 'The model'} is in {output}. See README.md there for how it was trained."]
    recalls = [metrics.get(f"eval_{direction}_R@1") for direction in ("text_to_image", "image_to_text")]
    if None not in recalls:
        lines.append("R@1 text to image {:.1f} %, image to text {:.1f} %, on {}.".format(*recalls, data))  # type: ignore[str-format]
    for measure, base, tuned, difference, interval, verdict in gain_rows(gains or {}):
        lines.append(f"{measure}: {base} % before, {tuned} % after, {difference} points ({interval}): {verdict}.")
    lines.append(f"Next: fastgoal evaluate --model {folder} --data {shlex.quote(data or 'TEST-DATA')}")
    if adapted:
        lines.append(f"      fastgoal merge {folder} --output MODEL")
    return "\n".join(lines)


def log_text(logs: Mapping[str, Any]) -> str:
    """Return a line of the log: an evaluation as a small table, other values as `transformers.Trainer` shows them."""
    matches = [match for name in logs if (match := _METRIC.fullmatch(name))]
    if not matches:
        values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in logs.items()}
        values.pop("total_flos", None)
        return str(values)
    prefix = matches[0]["prefix"]
    names = [*dict.fromkeys(match["name"] for match in matches if match["prefix"] == prefix)]
    head = [f"epoch {logs['epoch']:.4g}" if "epoch" in logs else "", *(name.replace("_", " ") for name in names)]
    rows = [head]
    for direction in DIRECTIONS:
        cells = [logs.get(f"{prefix}_{direction}_{name}") for name in names]
        rows.append([direction.replace("_", " "), *("-" if cell is None else f"{cell:.1f}" for cell in cells)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    parts = {name.removeprefix(f"{prefix}_loss_"): value for name, value in logs.items() if f"{prefix}_loss_" in name}
    if f"{prefix}_loss" in logs:
        of_parts = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in parts.items())
        lines.append(f"loss {logs[f'{prefix}_loss']:.4g}" + (f" ({of_parts})" if parts else ""))
    return "\n".join([prefix, *lines] if prefix != "eval" else lines)


def pairs_of(folder: str) -> int | None:
    """Return the number of pairs in a dataset that `fastgoal pairs` wrote, None for other data."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((Path(folder) / MANIFEST).read_bytes())["summary"]["pairs"])
    return None


def language_of(folder: str) -> str | None:
    """Return the language of the captions in a dataset that `fastgoal pairs` wrote, None for other data."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        settings = json.loads((Path(folder) / MANIFEST).read_bytes())["settings"]
        return check_language(settings.get("language", "en"))
    return None


def _describe_data(data: Any) -> str:
    if isinstance(data, StreamData):
        return f"{public_name(data.source.name)}, streamed" + (f": {count(data.rows, 'image')}" if data.rows else "")
    rows = count(len(data), "image") if isinstance(data, Sized) else "data of unknown length"
    source = source_of(data)
    if source is None:
        return rows
    pairs = pairs_of(source.name) if len(data) == len(source) else None
    return f"{public_name(source.name)}: {rows}" + ("" if pairs is None else f", {count(pairs, 'pair')}")


def _describe_evaluation(run: TrainingRun) -> str:
    if run.eval_dataset is None:
        return "none"
    times = {"epoch": "every epoch", "steps": f"every {run.args.eval_steps or 0:g} steps"}
    first = "before the first step and " if run.args.eval_on_start else ""
    then = times.get(IntervalStrategy(run.args.eval_strategy), "at the end")
    return f"{_describe_data(run.eval_dataset)}, {first}{then}"


def _describe_model(run: TrainingRun) -> str:
    model = run.model
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    base = f"{public_name(run.base_model)}, " if run.base_model else ""
    share = "all" if trained == total else f"{trained / 1e6:.2f} M"
    adapter = " as an adapter" if is_adapted(model) else ""
    length, before = text_positions(model), getattr(model, "stretched_from", None)
    stretched = f" (stretched from {before}: worse than its base until it is trained)" if before else ""
    return f"{base}{total / 1e6:.1f} M weights, {share} trained{adapter}; reads {length} tokens{stretched}"


def _describe_epochs(run: TrainingRun, steps: int, steps_per_epoch: int) -> str:
    rows = len(run.train_dataset) if has_length(run.train_dataset) else 0
    if not rows or not steps_per_epoch:
        return ""
    epochs = f"{steps / steps_per_epoch:.3g}"
    return f" ({epochs} epoch{'s' if epochs != '1' else ''} of {count(rows, 'image')})"


def small_batch_hint(run: TrainingRun) -> str:
    """Say which setting helps if a contrastive loss sees few pairs at once, although the data have more."""
    args, batch = run.args, run.args.train_batch_size * run.args.world_size
    rows = len(run.train_dataset) if has_length(run.train_dataset) else LARGE_BATCH
    if not 1 < batch < LARGE_BATCH <= rows or not contrasts_rows(run.objective.weights):
        return ""
    larger, at_once = -(-LARGE_BATCH // args.world_size), args.mini_batch_size or args.train_batch_size
    return (
        f"a pair is contrasted with only {batch - 1} others; `per_device_train_batch_size={larger}` with "
        f"`mini_batch_size={at_once}` contrasts it with more in about the same memory"
    )


def _describe_output(args: FastGoalTrainingArguments) -> str:
    steps = f" every {args.save_steps:g} steps" if args.save_steps else ""
    times = {
        "epoch": f", a checkpoint every epoch{' and' if steps else ''}{steps}",
        "steps": f", a checkpoint{steps}",
        "best": ", a checkpoint of the best evaluation",
    }
    return f"{args.output_dir}{times.get(SaveStrategy(args.save_strategy), '')}"
