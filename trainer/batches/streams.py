"""Batches from a stream: shuffled in windows, epoch after epoch, and resumed exactly at the row after a checkpoint.

Each worker of each process reads its own shards in an order that depends on seed and epoch, and shuffles a window of
rows at a time. Every batch carries the state of the stream after it, so the rows that have been trained on are known
exactly, however far ahead the workers have read.

With one process and a known number of rows, each row comes exactly once an epoch. Several processes must make the same
number of full batches, and their shards may differ in size. So their workers read on without end, and an epoch is a
number of batches.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
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
    """A row's position in the rows of a worker.

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


@dataclass(frozen=True)
class StreamState:
    """What the batches so far have used of a stream.

    Attributes:
        epoch: The epoch; 0 where workers read on without end.
        turn: The worker that makes the next batch.
        following: The position after the last row of the last batch of each worker.
        rest: Number of batches that were made of the last rows of all workers, see `StreamData`.
    """

    epoch: int = 0
    turn: int = 0
    following: Mapping[int, Position] = field(default_factory=dict)
    rest: int = 0


class StreamData(IterableDataset):
    """Batches of rows for `FastGoalCollator` from a stream.

    Workers make full batches. At the end of an epoch each may have fewer rows left than a batch takes. The main process
    makes the last batches of these.

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
        self.rank, self.processes, self.seed, self.workers, self.batch_size = 0, 1, 0, 1, 1
        self.is_exact = self.rows is not None  # whether an epoch is one pass over all rows
        self.drops_last = False
        self._start = StreamState()  # of this training
        self._trained = self._start  # after the last batch that was trained on: see `note`
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # workers live longer than an epoch

    def __len__(self) -> int:
        """Return the number of rows. Raise `TypeError` if it is not known."""
        if self.rows is None:
            raise TypeError("the number of rows of this stream is not known")
        return self.rows

    def batches_per_epoch(self, args: TrainingArguments) -> int:
        """Return the number of batches of each process in an epoch; in the whole training if rows are not counted."""
        if self.rows is None:
            return args.max_steps * args.gradient_accumulation_steps
        batch_size = args.train_batch_size * args.world_size
        return max(1, self.rows // batch_size if args.dataloader_drop_last else -(-self.rows // batch_size))

    def __iter__(self) -> Iterator[list[TrainingRow]]:
        """Yield the batches of a worker, the last one of an epoch perhaps with fewer rows."""
        info, epoch = get_worker_info(), int(self._epoch)
        start = Position(0 if info is None else info.id, epoch)
        if epoch == self._start.epoch:
            # A loader starts with worker 0. Workers before the one in turn have made their batch of this round.
            if start.worker < self._start.turn:
                yield []
            start = self._start.following.get(start.worker, start)
        rows = self._rows(start)
        while batch := list(islice(rows, self.batch_size)):
            yield batch

    def _rows(self, position: Position) -> Iterator[TrainingRow]:
        """Yield the rows of a worker from a position on, to the end of the epoch or without end."""
        stream = split_dataset_by_node(self.source.dataset, rank=self.rank, world_size=self.processes)
        while True:
            start, epoch = position, position.epoch
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
            if self.is_exact:
                return
            if position == Position(start.worker, epoch):
                raise ValueError(f"'{self.source.name}' has no rows for worker {start.worker} of process {self.rank}.")
            position = Position(start.worker, epoch + 1)

    def _batches(self, loader: DataLoader, collator: Any) -> Iterator[dict[str, Any]]:
        """Yield the batches of this process, epoch after epoch. Each has a `position` for `note`."""
        state = self._start
        while True:
            self._epoch.fill_(state.epoch)
            rest: list[TrainingRow] = []
            for batch in loader:
                if isinstance(batch, list):  # fewer rows than a batch takes
                    rest += batch
                    continue
                position = batch["position"]
                state = replace(
                    state,
                    turn=(position.worker + 1) % self.workers,
                    following={**state.following, position.worker: position},
                )
                yield {**batch, "position": state}
            rest.sort(key=lambda row: row.position.worker)
            for number in range(state.rest, -(-len(rest) // self.batch_size)):
                rows = rest[number * self.batch_size :][: self.batch_size]
                if len(rows) < self.batch_size and self.drops_last:
                    break
                state = replace(state, rest=number + 1)
                yield {**collator(rows), "position": state}
            if state == StreamState(state.epoch):
                raise ValueError(f"'{self.source.name}' has no rows.")
            state = StreamState(state.epoch + 1)

    def prepare(self, args: Any, needs_pairs: bool) -> None:
        """Take this process's part of the shards, and the seed of the order of rows.

        Args:
            args: The `FastGoalTrainingArguments`.
            needs_pairs: Whether the objective trains on local pairs.

        Raises:
            ValueError: The arguments need all rows before the first step or their number, or there are no local pairs.
        """
        if self.rows is None and args.max_steps <= 0:
            raise ValueError(
                f"the number of rows of '{self.source.name}' is not known: set `max_steps` instead of "
                "`num_train_epochs`."
            )
        if args.hard_negatives:
            raise ValueError(
                "`hard_negatives` needs all rows before the first step, which a stream does not have. Set "
                f"`hard_negatives=False` (the recipe {args.recipe} may set it), or train without `streaming`."
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
        self.batch_size, self.is_exact = args.train_batch_size, self.rows is not None and self.processes == 1
        self.drops_last = bool(args.dataloader_drop_last) and len(self) >= self.batch_size if self.is_exact else False
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
        self._start = self._trained = StreamState()
        if checkpoint is None:
            return
        path = Path(checkpoint) / f"stream_{self.rank}.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path}, the state of the stream, cannot be read ({error}). Resume from an older checkpoint, or start "
                "the stream over with `ignore_data_skip=True`."
            ) from None
        if (saved["processes"], saved["workers"]) != (self.processes, self.workers):
            raise ValueError(
                f"the checkpoint was saved with {saved['processes']} processes and {saved['workers']} workers, this "
                f"training has {self.processes} and {self.workers}. Resume with the same numbers (see "
                "`dataloader_num_workers`), or start the stream over with `ignore_data_skip=True`."
            )
        following = {int(worker): Position(**values) for worker, values in saved["state"]["following"].items()}
        self._start = self._trained = StreamState(**{**saved["state"], "following": following})

    def save(self, checkpoint: Path) -> None:
        """Write the state of this process's training into a checkpoint."""
        saved = {"processes": self.processes, "workers": self.workers, "state": asdict(self._trained)}
        write_json(checkpoint / f"stream_{self.rank}.json", saved)

    def loader(self, args: TrainingArguments, collator: Any, device: torch.device) -> DataLoaderShard:
        """Return the data loader of this process. It has the length of an epoch. Its batches have a `position`."""
        workers = min(args.dataloader_num_workers, self.workers)
        persistent = {"prefetch_factor": args.dataloader_prefetch_factor, "persistent_workers": True}
        options: dict[str, Any] = persistent if workers else {}
        inner: DataLoader = DataLoader(
            self,
            batch_size=None,
            collate_fn=StreamCollator(collator, self.batch_size),
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory,
            generator=torch.Generator(),  # or a resumed epoch would change the random numbers of the training
            **options,
        )
        batches = StreamBatches(self._batches(inner, collator), self.batches_per_epoch(args), inner)
        return DataLoaderShard(batches, device=device, batch_size=1, collate_fn=itemgetter(0))

    def note(self, state: StreamState) -> None:
        """Record that a batch has been trained on; `state` is its `position`."""
        self._trained = state


class StreamBatches(Dataset):
    """The next batches of a stream by number: the trainer counts epochs, and skips numbers without loading batches.

    Args:
        batches: The batches that were not trained on yet.
        count: Number of batches in an epoch.
        loader: The data loader that the batches come from.
    """

    def __init__(self, batches: Iterator[dict[str, Any]], count: int, loader: DataLoader):
        self._batches, self._count, self.loader = batches, count, loader

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return next(self._batches)


class StreamCollator:
    """Collate full batches, and add the position after their last row. Return fewer rows as they are."""

    def __init__(self, collator: Any, batch_size: int):
        self.collator, self.batch_size = collator, batch_size

    def __call__(self, rows: list[TrainingRow]) -> Any:
        if len(rows) < self.batch_size:
            return rows
        last = rows[-1].position
        return {**self.collator(rows), "position": replace(last, row=last.row + 1)}
