"""The commands of a row with all values filled in, and which of them are done."""

import hashlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from fastgoal.processing.files import WORK_FOLDER, hold_folder, write_text

from .rows import ReproductionRow

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
STARTED, FINISHED = "started\n", "finished\n"


@dataclass(frozen=True)
class Plan:
    """A row that is measured with given data.

    Attributes:
        row: The row.
        data: Folder with one folder per dataset.
        output: Folder of all rows: models and pairs, which rows share, and one folder per row.
        base: Base model, a folder or a Hub id.
        detector: Detector, a folder or a Hub id; None if the row needs none.
        train_data: Training data of rows that cannot download theirs.
        commands: The words of each command.
    """

    row: ReproductionRow
    data: Path
    output: Path
    base: str
    detector: str | None
    train_data: str | None
    commands: list[list[str]]

    @property
    def folder(self) -> Path:
        """The folder of the row's report and page."""
        return self.output / self.row.name

    def command(self, name: str) -> list[str] | None:
        """Return the words of the first `fastgoal NAME` command, or None."""
        return next((words for words in self.commands if words[1] == name), None)


def plan(
    row: ReproductionRow,
    data: Path,
    output: Path,
    base: str | None = None,
    detector: str | None = None,
    train_data: str | None = None,
    num_processes: int | None = None,
    mini_batch_size: int | None = None,
) -> Plan:
    """Fill in the commands of a row.

    Args:
        row: The row.
        data: Folder with one folder per dataset.
        output: Output folder; rows that are measured in the same one share pairs and models.
        base: Base model in place of the row's, such as a local copy.
        detector: Detector in place of the row's.
        train_data: Training data of rows with GLIT100k, which is not public.
        num_processes: Number of training processes; they share the batch of the row.
        mini_batch_size: Pairs per forward pass of a training, with gradient caching; the loss stays that of the batch.

    Raises:
        ValueError: An argument is missing or does not belong to the row.
    """
    for name, value, needed in (
        ("train_data", train_data, row.needs_train_data),
        ("detector", detector, row.detector is not None),
        ("num_processes", num_processes, row.batch_size is not None),
        ("mini_batch_size", mini_batch_size, row.batch_size is not None),
    ):
        if value is not None and not needed:
            raise ValueError(f"`{name}` must be left out for the row {row.name}, which does not use it, got {value!r}.")
    if row.needs_train_data and train_data is None:
        raise ValueError(
            f"`train_data` is required for the row {row.name}: GLIT100k is not public. Name your own images with long "
            "captions, for example a folder that `fastgoal caption` wrote."
        )
    batch_size, processes = row.batch_size or 0, num_processes or 1
    if batch_size % processes:
        raise ValueError(f"`num_processes` must divide the batch size of the row, {batch_size}, got {processes}.")
    base, detector = base or row.base, detector or row.detector
    values = {
        "data": str(data),
        "output": str(output),
        "base": base,
        "base_file": str(weights_file(base)),
        "detector": detector,
        "train_data": train_data,
        "per_device_batch_size": batch_size // processes,
    }
    commands = [[word.format(**values) for word in shlex.split(command)] for command in row.commands]
    for words in commands:
        if words[1] == "train":
            words += ["--num_processes", str(num_processes)] if num_processes else []
            words += ["--mini_batch_size", str(mini_batch_size)] if mini_batch_size else []
    return Plan(row, data, output, base, detector, train_data, commands)


def local_folder(name: str) -> Path | None:
    """Return the folder of a model: itself, or its copy in the cache of the Hub; None without a copy."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def weights_file(name: str) -> Path:
    """Return the file of a model's weights; the name of one if there is none."""
    folder = local_folder(name) or Path(name)
    return next((folder / file for file in WEIGHTS if (folder / file).is_file()), folder / WEIGHTS[0])


def run_commands(plan: Plan, run: Callable[[list[str]], int], say: Callable[[str], None]) -> int:
    """Run the commands of a plan that are not done, in order, until one fails.

    A killed command continues when it runs again: `pairs` and `train` resume, and `convert` and `evaluate` write their
    result whole or not at all.

    Args:
        plan: The plan.
        run: Runs the words of a command and returns its exit code.
        say: Receives a line before each command.

    Returns:
        The exit code of the command that failed, or 0.
    """
    work, has_changed = plan.output / WORK_FOLDER, False
    with hold_folder(work):
        for words in plan.commands:
            record = work / f"reproduce-{hashlib.sha256(shlex.join(words).encode()).hexdigest()[:16]}.txt"
            if not has_changed and _is_done(words, record):
                say(f"Done already: {shlex.join(words)}")
                continue
            say(f"$ {shlex.join(words)}")
            write_text(record, STARTED, work)
            if code := run(words):
                return code
            write_text(record, FINISHED, work)
            has_changed = has_changed or words[1] != "pairs"
    return 0


def _is_done(words: list[str], record: Path) -> bool:
    """Return whether a command is done; `record` says whether it started and finished."""
    command, state = words[1], record.read_text(encoding="utf-8") if record.is_file() else ""
    if command == "pairs":  # it finds out by itself, and repairs damaged files
        return False
    result = Path(words[words.index("--output_dir" if command == "train" else "--output") + 1])
    is_there = result.is_file() or (result / "config.json").is_file()
    # The folder of `convert` appears complete, and is refused afterwards.
    return is_there and state in ((STARTED, FINISHED) if command == "convert" else (FINISHED,))
