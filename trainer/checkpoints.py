"""Checkpoints of a training: what makes one complete, the newest that is, what it was trained with, and what an output
folder must not hold when a training begins."""

import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from fastgoal.processing.data.sources import is_source
from fastgoal.processing.files import sweep_drafts, write_json

logger = logging.get_logger(__name__)

SETTINGS = "fastgoal_training.json"
# What the optimizer's state is called, by who saved it: one process, FSDP, DeepSpeed.
OPTIMIZERS = (OPTIMIZER_NAME, "optimizer.bin", "optimizer_*", "global_step*")


def checkpoints(output: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints of a training, complete or not, the newest first."""
    found = []
    for path in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if output.is_dir() else ():
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdigit() and path.is_dir():
            found.append((int(step), path))
    return sorted(found, reverse=True)


def newest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint, None where there is none; a warning says what was passed over, and why."""
    for _, path in checkpoints(output):
        reason = damage(path)
        if reason is None:
            return path
        logger.warning(f"{path} is passed over: {reason}.")
    return None


def require_checkpoint(path: Path) -> Path:
    """The same folder; a `ValueError` that says what is wrong with it where it is no complete checkpoint."""
    reason = damage(path)
    if reason is not None:
        older = [str(other) for _, other in checkpoints(path.parent) if other != path and damage(other) is None]
        way_out = f"Take {older[0]}" if older else "Name another"
        raise ValueError(
            f"the checkpoint {path} cannot be gone on with: {reason}. {way_out}, or with --resume_from_checkpoint true "
            "the newest complete one of the output folder."
        )
    return path


def damage(path: Path) -> str | None:
    """What a folder lacks of a complete checkpoint, in words; None where nothing is wrong."""
    if not path.is_dir():
        return "it is no folder"
    try:
        step_of(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{TRAINER_STATE_NAME} cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file.name} is cut off or damaged ({' '.join(str(error).split())})"
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*")):
        return "it has no weights"
    if not any(any(path.glob(name)) for name in OPTIMIZERS):
        return "it has no state of the optimizer (save_only_model leaves it out)"
    for name in (OPTIMIZER_NAME, SCHEDULER_NAME):
        if (path / name).is_file() and not zipfile.is_zipfile(path / name):
            return f"{name} is cut off or damaged"
    return None


def step_of(path: Path) -> int:
    """The step that a checkpoint was saved at."""
    return int(json.loads((path / TRAINER_STATE_NAME).read_bytes())["global_step"])


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keep with a checkpoint what it was trained with, for `refuse_other_settings`."""
    write_json(folder / SETTINGS, dict(settings))


def refuse_other_settings(folder: Path, settings: Mapping[str, Any], allowed: bool) -> None:
    """Raise `ValueError` where a checkpoint was trained on other data or with other settings; warn where allowed.

    One that does not say, because another program or an older version saved it, is taken as it is.
    """
    try:
        found = dict(json.loads((folder / SETTINGS).read_bytes()))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / SETTINGS} cannot be read ({error}); take another checkpoint.") from None
    now = json.loads(json.dumps(settings))
    # Of a setting that an older version did not keep nothing is known.
    both = [name for name in now if name in found]
    changed = [f"{name} was {found[name]!r} and is now {now[name]!r}" for name in both if found[name] != now[name]]
    if not changed:
        return
    message = f"{folder} is of a training with other settings: {'; '.join(changed)}."
    if not allowed:
        raise ValueError(
            f"{message} Give the same ones, start anew in another --output_dir, or go on all the same with "
            "--ignore_resume_mismatch true."
        )
    logger.warning(f"{message} They change now.")


def refuse_output(
    output: Path, given: Mapping[str, str | None], overwrite: bool, checkpoint: Path | None, resume: bool
) -> None:
    """Raise `ValueError` where a training would write over what somebody still wants.

    Args:
        output: The folder to write.
        given: The model and the data of this training by the names of their options; those that are folders count.
        overwrite: Whether the user said to write over what is there; its old checkpoints are then deleted.
        checkpoint: What is gone on with: then the model in the folder is this training's own.
        resume: Whether the user said to go on, if only there were a complete checkpoint.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output_dir {output} is a file; name a folder.")
    way_out = "Name another --output_dir, or add --overwrite_output_dir true to write over it."
    place, old = os.path.realpath(output), [path for _, path in checkpoints(output)]
    for option, name in given.items():
        if name is None or not os.path.exists(name):
            continue
        real = os.path.realpath(name)
        if real == place and not overwrite:
            raise ValueError(f"--output_dir {output} is the folder of --{option}. {way_out}")
        if overwrite and checkpoint is None and any(_is_inside(real, path) for path in old):
            raise ValueError(
                f"--overwrite_output_dir deletes the old checkpoints of {output}, and --{option} {name} is in one of "
                "them. Name another --output_dir."
            )
    if overwrite or checkpoint is not None or not output.is_dir():
        return
    holds = ""
    if old and not resume:
        holds = f"checkpoints of a training ({old[0].name})"
        way_out += " To go on with that training: --resume_from_checkpoint true."
    elif (output / "config.json").exists() or any(output.glob("*.safetensors")):
        holds = "a model"
    elif is_source(output):
        holds = "a dataset"
    if holds:
        raise ValueError(f"--output_dir {output} holds {holds}. {way_out}")


def sweep(output: Path, checkpoints_too: bool = False) -> None:
    """Take away what a training that was killed left half saved, and where it is asked for all its checkpoints."""
    sweep_drafts(output)
    for _, path in checkpoints(output) if checkpoints_too else ():
        shutil.rmtree(path)


def _is_inside(real: str, folder: Path) -> bool:
    return Path(real).is_relative_to(os.path.realpath(folder))
