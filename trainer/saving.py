"""The part of the trainer that keeps what was trained: whole checkpoints, from which alone it goes on, the model with
its card, and what is sent to the Hub."""

import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput, rotate_checkpoints
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from fastgoal.hub_cards.push import push, require_token
from fastgoal.processing.checkpoints.adapters import is_adapted
from fastgoal.processing.checkpoints.fingerprints import refuse_not_finite
from fastgoal.processing.files import WORK_FOLDER, draft_beside, hold_folder, merge_folder, put_folder

from .batches.rows import PairData
from .batches.streams import StreamData
from .card import CardOptions, finish_folder
from .checkpoints import (
    checkpoints,
    newest_checkpoint,
    refuse_other_settings,
    require_checkpoint,
    sweep,
    write_settings,
)
from .objectives import Objective
from .parallel.strategy import own_class
from .training_arguments import FastGoalTrainingArguments

ROWS_NAMED = 8
# Weights of a model that was saved in another number of files are not left beside those of the new one.
# Nor is a model beside an adapter.
WEIGHT_FILES = re.compile(
    r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|config\.json|handler\.py|"
    r"adapter_(config\.json|model\.safetensors)|fastgoal_base\.json"
)
# What torch says of a file that it could not write.
WRITE_FAILED = re.compile(r"PytorchStreamWriter|unexpected pos|write failed|No space left", re.IGNORECASE)


