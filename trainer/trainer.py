"""The trainer of FAST-GOAL's models: `transformers.Trainer` with contrastive losses over the batch of all processes."""

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    HubStrategy,
    IntervalStrategy,
    SaveStrategy,
    TrainOutput,
    rotate_checkpoints,
)
from transformers.utils import logging
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from fastgoal.hub_cards.access import require_token
from fastgoal.hub_cards.push import push
from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalOutput
from fastgoal.modeling_fastgoal.losses_fastgoal import contrasted, fast_goal_loss, loss_rows
from fastgoal.modeling_fastgoal.towers_fastgoal import embedding_width, is_sigmoid, text_positions
from fastgoal.processing.checkpoints.adapters import (
    ADAPTER_FOLDER,
    BASE_FILE,
    is_adapted,
    merged_copy,
    peft_settings,
)
from fastgoal.processing.checkpoints.fingerprints import refuse_not_finite
from fastgoal.processing.files import draft_beside, merge_folder, put_folder
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.tokens import set_text_length

from .batches.collator import FastGoalCollator
from .batches.hard_negatives import load_neighbors, save_neighbors, training_neighbors
from .batches.rows import TrainingData, check_rows, has_short_captions, source_of
from .batches.samplers import CaptionLengthSampler, HardNegativeSampler
from .batches.streams import StreamBatches, StreamData
from .batches.workers import end_workers, loader_of_batches, start_workers
from .callbacks import (
    Epochs,
    LogitScaleLimit,
    StartLines,
    StepCheckpoints,
    TowardsBase,
    with_tables,
)
from .card import CardOptions, finish_folder
from .checkpoints import (
    ROWS_AT_ONCE,
    SECONDS,
    WEIGHT_FILES,
    delete_checkpoints,
    hold_output,
    is_in,
    newest_checkpoint,
    not_finite_message,
    note_of,
    refuse_checkpoints,
    refuse_other_settings,
    require_checkpoint,
    saving_errors,
    write_settings,
)
from .evaluation.measures.retrieval import retrieval_of_predictions
from .interrupts import EvaluationStopped, Interrupted, Interrupts
from .objectives import Objective
from .parallel.gather import average_gradients, gather_batch, in_any_process
from .parallel.gradient_cache import HalvedOnError, cached_backward, fails_together
from .parallel.strategy import describe, group_of_its_own, logit_parameters, own_class, prepare_shards
from .summary import TrainingRun, language_of
from .trained_weights import (
    check_dims,
    check_trainable,
    contrasts_rows,
    load_trainable,
    prepare_weights,
    refuse_foreign_optimizer,
    write_losses,
)
from .training_arguments import AUTO, BEST_METRIC, FastGoalTrainingArguments
from .weight_settings import base_mark, data_settings, replace_settings

logger = logging.get_logger(__name__)

LOCAL_INPUTS = ("local_pixel_values", "local_input_ids", "local_attention_mask")
UNSUPPORTED = {
    "model_init": "adapters, frozen weights and hard negatives are set up once, for one model. Pass `model`, and "
    "create a new trainer for each run.",
    "compute_loss_func": "the loss is the one of `objective` and its weights. Set those in `args`.",
    "preprocess_logits_for_metrics": "evaluations collect embeddings, not logits. Pass `compute_metrics`.",
}


