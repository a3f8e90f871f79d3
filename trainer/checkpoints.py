"""Checkpoints of a training: which are complete, what they were trained with, and what an output folder may hold."""

import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from fastgoal.processing.data.forms.registry import is_source
from fastgoal.processing.files import LOCK, WORK_FOLDER, hold_folder, sweep_drafts, write_json

logger = logging.get_logger(__name__)

SETTINGS = "fastgoal_training.json"
FORMAT = 1  # of that file
SECONDS = "seconds"  # in the same file, not compared
ROWS_AT_ONCE = "rows at once"  # the same
ROWS_NAMED = 8
OVERWRITE = "Name another `output_dir`, or set `overwrite_output_dir=True` to overwrite it"
# Names of the optimizer's state, as saved by one process, FSDP and DeepSpeed.
OPTIMIZERS = (OPTIMIZER_NAME, "optimizer.bin", "optimizer_*", "global_step*")
# A saved model replaces the weights of an earlier one in the same folder, and an adapter replaces a model.
WEIGHT_FILES = re.compile(
    r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|config\.json|handler\.py|"
    r"adapter_(config\.json|model\.safetensors)|fastgoal_base\.json"
)
# Messages of torch about a file that it could not write.
WRITE_FAILED = re.compile(r"PytorchStreamWriter|unexpected pos|write failed|No space left", re.IGNORECASE)


def checkpoints(output: Path) -> list[tuple[int, Path]]:
    """Return the steps and folders of all checkpoints of a training, complete or not, the newest first."""
    steps = []
    for path in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if output.is_dir() else ():
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdigit() and path.is_dir():
            steps.append((int(step), path))
    return sorted(steps, reverse=True)


def newest_checkpoint(output: Path) -> Path | None:
    """Return the newest complete checkpoint, None without one; warn about each that is skipped."""
    for _, path in checkpoints(output):
        reason = damage(path)
        if reason is None:
            return path
        logger.warning(f"{path} is skipped: {reason}.")
    return None


def require_checkpoint(path: Path) -> Path:
    """Return the same folder; raise `ValueError` if it is not a complete checkpoint."""
    reason = damage(path)
    if reason is not None:
        complete = [str(other) for _, other in checkpoints(path.parent) if other != path and damage(other) is None]
        way_out = f"Use {complete[0]}" if complete else "Name another checkpoint"
        raise ValueError(
            f"Cannot resume from {path}: {reason}. {way_out}, or set `resume_from_checkpoint=True` for the newest "
            "complete checkpoint of the output folder."
        )
    return path


def damage(path: Path) -> str | None:
    """Return why a folder is not a complete checkpoint; None if it is one."""
    if not path.is_dir():
        return "it is not a folder"
    try:
        step_of(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{TRAINER_STATE_NAME} cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
    for file in sorted(path.rglob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file.name} is truncated or damaged ({' '.join(str(error).split())})"
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*")):
        return "it has no weights"
    if not any(any(path.glob(name)) for name in OPTIMIZERS):
        return "it has no optimizer state (`save_only_model` leaves it out)"
    for name in (OPTIMIZER_NAME, SCHEDULER_NAME):
        if (path / name).is_file() and not zipfile.is_zipfile(path / name):
            return f"{name} is truncated or damaged"
    return None


def step_of(path: Path) -> int:
    """Return the step at which a checkpoint was saved."""
    return int(json.loads((path / TRAINER_STATE_NAME).read_bytes())["global_step"])


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write into a checkpoint what it was trained with, for `refuse_other_settings`."""
    write_json(folder / SETTINGS, {"format": FORMAT, **settings})


def note_of(folder: Path, name: str) -> float:
    """Return a number in the settings of a checkpoint, such as `SECONDS`; 0 if it is not there."""
    try:
        return float(json.loads((folder / SETTINGS).read_bytes())[name])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def refuse_other_settings(folder: Path, settings: Mapping[str, Any], allowed: bool) -> list[str]:
    """Raise `ValueError` if a checkpoint was trained on other data or with other settings; only warn if `allowed`.

    Checkpoints of other programs do not say, and are accepted. Returns the names of the settings that changed.
    """
    try:
        before = dict(json.loads((folder / SETTINGS).read_bytes()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / SETTINGS}: cannot be read ({error}). Use another checkpoint.") from None
    if before.get("format") != FORMAT:
        raise ValueError(
            f"{folder / SETTINGS}: `format` must be {FORMAT}, got {before.get('format')!r}. Resume with the version of "
            "fastgoal that wrote the checkpoint."
        )
    now = json.loads(json.dumps(settings))
    # A version that does not know a setting yet does not write it.
    names = [name for name in now if name in before and before[name] != now[name]]
    if not names:
        return []
    changed = "; ".join(f"`{name}` was {before[name]!r} and is now {now[name]!r}" for name in names)
    message = f"{folder} was trained with other settings: {changed}."
    if not allowed:
        raise ValueError(
            f"{message} Use the same settings, start a new training in another `output_dir`, or resume anyway with "
            "`ignore_resume_mismatch=True`."
        )
    logger.warning(f"{message} The training resumes with the new ones.")
    return names


def refuse_output(
    output: Path, given: Mapping[str, str | None], overwrite: bool, checkpoint: Path | None, resume: bool
) -> None:
    """Raise `ValueError` if a training would overwrite something that may still be needed.

    Args:
        output: The output folder.
        given: The model and datasets of the training by the names of their arguments; those that are folders count.
        overwrite: Whether the user allows overwriting; old checkpoints are then deleted.
        checkpoint: The checkpoint that the training resumes from; the model in the folder is then its own.
        resume: Whether the user asked to resume, even if there is no complete checkpoint.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"`output_dir` {output} is a file. Name a folder.")
    refuse_checkpoints(output, overwrite, checkpoint, resume)
    way_out = f"{OVERWRITE}."
    real_output, old = os.path.realpath(output), [path for _, path in checkpoints(output)]
    for argument, name in given.items():
        if name is None or not os.path.exists(name):
            continue
        real = os.path.realpath(name)
        if real == real_output and not overwrite:
            raise ValueError(f"`output_dir` {output} is the folder of `{argument}`. {way_out}")
        if overwrite and not is_in(output, checkpoint) and any(_is_inside(real, path) for path in old):
            raise ValueError(
                f"`overwrite_output_dir` deletes the old checkpoints of {output}, and `{argument}` {name} is in one of "
                "them. Name another `output_dir`."
            )
    if overwrite or checkpoint is not None or not output.is_dir():
        return
    contents = ""
    if (output / "config.json").exists() or any(output.glob("*.safetensors")):
        contents = "a model"
    elif is_source(output):
        contents = "a dataset"
    if contents:
        raise ValueError(f"`output_dir` {output} holds {contents}. {way_out}")