class SavingTrainer(Trainer):
    """A `Trainer` that saves a checkpoint whole or not at all, and goes on from complete ones alone.

    Attributes:
        card: What the model card says that the trainer cannot know by itself.
    """

    args: FastGoalTrainingArguments
    objective: Objective
    card = CardOptions()
    _trained_with: Mapping[str, Any] = MappingProxyType({})
    # The folder that a checkpoint is put together in.
    _draft: Path | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`, as the only training in the output folder.

        Args:
            resume_from_checkpoint: A folder, or True for the newest complete checkpoint of the output folder. Going on
                with a training that is finished trains nothing.
            *args: As for `Trainer.train`, like `kwargs`.
            **kwargs: Likewise.

        Raises:
            ValueError: Another training writes the output folder; the checkpoint is not complete, or of a training on
                other data or with other settings; or the loss became infinite or no number, of which nothing is saved.
        """
        output = Path(self.args.output_dir or ".")
        with hold_output(output, self.is_world_process_zero()):
            checkpoint = self._checkpoint(output, resume_from_checkpoint)
            # Once: looking at all files of the data takes its time.
            self._trained_with = self.training_settings()
            if checkpoint is not None:
                refuse_other_settings(Path(checkpoint), self._trained_with, self.args.ignore_resume_mismatch)
            self._begin(checkpoint)
            return super().train(checkpoint, *args, **kwargs)

    def training_settings(self) -> dict[str, Any]:
        """What the weights depend on and a training that is gone on with must not change unnoticed."""
        args, data = self.args, self.train_dataset
        return {
            "objective": self.objective.name,
            **asdict(self.objective.weights),
            "pair_sampling": args.pair_sampling,
            "hard_negatives": args.hard_negatives,
            "hard_negative_refresh": args.hard_negative_refresh,
            "l2sp_weight": args.l2sp_weight,
            **{name: getattr(args, name) for name in ("lora_r", "lora_alpha", "lora_target_modules")},
            **{name: getattr(args, name) for name in ("freeze", "freeze_layers")},
            "group_by_caption_length": args.group_by_caption_length,
            "learning_rate": args.learning_rate,
            "batch size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "seed": args.seed,
            "order_seed": args.order_seed,
            "rows": len(data) if isinstance(data, PairData) else None,
            "data": data.source.fingerprint if isinstance(data, PairData) else None,
        }

    def _checkpoint(self, output: Path, wanted: str | bool | None) -> str | None:
        if wanted is None or wanted is False:
            return None
        if wanted is not True:
            return str(require_checkpoint(Path(wanted)))
        newest = newest_checkpoint(output)
        if newest is None:
            raise ValueError(f"{output} has no complete checkpoint to go on from; leave resume_from_checkpoint out.")
        return str(newest)

    def _begin(self, checkpoint: str | None) -> None:
        """What is to be done before the first step, or before a checkpoint is loaded."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer would make one more step of a training that ended in the middle of an epoch.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _stop_at_step(
        self, parts: Mapping[str, float], names: Sequence[str], outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Raise `ValueError` of a loss that is not finite: the step, the part and the rows."""
        wrong = {name: value for name, value in parts.items() if not math.isfinite(value)}
        which = ", ".join(f"{name} {value}" for name, value in wrong.items() if name != "loss" or len(wrong) == 1)
        bad = _rows_not_finite(names, outputs or {})
        rows = bad or list(names)
        shown = ", ".join(rows[:ROWS_NAMED]) + (f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else "")
        kept = checkpoints(Path(self.args.output_dir or "."))
        last = f"the last checkpoint is {kept[0][1]}" if kept else "there is no checkpoint yet"
        raise ValueError(
            f"the loss of step {self.state.global_step + 1} is not finite ({which}); "
            f"{'the embeddings that are not are of' if bad else 'the rows of its batch are'} {shown}. Nothing of it is "
            f"saved; {last}. Lower --learning_rate, take --bf16 in place of --fp16, or look at these rows."
        )

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._draft is None else str(self._draft)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Put a checkpoint together in a folder of another name, and rename it when it is complete and on the disk."""
        run = Path(super()._get_output_dir(trial))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._drafted(folder) as place, saving_errors(folder):
            self._draft, draft = place, place / folder.name
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._draft = None
            if isinstance(self.train_dataset, StreamData):
                self.train_dataset.save(draft)
            if self.args.should_save:
                write_settings(draft, self._trained_with)
                if self.state.best_model_checkpoint == str(draft):
                    self.state.best_model_checkpoint = str(folder)
                    self.state.save_to_json(str(draft / TRAINER_STATE_NAME))
            self.accelerator.wait_for_everyone()
            # Of several machines without a common disk each keeps its own part.
            for turn in (self.args.process_index, self.args.local_process_index):
                if turn == 0 and draft.is_dir():
                    put_folder(draft, folder)
                self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            self._push(str(folder), f"Training in progress, step {self.state.global_step}")
        if self.args.should_save:
            rotate_checkpoints(str(run), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: a checkpoint is sent when it is complete."""

    @contextmanager
    def _drafted(self, path: Path) -> Iterator[Path]:
        """A folder beside `path`, the same in all processes and taken away in the end, to put `path` together in."""
        names = [draft_beside(path).name]
        broadcast_object_list(names)
        place = path.with_name(names[0])
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model, processor, model card and `handler.py`; push them if `push_to_hub` is set.

        Files appear complete, each in place of the one that was there before, the configuration at the end.

        Raises:
            ValueError: A weight is infinite or no number.
            OSError: The folder cannot be written.
        """
        folder = Path(output_dir or self.args.output_dir or ".")
        if self._draft is not None and self._draft in folder.parents:  # of a checkpoint
            self._save_all(folder, pictures=False)
            return
        with self._drafted(folder / "model") as draft, saving_errors(folder):
            self._save_all(draft, pictures=folder == Path(self.args.output_dir or "."))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                last = ADAPTER_CONFIG_NAME if is_adapted(self.model) else "config.json"
                merge_folder(draft, folder, last=last, replaced=WEIGHT_FILES)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub("Model save")

    def _save_all(self, folder: Path, pictures: bool) -> None:
        super().save_model(str(folder), _internal_call=True)
        if self.args.should_save:
            finish_folder(folder, self, pictures)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        weights = model.state_dict() if state_dict is None else state_dict
        refuse_not_finite(weights.items(), f"the model after step {self.state.global_step}")
        # The Trainer pickles its arguments into the folder: without the token, which is no setting of the training.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            with own_class(model):
                super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our model card; the automatic one never replaces it."""
        if self.is_world_process_zero():
            finish_folder(self.args.output_dir or ".", self, pictures=True)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository on the Hub. Without a token this is an error here, before anything is trained."""
        if self.is_world_process_zero():
            require_token(token or self.args.hub_token)
        super().init_hf_repo(token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save, and send model, processor, card and code in one commit, which this waits for."""
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return self._push(self.args.output_dir, commit_message or "End of training", token, revision)

    def _push(self, folder: str, message: str, token: str | None = None, revision: str | None = None) -> Any:
        return push(
            folder,
            self.hub_model_id or "",
            private=self.args.hub_private_repo,
            token=token or self.args.hub_token,
            message=message,
            revision=revision or self.args.hub_revision,
        ).commit


@contextmanager
def hold_output(output: Path, is_first: bool = True, overwrite: bool = False) -> Iterator[None]:
    """Keep other trainings out of an output folder for the length of the block, this process's own let in.

    What one that was killed left half saved is taken away, and with `overwrite` all checkpoints. Of several processes
    the first one alone does it.

    Raises:
        ValueError: Another training writes there.
    """
    if not is_first:
        yield
        return
    with hold_folder(output / WORK_FOLDER, again=True):
        sweep(output, overwrite)
        yield


@contextmanager
def saving_errors(folder: Path) -> Iterator[None]:
    """Say of an error of the disk what could not be saved, and that what was saved before is still there."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not WRITE_FAILED.search(str(error)):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(
            f"could not save {folder}: {reason}. Checkpoints saved before are complete; make room (or write access) "
            "and go on with --resume_from_checkpoint true."
        ) from error


def _rows_not_finite(names: Sequence[str], outputs: Mapping[str, Any]) -> list[str]:
    """The rows of a batch whose own embeddings are infinite or no numbers."""
    bad = torch.zeros(len(names), dtype=torch.bool)
    for name, value in outputs.items():
        if name.endswith("_embeds") and value.ndim == 2 and len(value) == len(names):
            bad |= ~torch.isfinite(value.detach().float()).all(dim=1).cpu()
    return [name for name, wrong in zip(names, bad.tolist(), strict=True) if wrong]
