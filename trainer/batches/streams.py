"""Rows from a stream: shuffled in windows, without end, and resumed exactly at the row after a checkpoint.

Each worker of each process reads its own shards in an order that depends on seed and epoch, and shuffles a window of
rows at a time. Every batch carries its position in the stream, so the rows that have been trained on are known exactly,
however far ahead the workers have read.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info
from transformers import TrainingArguments
from transformers.utils import logging

from fastgoal.processing.data.forms.registry import open_stream
from fastgoal.processing.data.streams import StreamSource
from fastgoal.processing.files import write_json

from .rows import TrainingRow

logger = logging.get_logger(__name__)

WINDOW = 1000


@dataclass(frozen=True)
class Position:
    """A row's position in the endless sequence of rows of a worker.

    Attributes:
        worker: The number of the worker.
        epoch: The epoch.
        window: Number of windows before the row's in this epoch.
        state: State of the stream at the start of the window; None at the start of the epoch.
        row: Number of rows before it in the shuffled window.
    """

    worker: int
    epoch: int = 0
    window: int = 0
    state: dict[str, Any] | None = None
    row: int = 0


class StreamData(IterableDataset):
    """Rows for `FastGoalCollator` from a stream, epoch after epoch, without end.

    Args:
        source: A `StreamSource`, or a name that `open_stream` takes.
        window: Number of rows that a worker holds and shuffles, with undecoded images. Shards are shuffled anyway.

    Attributes:
        rows: The number of rows; None if it is not known.
    """

    def __init__(self, source: str | StreamSource, window: int = WINDOW):
        self.source = open_stream(source) if isinstance(source, str) else source
        self.rows = self.source.rows
        self.window = window
        self.rank, self.processes, self.seed, self.workers = 0, 1, 0, 1
        self._starts: dict[int, Position] = {}  # by worker
        self._turn = 0  # the worker that makes the next batch
        self._trained: dict[int, Sequence[Position]] = {}  # by worker, of its last batch: see `note`

    def steps(self, args: TrainingArguments) -> int:
        """Return the number of steps in `num_train_epochs` epochs.

        Raises:
            ValueError: The number of rows is not known.
        """
        if self.rows is None:
            raise ValueError(
                f"the number of rows of '{self.source.name}' is not known: set `max_steps` instead of "
                "`num_train_epochs`."
            )
        batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        return max(1, round(args.num_train_epochs * self.rows / batch_size))

    def __iter__(self) -> Iterator[TrainingRow]:
        info = get_worker_info()
        start = Position(0 if info is None else info.id)
        position = self._starts.get(start.worker, start)
        stream = split_dataset_by_node(self.source.dataset, rank=self.rank, world_size=self.processes)
        while True:
            epoch = position.epoch
            # With epoch 0 the stream would not shuffle its shards.
            stream.set_epoch(1 + (1_000_003 * self.seed + epoch) % 2**31)
            if position.state is not None:
                stream.load_state_dict(position.state)
            rows = iter(stream)
            while window := list(islice(rows, self.window)):
                following = Position(start.worker, epoch, position.window + 1, stream.state_dict())
                random = np.random.default_rng([self.seed % 2**32, epoch, position.window])
                for index, chosen in enumerate(random.permutation(len(window))[position.row :], position.row):
                    row = self.source.row(0, dict(window[chosen]))
                    yield TrainingRow.of(row, epoch=epoch, position=replace(position, row=index))
                position = following
            if position == start:
                raise ValueError(f"'{self.source.name}' has no rows for worker {start.worker} of process {self.rank}.")
            position = Position(start.worker, epoch + 1)

    def prepare(self, args: Any, needs_pairs: bool) -> None:
        """Take this process's part of the shards, and the seed of the order of rows.

        Args:
            args: The `FastGoalTrainingArguments`.
            needs_pairs: Whether the objective trains on local pairs.

        Raises:
            ValueError: The arguments need all rows before the first step, or there are no local pairs.
        """
        if args.hard_negatives:
            raise ValueError(
                "`hard_negatives` needs all rows before the first step, which a stream does not have. Set "
                f"`hard_negatives=false` (the recipe {args.recipe} may set it), or train without `streaming`."
            )
        if args.train_sampling_strategy != "random":
            raise ValueError(
                f"`train_sampling_strategy={args.train_sampling_strategy}` needs rows that are read by number, which a "
                "stream does not have. Leave it out, or train without `streaming`."
            )
        if needs_pairs and "pairs" not in self.source.columns:
            raise ValueError(
                f"'{self.source.name}' has no column 'pairs', and this objective trains on local pairs. Make them with "
                "`fastgoal pairs`, or train with the objective global or sparc, which need none."
            )
        self.rank, self.processes, self.seed = args.process_index, args.world_size, args.order_seed
        shards = self.source.dataset.num_shards
        own = shards // self.processes if shards % self.processes == 0 else shards
        if own == shards and self.processes > 1:
            logger.warning(
                f"{shards} shards cannot be divided evenly among {self.processes} processes: each process reads all of "
                "them and uses a part of the rows."
            )
        self.workers = max(1, min(args.dataloader_num_workers, own))

    def begin(self, checkpoint: str | None) -> None:
        """Start at the first row, or after the last batch of a checkpoint.

        Raises:
            ValueError: The checkpoint has no state of the stream, or was saved with other numbers of processes or
                workers.
        """
        self._turn, self._trained, self._starts = 0, {}, {}
        if checkpoint is None:
            return
        path = Path(checkpoint) / f"stream_{self.rank}.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path}, the state of the stream, cannot be read ({error}). Resume from an older checkpoint, or start "
                "the stream over with `ignore_data_skip=true`."
            ) from None
        if (state["processes"], state["workers"]) != (self.processes, self.workers):
            raise ValueError(
                f"the checkpoint was saved with {state['processes']} processes and {state['workers']} workers, this "
                f"training has {self.processes} and {self.workers}. Resume with the same numbers (see "
                "`dataloader_num_workers`), or start the stream over with `ignore_data_skip=true`."
            )
        self._turn = state["turn"]
        for values in state["trained"]:
            first, following = (Position(**value) for value in values)
            self._trained[first.worker] = (first, following)
            # A loader starts with worker 0. Workers before the one in turn repeat their last batch, which is skipped.
            self._starts[first.worker] = first if first.worker < self._turn else following

    def save(self, checkpoint: Path) -> None:
        """Write the state of this process's training into a checkpoint."""
        trained = [[asdict(position) for position in positions] for positions in self._trained.values()]
        state = {"processes": self.processes, "workers": self.workers, "turn": self._turn, "trained": trained}
        write_json(checkpoint / f"stream_{self.rank}.json", state)

    def loader(self, args: TrainingArguments, collator: Any, device: torch.device) -> DataLoaderShard:
        """Return the data loader of this process. Its batches have a `position` for `note`."""
        workers = min(args.dataloader_num_workers, self.workers)
        options = {"prefetch_factor": args.dataloader_prefetch_factor, "persistent_workers": True} if workers else {}
        return DataLoaderShard(
            self,
            device=device,
            skip_batches=self._turn,
            batch_size=args.train_batch_size,
            collate_fn=PositionCollator(collator),
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory,
            **options,
        )

    def note(self, positions: Sequence[Position]) -> None:
        """Record that a batch has been trained on: the positions of its first row and of the row after its last."""
        worker = positions[0].worker
        self._trained[worker] = positions
        self._turn = (worker + 1) % self.workers


class PositionCollator:
    """Add the `position` for `StreamData.note` to the batches of a collator."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, rows: Sequence[TrainingRow]) -> dict[str, Any]:
        first, last = rows[0].position, rows[-1].position
        return {**self.collator(rows), "position": (first, replace(last, row=last.row + 1))}
