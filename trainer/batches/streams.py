"""Rows from a stream: mixed in windows, without end, and gone on with at the very row where a checkpoint left off.

Each worker of each process reads shards of its own, in an order that seed and epoch tell, and mixes the rows of a
window at a time. Where a batch lies travels with it; so what has been trained on is known to a row, however far the
workers have read ahead.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
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

from fastgoal.processing.data.streams import StreamSource, open_stream
from fastgoal.processing.files import write_json

from .collator import EPOCH

logger = logging.get_logger(__name__)

WINDOW = 1000
PLACE = "stream"
START: dict[str, Any] = {"epoch": 0, "window": 0, "state": None, "row": 0}


class StreamData(IterableDataset):
    """Rows for `FastGoalCollator` from a stream, epoch after epoch, without end.

    Args:
        source: An opened stream, or what `open_stream` takes.
        window: Rows that a worker holds and mixes, their pictures undecoded. Shards are mixed anyway.

    Attributes:
        rows: How many there are, None where that is not known.
    """

    def __init__(self, source: str | StreamSource, window: int = WINDOW):
        self.source = open_stream(source) if isinstance(source, str) else source
        self.rows = self.source.rows
        self.window = window
        self.rank, self.processes, self.seed, self.workers = 0, 1, 0, 1
        self._places: dict[int, dict[str, Any]] = {}  # what each worker begins with
        self._turn = 0  # the worker that gives the next batch
        self._trained: dict[int, list[dict[str, Any]]] = {}  # of each worker's last batch: its first row, and the next

    def steps(self, args: TrainingArguments) -> int:
        """The steps of a training for so many epochs as the arguments say.

        Raises:
            ValueError: The number of rows is not known.
        """
        if self.rows is None:
            raise ValueError(
                f"nobody has counted the rows of '{self.source.name}': give --max_steps in place of --num_train_epochs."
            )
        together = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        return max(1, round(args.num_train_epochs * self.rows / together))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number = 0 if worker is None else worker.id
        stream = split_dataset_by_node(self.source.dataset, rank=self.rank, world_size=self.processes)
        place = self._places.get(number, START)
        while True:
            begun = place
            # Epoch 0 would leave the shards in their order.
            stream.set_epoch(1 + (1_000_003 * self.seed + place["epoch"]) % 2**31)
            if place["state"] is not None:
                stream.load_state_dict(place["state"])
            rows = iter(stream)
            while held := list(islice(rows, self.window)):
                after = stream.state_dict()
                order = np.random.default_rng([self.seed % 2**32, place["epoch"], place["window"]]).permutation(
                    len(held)
                )
                for at in range(place["row"], len(held)):
                    yield {**self._row(held[order[at]], place["epoch"]), PLACE: (number, {**place, "row": at})}
                place = {**place, "window": place["window"] + 1, "state": after, "row": 0}
            if place == START:
                raise ValueError(f"'{self.source.name}' has no rows for worker {number} of process {self.rank}.")
            place = {**START, "epoch": begun["epoch"] + 1}

    def state_dict(self) -> dict[str, Any]:
        """Where this process's training is, for `load_state_dict`."""
        return {"processes": self.processes, "workers": self.workers, "turn": self._turn, "trained": self._trained}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last batch that was trained on.

        Raises:
            ValueError: It was saved by another number of processes or workers.
        """
        if (state["processes"], state["workers"]) != (self.processes, self.workers):
            raise ValueError(
                f"the checkpoint is of {state['processes']} processes with {state['workers']} workers, this training "
                f"has {self.processes} with {self.workers}: a stream is gone on with by as many, see "
                "--dataloader_num_workers. With --ignore_data_skip true it begins anew."
            )
        self._turn = state["turn"]
        self._trained = {int(number): places for number, places in state["trained"].items()}
        # A loader begins with worker 0: those before the one whose turn it is give their last batch again, unused.
        self._places = {
            number: first if number < self._turn else following for number, (first, following) in self._trained.items()
        }

    def prepare(self, args: Any, needs_pairs: bool) -> None:
        """Take this process's part of the shards, and set what the order of the rows depends on.

        `args` are `FastGoalTrainingArguments`.

        Raises:
            ValueError: The arguments want all rows known beforehand, or there are no local pairs.
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
                f"'{self.source.name}' has no column 'pairs', on which this objective trains: make it with `fastgoal "
                "pairs`, or train with the objective global or sparc, which need none."
            )
        self.rank, self.processes, self.seed = args.process_index, args.world_size, args.order_seed
        shards = self.source.dataset.num_shards
        own = shards // self.processes if shards % self.processes == 0 else shards
        if own == shards and self.processes > 1:
            logger.warning(
                f"{shards} shards cannot be shared evenly by {self.processes} processes: each reads all of them, and "
                "uses a part of the rows."
            )
        self.workers = max(1, min(args.dataloader_num_workers, own))

    def begin(self, checkpoint: str | None) -> None:
        """Begin at the first row, or where a checkpoint is.

        Raises:
            ValueError: The checkpoint does not say where, or is of another number of processes or workers.
        """
        self._places, self._trained, self._turn = {}, {}, 0
        if checkpoint is None:
            return
        path = _file(Path(checkpoint), self.rank)
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}), which says how far the stream was read. Take an older checkpoint, "
                "or begin the stream anew with --ignore_data_skip true."
            ) from None
        self.load_state_dict(state)

    def save(self, checkpoint: Path) -> None:
        """Keep with a checkpoint where the stream of this process is."""
        write_json(_file(checkpoint, self.rank), self.state_dict())

    def loader(self, args: TrainingArguments, collator: Any, device: torch.device) -> DataLoaderShard:
        """The batches of this process."""
        workers = min(args.dataloader_num_workers, self.workers)
        more = {"prefetch_factor": args.dataloader_prefetch_factor, "persistent_workers": True} if workers else {}
        return DataLoaderShard(
            self,
            device=device,
            skip_batches=self._turn,
            batch_size=args.train_batch_size,
            collate_fn=PlacedCollator(collator),
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory,
            **more,
        )

    def note(self, place: tuple[int, dict[str, Any], dict[str, Any]]) -> None:
        """Remember that a batch has been trained on."""
        number, first, following = place
        self._trained[number] = [first, following]
        self._turn = (number + 1) % self.workers

    def _row(self, values: dict[str, Any], epoch: int) -> dict[str, Any]:
        row = self.source.row(0, dict(values))
        return {**row.columns, "image": row.image, "caption": row.caption, "file_name": row.name, EPOCH: epoch}


class PlacedCollator:
    """A collator whose batches say where they lie: worker, place of the first row, place after the last one."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        (number, first), (_, last) = rows[0][PLACE], rows[-1][PLACE]
        return {**self.collator(rows), PLACE: (number, first, {**last, "row": last["row"] + 1})}


def _file(folder: Path, rank: int) -> Path:
    return folder / f"stream_{rank}.json"