class FastGoalTrainer(Trainer):
    """Fine-tune a FAST-GOAL model on images with long captions, and on the local pairs of the objective.

    >>> trainer = FastGoalTrainer("openai/clip-vit-base-patch16", args, train_dataset=rows)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

    Contrastive losses use the batch of all processes: embeddings are gathered with gradients, and each process
    contrasts its own rows with all rows. Rows that the data loader repeats to fill the last batch of an epoch are left
    out of the loss. Therefore N processes compute the same loss as one process with the whole batch.

    The log reports the loss and its unweighted parts. Evaluations report the loss and recall@k in both
    directions over the whole evaluation dataset. A checkpoint appears only when it is complete. It
    contains the model, with the loss weights in its configuration, the processor and a model card.

    The trainer never changes `args`. It stores the values that it derives from `args` in `objective` (with the loss
    weights in use), `is_sigmoid` and `max_logit_scale`.

    Args:
        model: A FAST-GOAL model, or the name or folder of any supported checkpoint, which is loaded with
            `FastGoalModel.from_base`.
        args: A `FastGoalTrainingArguments`.
        data_collator: A `FastGoalCollator` for the objective by default.
        train_dataset: A source from `load_source`, a `TrainingData`, a `StreamData`, a `datasets.Dataset` or a list of
            rows as described in `FastGoalCollator`.
        eval_dataset: The same, or a dictionary of datasets by name.
        processing_class: The model's `FastGoalProcessor`; loaded with the model if `model` is a name.
        model_init: Not supported.
        compute_loss_func: Not supported.
        compute_metrics: A function of an `EvalPrediction` with the image and the text embeddings. Retrieval metrics by
            default.
        callbacks: As in `transformers.Trainer`.
        optimizers: As in `transformers.Trainer`.
        optimizer_cls_and_kwargs: As in `transformers.Trainer`.
        preprocess_logits_for_metrics: Not supported.
        peft_config: A `peft.LoraConfig` with `bias="none"` and without `modules_to_save`, to train an adapter.
        card: A `CardOptions` with information for the model card that the trainer does not have.
        max_text_length: Number of tokens that the model reads if `model` is a name, from those of the checkpoint to
            1,024. By default 248 (SigLIP: 256) for a published checkpoint; one that was stretched before keeps its
            length.

    Raises:
        ValueError: An unsupported argument is given; the processor is missing or belongs to another model; a row has no
            image, no caption or none of the pairs that the objective needs; or one process would use several GPUs.
        TypeError: `model` is not a FAST-GOAL model, `args` is not a `FastGoalTrainingArguments`, or a dataset is a
            single row.
    """

    # The losses are means over the batch, so the Trainer must divide them by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    args: FastGoalTrainingArguments
    _train_rows: TrainingData | None = None  # of the newest training loader
    _seconds_before: float = 0.0  # wall-clock time of the trainings that this one resumes

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str] | None = None,
        args: FastGoalTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: FastGoalProcessor | None = None,
        model_init: Any = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Any = None,
        peft_config: Any = None,
        card: CardOptions | None = None,
        max_text_length: int | None = None,
    ):
        for name, value in (
            ("model_init", model_init),
            ("compute_loss_func", compute_loss_func),
            ("preprocess_logits_for_metrics", preprocess_logits_for_metrics),
        ):
            if value is not None:
                raise ValueError(f"`{name}` is not supported: {UNSUPPORTED[name]}")
        args = FastGoalTrainingArguments() if args is None else args
        if not isinstance(args, FastGoalTrainingArguments):
            raise TypeError(f"`args` must be FastGoalTrainingArguments, got {type(args).__name__}.")
        if args.n_gpu > 1:
            raise ValueError(
                f"One process cannot train on {args.n_gpu} GPUs. Start one process for each GPU with `fastgoal train "
                f"--num_processes {args.n_gpu}`, or select one with CUDA_VISIBLE_DEVICES=0."
            )
        self.card = card or CardOptions()
        if isinstance(model, str | os.PathLike):
            name = os.fspath(model)
            model, processor = load_trainable(name, max_text_length, bool(args.lora_r or peft_config))
            processing_class = processing_class or processor
            self.card = replace(self.card, base_model=self.card.base_model or name)
        elif max_text_length is not None:
            raise ValueError(
                "`max_text_length` needs a name or folder as `model`. For a loaded model call "
                "`FastGoalModel.from_base(model, max_text_length)`."
            )
        check_trainable(model)

        self.objective: Objective = args.resolved_objective()
        if data_collator is None:
            if processing_class is None:
                raise ValueError("`processing_class` must be the model's FastGoalProcessor, got None.")
            if train_dataset is not None and not has_short_captions(train_dataset):
                self.objective = args.without_short_captions(self.objective)
            data_collator = FastGoalCollator(
                *(processing_class, self.objective.needs_pairs, str(args.pair_sampling), args.order_seed),
                short_captions=self.objective.needs_short_captions,
                crop_size=args.crop_size,
                pad_to_multiple_of=8 if args.torch_compile else 1,
            )
        if isinstance(data_collator, FastGoalCollator):
            for name, data in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
                check_rows(data, name, self.objective.needs_pairs and name == "train_dataset")
        for data in eval_dataset.values() if isinstance(eval_dataset, Mapping) else (eval_dataset,):
            if isinstance(data, StreamData):
                raise ValueError(
                    f"`eval_dataset` must have rows by number, got a stream of '{data.source.name}'. Load them with "
                    "`load_source`."
                )
        if isinstance(train_dataset, StreamData):
            train_dataset.prepare(args, self.objective.needs_pairs)
        if isinstance(processing_class, FastGoalProcessor):
            processing_class.require_model(cast(Any, model).config)
            tokenizer = processing_class.tokenizer
            set_text_length(tokenizer, min(tokenizer.model_max_length, text_positions(model)))
        if processing_class is not None and (source := source_of(train_dataset)) is not None:
            processing_class.language = language_of(source.name) or processing_class.language

        self.is_sigmoid = is_sigmoid(model, args.contrastive)
        check_dims(args.matryoshka_dims, embedding_width(cast(Any, model).config))
        default_limit = 0.0 if self.is_sigmoid else 100.0
        self.max_logit_scale: float = default_limit if args.max_logit_scale is None else args.max_logit_scale
        self._peft_settings = peft_settings(peft_config)
        prepared: Any = prepare_weights(model, args, self.objective.weights, self.is_sigmoid, peft_config)
        if args.save_adapter_only and not is_adapted(prepared):
            raise ValueError("`save_adapter_only` needs an adapter, got a model without one. Set `lora_r`.")
        refuse_foreign_optimizer(optimizers[0], prepared)
        write_losses(prepared, self.objective.weights, args)
        self._base_mark = base_mark(prepared, bool(args.l2sp_weight))
        super().__init__(
            model=prepared,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics or retrieval_of_predictions,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        handler = self.callback_handler
        handler.callbacks = [with_tables(callback) for callback in handler.callbacks]
        self._sharded = prepare_shards(self.accelerator, self.model)
        if self._sharded and is_adapted(self.model):
            raise ValueError(
                "Adapters cannot be trained with FSDP. An adapter needs little memory: train it with DDP instead."
            )
        if self._sharded and args.hard_negative_refresh and args.hard_negatives:
            raise ValueError(
                f"`hard_negative_refresh` does not work with FSDP, got {args.hard_negative_refresh}. Set it to 0."
            )
        if args.mini_batch_size == AUTO and (self._sharded or self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "`mini_batch_size` must be a number with FSDP or DeepSpeed, got 'auto': processes with sharded weights "
                "wait for each other in every layer. Set a number, or train with DDP."
            )
        self._halved = HalvedOnError(args.train_batch_size, args.world_size > 1)
        if args.train_batch_size * args.world_size == 1 and contrasts_rows(self.objective.weights):
            logger.warning(
                "`per_device_train_batch_size` is 1, but a contrastive loss needs other rows in the batch: for one row "
                "it is 0 with softmax and has no negatives with sigmoid. Use larger batches. `mini_batch_size=1` saves "
                "as much memory."
            )
        batch_size = args.train_batch_size * args.gradient_accumulation_steps
        self.add_callback(StartLines(self._run(), describe(self.accelerator, batch_size), self._whole_caption_lengths))
        self.add_callback(Epochs())
        self._step_checkpoints = StepCheckpoints()
        self.add_callback(self._step_checkpoints)
        if args.l2sp_weight:
            self.add_callback(TowardsBase(args.l2sp_weight, cast(nn.Module, self.model)))
        if self.max_logit_scale:
            self.add_callback(LogitScaleLimit(self.max_logit_scale))
        self._interrupts = Interrupts(self.accelerator)
        self.add_callback(self._interrupts)  # the last one, since it overrules what others ask for
        # Sums of the loss parts since the last line of the log, kept on the device, and the number of steps.
        self._part_sums: dict[str, torch.Tensor] = {}
        self._part_steps = 0
        self._logit_scale = torch.tensor(0.0)
        self._eval_parts: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        # The last batch of an epoch, and the number of rows of all processes in it that are not repeated.
        self._last_batch: Any = None
        self._last_rows: int | None = None
        self._loaders: WeakSet[DataLoader] = WeakSet()
        self._names: list[str] = []  # of the rows of the current batch
        self._neighbors: torch.Tensor | None = None
        self._is_renewed = False
        self._trained_with: dict[str, Any] = {}
        self._draft: Path | None = None  # the folder in which a checkpoint is being written
        self._saved_step = 0  # of the newest checkpoint
        self._owns_folder = False  # whether the checkpoints in the output folder are this trainer's
        self._started = time.monotonic()

    # ---- Training ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train the model. Only one training can use an output folder at a time.

        After SIGINT (Ctrl-C) or SIGTERM, all processes finish the current step, save a complete checkpoint and raise
        `KeyboardInterrupt`. A second Ctrl-C stops at once, and so does a signal before the first step.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for the newest complete checkpoint of the output
                folder. If that training is already complete, nothing is trained.
            trial: As in `transformers.Trainer`.
            ignore_keys_for_eval: As in `transformers.Trainer`.

        Raises:
            ValueError: Another training uses the output folder or left checkpoints there; the checkpoint is incomplete,
                or is from a training on other data or with other settings; or the loss became NaN or infinite.
            KeyboardInterrupt: The training was interrupted.
        """
        output = Path(self.args.output_dir or ".")
        with hold_output(output, self.is_world_process_zero()), self._interrupts.handled():
            checkpoint = self._find_checkpoint(output, resume_from_checkpoint)
            self._take_folder(output, None if checkpoint is None else Path(checkpoint))
            # Only once: the fingerprint of the data reads all their files.
            self._trained_with = self.training_settings()
            changed = []
            if checkpoint is not None:
                changed = refuse_other_settings(Path(checkpoint), self._trained_with, self.args.ignore_resume_mismatch)
            self._begin(checkpoint, changed)
            self._saved_step, self._started = 0, time.monotonic()
            self._seconds_before = 0.0 if checkpoint is None else note_of(Path(checkpoint), SECONDS)
            if self.args.mini_batch_size == AUTO:
                size = 0 if checkpoint is None else int(note_of(Path(checkpoint), ROWS_AT_ONCE))
                self._halved = HalvedOnError(size or self.args.train_batch_size, self.args.world_size > 1)
            try:
                result = super().train(checkpoint, trial, ignore_keys_for_eval)
            finally:
                self.is_in_train = False  # the Trainer leaves it set after an error
                end_workers(self._loaders)
        if self._interrupts.signum:
            raise Interrupted(
                f"The training was interrupted after step {self.state.global_step}. The checkpoint is "
                f"{output / f'{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}'}. Resume with "
                "`resume_from_checkpoint=True`.",
                self._interrupts.signum,
            )
        return result

    def training_settings(self) -> dict[str, Any]:
        """Return the settings that the weights depend on, which a resumed training must not change unnoticed."""
        args = self.args
        return {
            "objective": self.objective.name,
            **asdict(self.objective.weights),
            "contrastive": "sigmoid" if self.is_sigmoid else "softmax",
            "max_logit_scale": self.max_logit_scale,
            **args.weight_settings(),
            **self._peft_settings,
            "order_seed": args.order_seed,
            "batch size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "base": self._base_mark,
            **data_settings(self.train_dataset, self.processing_class),
        }

    def _take_folder(self, output: Path, checkpoint: Path | None) -> None:
        """Refuse an output folder with checkpoints of another training; delete them with `overwrite_output_dir`."""
        if self._owns_folder or is_in(output, checkpoint):
            return
        refuse_checkpoints(output, self.args.overwrite_output_dir, checkpoint, self.args.wants_resume)
        if self.args.overwrite_output_dir and self.is_world_process_zero():
            delete_checkpoints(output)
        self._owns_folder = True

    def _find_checkpoint(self, output: Path, wanted: str | bool | None) -> str | None:
        if wanted is None or wanted is False:
            return None
        if wanted is not True:
            return str(require_checkpoint(Path(wanted)))
        newest = newest_checkpoint(output)
        if newest is None:
            raise ValueError(f"{output} has no complete checkpoint to resume from. Leave out `resume_from_checkpoint`.")
        return str(newest)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Overridden for exact resume. The Trainer would add a step to a training that ended in the middle of an epoch.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        resumes = kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]
        if resumes and self._misses_evaluation():
            metrics = self._evaluate(kwargs["trial"], kwargs["ignore_keys_for_eval"])
            self._determine_best_metric(metrics, kwargs["trial"])
        self._step_checkpoints.steps_per_epoch = kwargs["num_update_steps_per_epoch"]
        super()._run_epoch(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # Overridden since the optimizer's state has the settings of the checkpoint, which the arguments may replace.
        given = [dict(group) for group in cast(Any, self.optimizer).param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.args.ignore_resume_mismatch:
            replace_settings(self.optimizer, self.lr_scheduler, given)

    def _misses_evaluation(self) -> bool:
        """Return whether the training stopped before the evaluation of the step that it resumes from."""
        args, state = self.args, self.state
        if self.eval_dataset is None or state.global_step == 0:
            return False
        if any(line["step"] == state.global_step and "eval_runtime" in line for line in state.log_history):
            return False
        if args.eval_strategy == IntervalStrategy.STEPS:
            return state.global_step % state.eval_steps == 0 and args.eval_delay <= state.global_step
        epoch = float(state.epoch or 0)
        return args.eval_strategy == IntervalStrategy.EPOCH and epoch.is_integer() and args.eval_delay <= epoch

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # Overridden for interrupts during an evaluation, after which only the checkpoint is left to do.
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationStopped:
            self.control.should_training_stop, self.control.should_evaluate = True, False
            self.control.should_save = self._saved_step != self.state.global_step
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # Overridden to keep the newest checkpoint. With `save_total_limit=1` the Trainer would delete it and keep the
        # best, but the training resumes from the newest, and the folder's model is the last one.
        best = self.state.best_model_checkpoint
        if not self.args.load_best_model_at_end:
            self.state.best_model_checkpoint = None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.state.best_model_checkpoint = best

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer; with FSDP, scalars that are not sharded get a group of their own."""
        optimizer = super().create_optimizer(model)
        if self._sharded:
            group_of_its_own(optimizer, logit_parameters(self.model))
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return all parameters with `decay_all`, else all but biases and norms, as `Trainer` does."""
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    # ---- Data ----

    def _begin(self, checkpoint: str | None, changed: list[str]) -> None:
        """Prepare the data, before the weights of a checkpoint are loaded; `changed` names the settings that differ."""
        if isinstance(self.train_dataset, StreamData):
            self.train_dataset.begin(None if self.args.ignore_data_skip else checkpoint)
        if self.args.hard_negatives and self.train_dataset is not None:
            self._neighbors, self._is_renewed = None, False
            # The neighbors of a resumed training are those that it had, whichever model found them.
            if checkpoint is not None and not {"hard_negatives", "rows", "data"} & {*changed}:
                try:
                    self._neighbors, self._is_renewed = load_neighbors(Path(checkpoint))
                except ValueError:
                    if not self.args.ignore_resume_mismatch:
                        raise
            if self._neighbors is None:
                self._neighbors = self._find_neighbors(self.train_dataset)

    def _prepare_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device and normalize its pixels there. Keep its names and its position in a stream."""
        inputs = self._prepare_inputs(inputs)
        self._names = inputs.pop("names", [])
        if isinstance(self.train_dataset, StreamData) and "position" in inputs:
            self.train_dataset.note(inputs.pop("position"))
        collator = self.data_collator
        return collator.reader.normalize(inputs) if isinstance(collator, FastGoalCollator) else inputs

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        # Overridden for exact resume: a stream resumes at a row, and rows know their epoch, whatever the loader skips.
        if isinstance(dataset, StreamData):
            return self._start(dataset.loader(self.args, self.data_collator, self.accelerator.device))
        collator: Any = self.data_collator
        tokenizer: Any = None
        if isinstance(collator, FastGoalCollator):
            dataset = TrainingData.of(dataset)
            tokenizer = collator.processor.tokenizer if collator.local_pairs else None
        if is_training and isinstance(dataset, TrainingData):
            rows_per_step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            dataset = self._train_rows = dataset.for_training(tokenizer, self.args.max_steps * rows_per_step)
        sampler_fn = self.train_sampler if is_training else self._eval_sampler
        drops_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops_last and is_training  # evaluations read all rows
        try:
            loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        finally:
            self.args.dataloader_drop_last = drops_last
        if tokenizer is not None and not is_training and not dataset.has_pairs:
            loader_of_batches(loader).collate_fn = collator.without_pairs()
        return self._start(loader)

    def _start(self, loader: DataLoader) -> DataLoader:
        self._loaders.add(loader)
        return start_workers(loader)

    def num_examples(self, dataloader: DataLoader) -> int:
        """Return the number of rows of an epoch, for the speed in the log."""
        stream = self.train_dataset if isinstance(dataloader.dataset, StreamBatches) else None
        if isinstance(stream, StreamData):
            return stream.rows or len(dataloader) * self.args.train_batch_size * self.args.world_size
        return super().num_examples(dataloader)

    def _whole_caption_lengths(self) -> list[int]:
        # A dataset of the user's own may not have a caption in every row, and its rows are not read before their turn.
        with suppress(ValueError, TypeError, KeyError):
            if self._train_rows is not None and isinstance(self.processing_class, FastGoalProcessor):
                return self._train_rows.whole_caption_lengths(self.processing_class.tokenizer)
        return []

    def train_sampler(self, data: Any) -> Sampler | None:
        """Return the order of the training rows: random, sequential, by caption length or with hard negatives."""
        hard, by_length = self.args.hard_negatives, self.args.train_sampling_strategy == "group_by_length"
        if not hard and not by_length:
            return self._get_train_sampler(data)
        lengths = TrainingData.of(data).caption_lengths(self.processing_class) if by_length else None
        batch_size, seed = self.args.train_batch_size * self.args.world_size, self.args.order_seed
        if lengths is not None and not hard:
            return CaptionLengthSampler(lengths, batch_size, seed)
        if self._neighbors is None:
            self._neighbors = self._find_neighbors(data)
        return HardNegativeSampler(self._neighbors, batch_size, seed, lengths, self._renewed_neighbors)

    def _eval_sampler(self, data: Any) -> Sampler | None:
        """Return the order of evaluation rows, which `train_sampling_strategy` does not change."""
        return SequentialSampler(data) if isinstance(data, Sized) and self.args.world_size <= 1 else None

    def _find_neighbors(self, data: Any) -> torch.Tensor:
        model = self.accelerator.unwrap_model(self.model)
        return training_neighbors(model, self.processing_class, data, self.accelerator, self.args)

    def _renewed_neighbors(self, epoch: int) -> torch.Tensor | None:
        """Return neighbors by the current model, once, after `hard_negative_refresh` of the epochs."""
        share = self.args.hard_negative_refresh
        if not share or self._is_renewed or epoch < max(1, round(share * self.state.num_train_epochs)):
            return None
        self._neighbors, self._is_renewed = self._find_neighbors(self.train_dataset), True
        return self._neighbors

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of this process's rows against those of all; its mean over processes is that of the batch."""
        outputs = self._forward(model, inputs)
        parts = self.loss_parts(outputs, inputs)
        if model.training:
            self._note_parts(parts, outputs.logit_scale, outputs)
        return (parts["loss"], outputs) if return_outputs else parts["loss"]

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run the forward and backward pass of a batch, in mini-batches with `mini_batch_size`."""
        repeats = isinstance(self.train_dataset, Sized) and not isinstance(self.train_dataset, StreamData)
        if inputs is self._last_batch and repeats and not self.args.dataloader_drop_last:
            rows = len(cast(Sized, self.train_dataset))
            self._last_rows = rows % (self.args.train_batch_size * self.args.world_size) or None
        inputs = self._prepare_batch(inputs)
        try:
            if self.args.mini_batch_size == AUTO:
                return self._halved_step(model, inputs)
            if not self.args.mini_batch_size:
                return super().training_step(model, inputs, num_items_in_batch)
            return self._cached_step(model, inputs, cast(int, self.args.mini_batch_size))
        finally:
            self._last_rows = None

    def _halved_step(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run a step with as many rows at once as the memory of all processes allows."""
        # Not DDP's wrapper: it would wait for the gradients of a process that stopped.
        own, device = self.accelerator.unwrap_model(model), self.args.device
        alone = partial(fails_together, partial(in_any_process, device=device))
        loss = self._halved.run(
            lambda size: self._cached_step(own, inputs, size, alone), inputs, own.parameters(), self._note_halved
        )
        if self.accelerator.sync_gradients:
            average_gradients(own.parameters())
        return loss

    def _note_halved(self, size: int) -> None:
        if self.is_world_process_zero():
            logger.warning(
                f"Out of memory: the training continues with mini-batches of {size}. To start with them next time, set "
                f"`mini_batch_size={size}`."
            )

    def _cached_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        size: int,
        alone: Callable[[], AbstractContextManager] = nullcontext,
    ) -> torch.Tensor:
        model.train()
        logit_scales: list[torch.Tensor] = []

        def embed(batch: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
            with self.compute_loss_context_manager():
                outputs = self._forward(model, batch)
                logit_scales.append(outputs.logit_scale)
                return self.loss_rows(outputs, batch), self._logit_terms(outputs)

        # The Trainer divides the loss of a normal step by this number.
        scale = 1 / self.current_gradient_accumulation_steps
        parts = cached_backward(
            inputs,
            size,
            embed,
            self._loss_of_rows,
            backward=self.accelerator.backward,
            no_sync=partial(self.accelerator.no_sync, model),
            scale=scale,
            alone=alone,
        )
        self._note_parts(parts, logit_scales[0])
        return parts["loss"] * scale

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Draw the batches of an update, and remember whether the last one ends an epoch."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        # All batches of an update are drawn before the first is used, so only the last can be the epoch's last.
        ended = bool(batches) and self.accelerator.gradient_state.end_of_dataloader
        self._last_batch = batches[-1] if ended else None
        return batches, items

    def _forward(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
        # If only region crops and sentences are trained, whole images and captions skip the towers.
        names = inputs if self.objective.needs_global or not model.training else LOCAL_INPUTS
        tokens = {"return_token_embeds": True} if self.objective.needs_tokens else {}
        return model(**{name: inputs[name] for name in names if name in inputs}, **tokens)

    def loss_rows(self, outputs: FastGoalOutput, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the inputs of the losses of this process's rows, tensors with one row per sample."""
        # SPARC's losses are computed here and need full precision; the others get it in `_loss_of_rows`.
        full = {
            name: outputs[name].float() for name in ("patch_embeds", "token_embeds", "logit_scale") if name in outputs
        }
        with self._full_precision():
            return loss_rows(
                {**outputs, **full},
                full["logit_scale"],
                inputs.get("region_mask"),
                inputs.get("sentence_mask"),
                inputs.get("image_groups"),
            )

    def loss_parts(
        self, outputs: FastGoalOutput, inputs: Mapping[str, torch.Tensor], gather: bool = True
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its parts by name; their means over processes are those of the whole batch.

        Args:
            outputs: Outputs of the model for `inputs`.
            inputs: The batch of this process.
            gather: Whether to contrast with the rows of all processes, or with this process's rows only.
        """
        return self._loss_of_rows(self.loss_rows(outputs, inputs), *self._logit_terms(outputs), gather=gather)

    def _logit_terms(self, outputs: Mapping[str, Any]) -> list[torch.Tensor]:
        """Return the logit scale, and for sigmoid losses the bias."""
        return [outputs["logit_scale"], *([outputs["logit_bias"]] if self.is_sigmoid else [])]

    def _loss_of_rows(
        self, rows: Mapping[str, torch.Tensor], *logit_terms: torch.Tensor, gather: bool = True
    ) -> dict[str, torch.Tensor]:
        rows = {name: value.float() if value.is_floating_point() else value for name, value in rows.items()}
        whole = None
        if gather:
            names = contrasted(self.objective.weights)
            rows, whole = gather_batch(rows, names, self._even_batches, self._last_rows)
        with self._full_precision():  # a logit of 30 has steps of 1/8 in bfloat16
            scale, *bias = (value.float() for value in logit_terms)
            bias_or_none = bias[0] if bias else None
            dims = self.args.matryoshka_dims or ()
            parts = fast_goal_loss(rows, scale, self.objective.weights, whole, bias_or_none, dims)
        # Gradients and logged losses are averaged over processes, and these are shares of a sum.
        return parts if whole is None else {name: value * self.args.world_size for name, value in parts.items()}

    @property
    def _even_batches(self) -> bool:
        """Whether all processes have batches of the same size, as accelerate and our streams ensure."""
        return self.accelerator.even_batches and isinstance(self.train_dataset, Sized)

    def _full_precision(self) -> torch.autocast:
        return torch.autocast(device_type=self.args.device.type, enabled=False)

    # ---- Evaluation and log ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, torch.Tensor | None]:
        """Return the loss of an evaluation batch, and its image and text embeddings for the retrieval metrics.

        Without local pairs there is no loss that could be compared with that of the training.
        """
        inputs = self._prepare_batch(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self._forward(model, inputs)
            # Without gathering: processes may have different numbers of rows or batches in the end.
            has_loss = not self.objective.needs_pairs or "local_pixel_values" in inputs
            parts = self.loss_parts(outputs, inputs, gather=False) if has_loss else {}
        for name, value in parts.items():
            if name != "loss":
                self._eval_parts[name].append(value.detach())
        loss = parts["loss"].detach() if parts else None
        if prediction_loss_only:
            return loss, None, None
        embeds = tuple(cast(torch.Tensor, outputs[name]).float() for name in ("image_embeds", "text_embeds"))
        # The Trainer computes metrics only if there are labels, of any value.
        return loss, embeds, torch.zeros(len(embeds[0]), device=embeds[0].device)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # Overridden since not all evaluations have the default metric, such as those of several datasets.
        needs_best = self.args.load_best_model_at_end or self.args.save_strategy == SaveStrategy.BEST
        is_default = self.args.metric_for_best_model == BEST_METRIC
        if is_default and not needs_best and f"eval_{BEST_METRIC}" not in metrics:
            return False
        return super()._determine_best_metric(metrics, trial)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and add the means of the loss parts to the metrics."""
        self._eval_parts.clear()
        # For exact resume: data loaders draw from torch's generator, and an interrupted evaluation is not repeated at
        # the same point of the training.
        try:
            with torch.random.fork_rng(devices=[]):
                output = super().evaluation_loop(*args, **kwargs)
        finally:
            if not self.is_in_train:  # a training keeps them for its next evaluation
                end_workers(self._loaders)
        prefix = kwargs.get("metric_key_prefix", "eval")
        for name, values in self._eval_parts.items():
            mean = self.accelerator.gather(torch.stack(values).mean()).mean()
            output.metrics[f"{prefix}_{name}"] = mean.item()  # type: ignore[index]
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add the means of the loss parts since the last line."""
        if "loss" in logs and self._part_steps:
            sums = self.accelerator.reduce(torch.stack([*self._part_sums.values()]), "mean") / self._part_steps
            means = {name: round(value, 4) for name, value in zip(self._part_sums, sums.tolist(), strict=True)}
            logs = {**logs, **means, "logit_scale": round(self._logit_scale.item(), 2)}
            if self.args.mini_batch_size == AUTO:
                logs["mini_batch_size"] = self._halved.size
            self._part_sums, self._part_steps = {}, 0
        if "train_loss" in logs:  # the steps since the last line are this process's share
            loss = torch.tensor(logs["train_loss"], device=self.args.device)
            logs["train_loss"] = self.accelerator.reduce(loss, "mean").item()
        super().log(logs, start_time)

    def _note_parts(
        self, parts: dict[str, torch.Tensor], logit_scale: torch.Tensor, outputs: Mapping[str, Any] | None = None
    ) -> None:
        # This waits for the device, as the Trainer does at every step.
        if not (parts["loss"].is_meta or torch.isfinite(parts["loss"])):
            values = {name: value.item() for name, value in parts.items()}
            output = Path(self.args.output_dir or ".")
            raise ValueError(not_finite_message(self.state.global_step + 1, values, self._names, outputs or {}, output))
        for name, value in parts.items():
            if name != "loss":
                self._part_sums[name] = self._part_sums.get(name, 0) + value.detach()
        self._part_steps += 1
        self._logit_scale = logit_scale.detach()  # of the output: the parameter may lie in shards

    # ---- Saving ----

    def _run(self) -> TrainingRun:
        tokens = None if self._train_rows is None else self._train_rows.tokens
        return TrainingRun(
            args=self.args,
            objective=self.objective,
            is_sigmoid=self.is_sigmoid,
            max_logit_scale=self.max_logit_scale,
            model=self.accelerator.unwrap_model(self.model),
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            base_model=self.card.base_model,
            caption_lengths=None if tokens is None else tokens.lengths,
            seconds_before=self._seconds_before,
        )

    def _finish_folder(self, folder: Path, images: bool) -> None:
        # A sharded model runs on all processes at once only.
        processor = None if self.is_fsdp_enabled or self.is_deepspeed_enabled else self.processing_class
        finish_folder(folder, self._run(), self.state, self.card, self.hub_model_id, images, processor)

    def _get_output_dir(self, trial: Any) -> str:
        # Overridden for atomic checkpoints: while one is written, the output folder is a draft.
        return super()._get_output_dir(trial) if self._draft is None else str(self._draft)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Overridden for atomic checkpoints: write one under another name, and rename it when it is complete on disk.
        run = Path(super()._get_output_dir(trial))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._drafted(folder) as parent, saving_errors(folder):
            self._draft, draft = parent, parent / folder.name
            only_model = self.args.save_only_model
            self.args.save_only_model = only_model and not self._interrupts.signum  # one cannot resume from it
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._draft, self.args.save_only_model = None, only_model
            if isinstance(self.train_dataset, StreamData):
                self.train_dataset.save(draft)
            if self.args.should_save:
                seconds = self._seconds_before + time.monotonic() - self._started
                notes = {SECONDS: seconds}
                if self.args.mini_batch_size == AUTO:
                    notes[ROWS_AT_ONCE] = self._halved.size
                write_settings(draft, {**self._trained_with, **notes})
                if self._neighbors is not None:
                    save_neighbors(draft, self._neighbors, self._is_renewed)
                best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
                if best == folder or best.is_dir():
                    self.state.best_model_checkpoint = str(best)
                    self.state.save_to_json(str(draft / TRAINER_STATE_NAME))
            self.accelerator.wait_for_everyone()
            # Machines without a shared disk keep their own parts.
            for rank in (self.args.process_index, self.args.local_process_index):
                if rank == 0 and draft.is_dir():
                    put_folder(draft, folder)
                self.accelerator.wait_for_everyone()
        self._saved_step = self.state.global_step
        pushes = self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END
        if pushes and self.is_world_process_zero() and not self._interrupts.signum:
            self._push(str(folder), f"Training in progress, step {self.state.global_step}")
        if self.args.should_save:
            rotate_checkpoints(str(run), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Overridden for atomic checkpoints: the Trainer would push a draft. `_save_checkpoint` pushes the complete one.
        pass

    @contextmanager
    def _drafted(self, path: Path) -> Iterator[Path]:
        """Give all processes the same new folder next to `path` to write into, and delete it in the end."""
        names = [draft_beside(path).name]
        broadcast_object_list(names)
        draft = path.with_name(names[0])
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, the processor, the model card and `handler.py`; push them if `push_to_hub` is set.

        An adapter is merged into a copy of the model, and saved in the folder `adapter` inside. With
        `save_adapter_only`, and in checkpoints, only the adapter is saved.

        Each file replaces an earlier one when it is complete, the configuration last.

        Raises:
            ValueError: A weight is NaN or infinite.
            OSError: The folder cannot be written.
        """
        folder = Path(output_dir or self.args.output_dir or ".")
        if self._draft is not None and self._draft in folder.parents:  # called by `_save_checkpoint`
            self._save_all(folder, images=False)
            return
        with self._drafted(folder / "model") as draft, saving_errors(folder):
            merges = is_adapted(self.model) and not self.args.save_adapter_only
            if merges:
                self._save_all(draft / ADAPTER_FOLDER, images=False)
            self._save_all(draft, images=folder == Path(self.args.output_dir or "."), merges=merges)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                adapter = folder / ADAPTER_FOLDER
                if (draft / ADAPTER_FOLDER).is_dir():
                    merge_folder(draft / ADAPTER_FOLDER, adapter, last=ADAPTER_CONFIG_NAME, replaced=WEIGHT_FILES)
                elif (adapter / BASE_FILE).is_file():  # an earlier training's
                    shutil.rmtree(adapter)
                last = "config.json" if (draft / "config.json").is_file() else ADAPTER_CONFIG_NAME
                merge_folder(draft, folder, last=last, replaced=WEIGHT_FILES)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub("Model save")

    def _save_all(self, folder: Path, images: bool, merges: bool = False) -> None:
        if not merges:
            super().save_model(str(folder), _internal_call=True)
        elif self.args.should_save:
            merged_copy(self.accelerator.unwrap_model(self.model)).save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
        if self.args.should_save:
            self._finish_folder(folder, images)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Overridden since every saved model passes here: weights must be finite, and FSDP changes the model's class.
        model = self.accelerator.unwrap_model(self.model)
        weights = model.state_dict() if state_dict is None else state_dict
        refuse_not_finite(weights.items(), f"the model after step {self.state.global_step}")
        # The Trainer pickles its arguments into the folder, which must not hold the token.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            with own_class(model):
                super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our model card instead of the one of `transformers`."""
        if self.is_world_process_zero():
            self._finish_folder(Path(self.args.output_dir or "."), images=True)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository on the Hub, before anything is trained.

        Raises:
            ValueError: There is no token.
        """
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
        """Save the model, push it with the processor, card and code in one commit, and wait for the upload."""
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
