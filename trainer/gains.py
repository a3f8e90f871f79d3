"""What a training gained and lost: the model and its base measured on the protocols of `eval_also`, for the card."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastgoal.processing.checkpoints.load import load_model
from fastgoal.processing.files import write_inside

from .evaluation.measure import Measured, OpenTest, measure_all, open_also
from .evaluation.measures.intervals import Difference, Interval
from .evaluation.options import EvaluationOptions
from .evaluation.report import select_gains
from .training_arguments import FastGoalTrainingArguments

FILE = "gained_and_lost.json"


def open_gains(entries: Sequence[str] | None, args: FastGoalTrainingArguments) -> dict[str, OpenTest]:
    """Open the data of entries `LABEL=PROTOCOL:PATH` before a training, by their labels.

    Raises:
        ValueError: An entry is wrong, or its data are not those of the protocol.
    """
    device = "cpu" if args.use_cpu else "auto"
    options = EvaluationOptions(device=device, batch_size=args.per_device_eval_batch_size, seed=args.seed)
    return open_also(entries, options, "eval_also")


def measure_gains(folder: str | os.PathLike[str], base: str, tests: Mapping[str, OpenTest]) -> dict[str, Difference]:
    """Measure a saved model and its base, each loaded once, and write the differences into the folder of the model.

    Returns:
        The differences by measure, with the base as `theirs`.
    """
    measured: list[dict[str, Measured]] = []
    for name, parameter in ((os.fspath(folder), "output_dir"), (base, "model")):
        options = next(iter(tests.values())).options
        model, processor = load_model(name, options.device, options.dtype, parameter)
        measured.append(measure_all(model, processor, tests, name, progress=True))
    tuned, before = measured
    gains = select_gains({label: tuned[label].compared_with(before[label]) for label in tests})
    values = {name: {**dataclasses.asdict(value), "verdict": value.verdict} for name, value in gains.items()}
    write_inside(folder, FILE, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
    return gains


def read_gains(folder: str | os.PathLike[str]) -> dict[str, Difference]:
    """Return what `measure_gains` wrote into a folder; empty if it wrote nothing."""
    file = Path(folder) / FILE
    if not file.is_file():
        return {}
    gains = {}
    for name, values in json.loads(file.read_bytes()).items():
        known = {field.name: values[field.name] for field in dataclasses.fields(Difference)}
        interval = known["interval"]
        gains[name] = Difference(**{**known, "interval": None if interval is None else Interval(*interval)})
    return gains