def refuse_checkpoints(output: Path, overwrite: bool, checkpoint: Path | None, resume: bool) -> None:
    """Raise `ValueError` if the output folder has checkpoints of another training, which this one would delete.

    Args:
        output: The output folder.
        overwrite: Whether the user allows to delete them.
        checkpoint: The checkpoint that the training resumes from. Those next to it are its own.
        resume: Whether the user asked to resume, even if there is no complete checkpoint.
    """
    old = checkpoints(output)
    if not old or overwrite or (resume if checkpoint is None else is_in(output, checkpoint)):
        return
    raise ValueError(
        f"`output_dir` {output} holds checkpoints of a training ({old[0][1].name}). {OVERWRITE}. To resume that "
        "training, set `resume_from_checkpoint=True`."
    )


def is_in(output: Path, checkpoint: Path | None) -> bool:
    """Return whether this is a checkpoint of the training in an output folder."""
    return checkpoint is not None and os.path.realpath(checkpoint.parent) == os.path.realpath(output)


@contextmanager
def hold_output(output: Path, is_first: bool = True) -> Iterator[None]:
    """Keep other trainings out of an output folder during the block; this process may hold it already.

    Delete what a killed training left half saved. A folder that is new and holds nothing after the block is deleted.
    Of several processes only the first one does this.

    Raises:
        ValueError: Another training writes the folder.
    """
    if not is_first:
        yield
        return
    is_new, work = not output.exists(), output / WORK_FOLDER
    try:
        with hold_folder(work, again=True):
            sweep_drafts(output)
            yield
    finally:
        if is_new and {path.name for path in output.rglob("*")} == {WORK_FOLDER, LOCK}:
            (work / LOCK).unlink()
            work.rmdir()
            output.rmdir()


def delete_checkpoints(output: Path) -> None:
    """Delete all checkpoints in an output folder."""
    for _, path in checkpoints(output):
        shutil.rmtree(path)


@contextmanager
def saving_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into an `OSError` that says what could not be saved and what is still there."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not WRITE_FAILED.search(str(error)):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(
            f"Could not save {folder}: {reason}. Earlier checkpoints are complete. Free space (or allow writing) and "
            "resume with `resume_from_checkpoint=True`."
        ) from error


def not_finite_message(
    step: int, parts: Mapping[str, float], names: Sequence[str], outputs: Mapping[str, Any], output: Path
) -> str:
    """Explain a loss that is NaN or infinite: its step, its parts and the rows.

    Args:
        step: Number of the step, from 1.
        parts: The loss and its parts by name.
        names: Names of the rows of the batch.
        outputs: Outputs of the model, where they are known: rows with bad embeddings are then singled out.
        output: Output folder of the training.
    """
    wrong = {name: value for name, value in parts.items() if not math.isfinite(value)}
    which = ", ".join(f"{name} {value}" for name, value in wrong.items() if name != "loss" or len(wrong) == 1)
    bad = _rows_not_finite(names, outputs)
    rows = bad or list(names)
    shown = ", ".join(rows[:ROWS_NAMED]) + (f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else "")
    kept = checkpoints(output)
    return (
        f"The loss of step {step} is NaN or infinite ({which}). "
        f"{'Rows with such embeddings' if bad else 'Rows of the batch'}: {shown}. The step is not saved; "
        f"{f'the last checkpoint is {kept[0][1]}' if kept else 'there is no checkpoint yet'}. Lower `learning_rate`, "
        "use `bf16` instead of `fp16`, or look at these rows."
    )


def _rows_not_finite(names: Sequence[str], outputs: Mapping[str, Any]) -> list[str]:
    """Return the names of the rows with embeddings that are NaN or infinite."""
    bad = torch.zeros(len(names), dtype=torch.bool)
    for name, value in outputs.items():
        if name.endswith("_embeds") and value.ndim == 2 and len(value) == len(names):
            bad |= ~torch.isfinite(value.detach().float()).all(dim=1).cpu()
    return [name for name, wrong in zip(names, bad.tolist(), strict=True) if wrong]


def _is_inside(real: str, folder: Path) -> bool:
    return Path(real).is_relative_to(os.path.realpath(folder))
