"""The trainer: the objective over the batch of all processes, its parts in the log, retrieval at evaluations."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sized
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput

from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalOutput
from fastgoal.modeling_fastgoal.losses_fastgoal import contrasted, fast_goal_loss, loss_rows
from fastgoal.modeling_fastgoal.towers_fastgoal import is_sigmoid
from fastgoal.processing.checkpoints.adapters import is_adapted
from fastgoal.processing.processing_fastgoal import FastGoalProcessor

from .batches.collator import NAMES, FastGoalCollator
from .batches.hard_negatives import mark_start, neighbors_file, training_neighbors
from .batches.rows import PairData, check_rows, has_short_captions, token_counts
from .batches.samplers import CaptionLengthSampler, HardNegativeSampler
from .batches.streams import PLACE, StreamData
from .callbacks import Epochs, LogitScaleLimit, StartLines, TowardsBase
from .evaluation.measures.retrieval import retrieval_of_predictions
from .objectives import Objective
from .parallel.gather import gather_batch
from .parallel.gradient_cache import cached_backward
from .parallel.strategy import group_of_its_own, logit_parameters, prepare_shards
from .saving import SavingTrainer
from .trained_weights import prepare_weights
from .training_arguments import FastGoalTrainingArguments

LOCAL_INPUTS = ("local_pixel_values", "local_input_ids", "local_attention_mask")


class FastGoalTrainer(SavingTrainer):
    """Fine-tunes a model of `FastGoalModel.from_base` with the objective of its `FastGoalTrainingArguments`.

    Contrastive losses are over the batch of all processes: embeddings are gathered with gradients, global and local
    ones apart, and each process computes the losses of its own rows against all. Where the last batch of an epoch is
    too short for all processes, the rows that the data loader repeats to fill it are left out of the loss: N processes
    do what one process with the whole batch does.

    Each line of the log has the unweighted parts of the loss beside the loss. Every evaluation reports the loss and
    R@K both ways over the whole evaluation set, one caption an image. Checkpoints hold the processor and a model card,
    filled from the training so far and from `card`, what the trainer cannot know by itself.

    Args:
        model: A model of `FastGoalModel.from_base`.
        args: A `FastGoalTrainingArguments`.
        processing_class: The `FastGoalProcessor` of the model.
        data_collator: A `FastGoalCollator` for the objective by default.
        **kwargs: As for `transformers.Trainer` (`train_dataset`, `eval_dataset`, `callbacks`...).

    Raises:
        ValueError: There is no processor, a row of the data lacks its image, its caption or the pairs that the
            objective needs, or one process would use several GPUs.
        TypeError: The model is no `FastGoalCLIPModel`, or the data are a single row.
    """

    # The losses are means over the batch; without this the Trainer may think them scaled for accumulation already.
    loss_is_scaled_for_ga = False

    args: FastGoalTrainingArguments
    objective: Objective

    def __init__(
        self,
        model: nn.Module | None = None,
        args: FastGoalTrainingArguments | None = None,
        processing_class: FastGoalProcessor | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ):
        args = args or FastGoalTrainingArguments()
        if args.n_gpu > 1:
            raise ValueError(
                f"One process cannot train on {args.n_gpu} GPUs. Start one for each with "
                "`accelerate launch trainer/run.py`, or choose one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        data = kwargs.get("train_dataset")
        if data_collator is None and data is not None and not has_short_captions(data):
            args.without_short_captions()
        self.objective = args.resolved_objective()
        if data_collator is None:
            if processing_class is None:
                raise ValueError("`processing_class` must be the model's FastGoalProcessor, got None.")
            data_collator = FastGoalCollator(
                *(processing_class, self.objective.needs_pairs, str(args.pair_sampling), args.order_seed),
                short_captions=self.objective.needs_short_captions,
            )
        # Not by its class: that of a checkpoint with its code beside it is another one of the same name.
        if isinstance(model, PreTrainedModel) and "region_mask" not in signature(model.forward).parameters:
            raise TypeError(
                f"`model` must be a FastGoalCLIPModel, got a {type(model).__name__}. Make one of a CLIP with "
                "`FastGoalCLIPModel.from_base(model)`."
            )
        self.is_sigmoid = isinstance(model, nn.Module) and is_sigmoid(model, args.contrastive)
        if args.max_logit_scale is None:
            args.max_logit_scale = 0.0 if self.is_sigmoid else 100.0
        model = prepare_weights(model, args)
        if isinstance(data_collator, FastGoalCollator):
            for name in ("train_dataset", "eval_dataset"):
                check_rows(kwargs.get(name), name, self.objective.needs_pairs)
        if isinstance(stream := kwargs.get("train_dataset"), StreamData):
            stream.prepare(args, self.objective.needs_pairs)
        kwargs.setdefault("compute_metrics", retrieval_of_predictions)
        super().__init__(
            model=model, args=args, processing_class=processing_class, data_collator=data_collator, **kwargs
        )
        self._sharded = prepare_shards(self.accelerator, self.model)
        if self._sharded and is_adapted(self.model):
            raise ValueError(
                "an adapter cannot be trained in shards (FSDP2); it is small: use all weights in each (DDP)."
            )
        if self._sharded and args.hard_negative_refresh and args.hard_negatives:
            raise ValueError(
                "`hard_negative_refresh` embeds the data on the way, which shards (FSDP2) cannot: set it to 0."
            )
        self.add_callback(StartLines(self))
        self.add_callback(Epochs())
        if args.l2sp_weight:
            self.add_callback(TowardsBase(args.l2sp_weight, cast(nn.Module, self.model)))
        if args.max_logit_scale:
            self.add_callback(LogitScaleLimit(args.max_logit_scale))
        # What the logs say of each part since the last line: sum and number of steps, kept on the device.
        self._part_sums: dict[str, torch.Tensor] = {}
        self._part_steps = 0
        self._logit_scale = torch.tensor(0.0)
        # The last batch of an epoch, and how many rows of all processes' last batches are not repetitions.
        self._last_batch: Any = None
        self._last_rows: int | None = None
        self._eval_parts: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self._names: list[str] = []  # of the rows of the batch
        self._neighbors: torch.Tensor | None = None
        self._start_mark: str | None = None  # of the model that hard-negative batches were first made by
        self._is_renewed = False

    def _begin(self, checkpoint: str | None) -> None:
        if isinstance(self.train_dataset, StreamData):
            self.train_dataset.begin(checkpoint)
        # Before a checkpoint's weights are loaded: the order of rows is that of the training that is gone on with.
        if self.args.hard_negatives and self.train_dataset is not None:
            self._neighbors = self._find_neighbors(self.train_dataset)
            self._is_renewed = False
            if self.args.hard_negative_refresh and self.is_world_process_zero():
                self._start_mark = mark_start(self.accelerator.unwrap_model(self.model), self.train_dataset)
                if checkpoint is None:  # what another training left there
                    neighbors_file(self.args, is_renewal=True).unlink(missing_ok=True)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The objective of this process's rows among those of all; the mean over the processes is that of the batch."""
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
        """Forward and backward of one batch, in pieces with `mini_batch_size`."""
        if inputs is self._last_batch and isinstance(self.train_dataset, Sized) and not self.args.dataloader_drop_last:
            self._last_rows = len(self.train_dataset) % (self.args.train_batch_size * self.args.world_size) or None
        try:
            if not self.args.mini_batch_size:
                return super().training_step(model, inputs, num_items_in_batch)
            return self._cached_step(model, self._prepare_inputs(inputs), self.args.mini_batch_size)
        finally:
            self._last_rows = None

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on the device, its pixels normalized there."""
        inputs = super()._prepare_inputs(inputs)
        self._names = inputs.pop(NAMES, [])
        if isinstance(self.train_dataset, StreamData) and PLACE in inputs:
            self.train_dataset.note(inputs.pop(PLACE))
        collator = self.data_collator
        return collator.reader.normalize(inputs) if isinstance(collator, FastGoalCollator) else inputs

    def _cached_step(self, model: nn.Module, inputs: dict[str, torch.Tensor], chunk: int) -> torch.Tensor:
        model.train()
        logit_scales: list[torch.Tensor] = []

        def embed(piece: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
            with self.compute_loss_context_manager():
                outputs = self._forward(model, piece)
                logit_scales.append(outputs.logit_scale)
                return self.loss_rows(outputs, piece), self._logit_terms(outputs)

        # The Trainer divides the loss of a normal step by this number.
        scale = 1 / self.current_gradient_accumulation_steps
        parts = cached_backward(
            inputs,
            chunk,
            embed,
            self._loss_of_rows,
            backward=self.accelerator.backward,
            no_sync=partial(self.accelerator.no_sync, model),
            scale=scale,
        )
        self._note_parts(parts, logit_scales[0])
        return parts["loss"] * scale

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        # The Trainer draws all batches of an update before the first is used: only the last can be the epoch's last.
        ended = bool(batches) and self.accelerator.gradient_state.end_of_dataloader
        self._last_batch = batches[-1] if ended else None
        return batches, items

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Workers leave the normalizing to the device; evaluations take each row's best pair: their losses compare."""
        chosen = self.data_collator
        if isinstance(chosen, FastGoalCollator):
            self.data_collator = chosen.raw(None if kwargs.get("is_training") else "best")
        try:
            data = self.train_dataset if kwargs.get("is_training") else None
            if isinstance(data, StreamData):
                return data.loader(self.args, self.data_collator, self.accelerator.device)
            if isinstance(data, PairData) and isinstance(chosen, FastGoalCollator) and chosen.local_pairs:
                data.tokenize(chosen.processor, self.args)
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.data_collator = chosen

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        near, by_length = self.args.hard_negatives, self.args.group_by_caption_length
        if not near and not by_length:
            return super()._get_train_sampler(train_dataset)
        lengths = token_counts(data, self.processing_class) if by_length else None
        batch_size, seed = self.args.train_batch_size * self.args.world_size, self.args.order_seed
        if lengths is not None and not near:
            return CaptionLengthSampler(lengths, batch_size, seed)
        if self._neighbors is None:
            self._neighbors = self._find_neighbors(data)
        return HardNegativeSampler(self._neighbors, batch_size, seed, lengths, self._renewed_neighbors)

    def _find_neighbors(self, data: Any, **how: Any) -> torch.Tensor:
        model = self.accelerator.unwrap_model(self.model)
        return training_neighbors(model, self.processing_class, data, self.accelerator, self.args, **how)

    def _renewed_neighbors(self, epoch: int) -> torch.Tensor | None:
        """Neighbors by the model on its way, once, when `hard_negative_refresh` of the epochs are over."""
        share = self.args.hard_negative_refresh
        if not share or self._is_renewed or epoch < max(1, round(share * self.state.num_train_epochs)):
            return None
        self._is_renewed = True
        return self._find_neighbors(self.train_dataset, mark=self._start_mark, is_renewal=True)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._sharded:
            group_of_its_own(optimizer, logit_parameters(self.model))
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All parameters with `decay_all`; else all but biases and norms, as `Trainer` has it."""
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def _forward(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
        # Training on region crops alone leaves images and captions out.
        names = inputs if self.objective.needs_global or not model.training else LOCAL_INPUTS
        tokens = {"return_token_embeds": True} if self.objective.needs_tokens else {}
        return model(**{name: inputs[name] for name in names if name in inputs}, **tokens)

    def loss_rows(self, outputs: FastGoalOutput, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the loss needs of the rows of this process, one row per sample: embeddings, masks, losses of rows."""
        # SPARC's losses of rows want full precision; all else gets it when the rows are together.
        full = {
            name: outputs[name].float() for name in ("patch_embeds", "token_embeds", "logit_scale") if name in outputs
        }
        with self._full_precision():
            return loss_rows(
                {**outputs, **full}, full["logit_scale"], inputs.get("region_mask"), inputs.get("sentence_mask")
            )

    def loss_parts(
        self, outputs: FastGoalOutput, inputs: Mapping[str, torch.Tensor], gather: bool = True
    ) -> dict[str, torch.Tensor]:
        """The loss and its parts by name, of this process's rows among those of all, or by themselves without `gather`.

        `outputs` are the model's for `inputs`, the batch of this process. The mean over the processes is the loss of
        the whole batch.
        """
        return self._loss_of_rows(self.loss_rows(outputs, inputs), *self._logit_terms(outputs), gather=gather)

    def _logit_terms(self, outputs: Mapping[str, Any]) -> list[torch.Tensor]:
        """What the losses make logits of cosines with: the scale, and for sigmoid losses the bias."""
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
            parts = fast_goal_loss(rows, scale, self.objective.weights, whole, *bias)
        # Gradients, and the losses in the log, are averaged over the processes: shares of a sum are multiplied for it.
        return parts if whole is None else {name: value * self.args.world_size for name, value in parts.items()}

    @property
    def _even_batches(self) -> bool:
        """Whether batches are known to be of one size in all processes: accelerate and our streams see to it."""
        return self.accelerator.even_batches and isinstance(self.train_dataset, Sized | StreamData)

    def _full_precision(self) -> torch.autocast:
        return torch.autocast(device_type=self.args.device.type, enabled=False)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, torch.Tensor | None]:
        """Loss of one evaluation batch, and its image and caption embeddings for the retrieval metrics."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self._forward(model, inputs)
            # Over this process's rows alone: the last batches of the processes need not be of one number.
            parts = self.loss_parts(outputs, inputs, gather=False)
        for name, value in parts.items():
            if name != "loss":
                self._eval_parts[name].append(value.detach())
        loss = parts["loss"].detach()
        if prediction_loss_only:
            return loss, None, None
        embeds = tuple(cast(torch.Tensor, outputs[name]).float() for name in ("image_embeds", "text_embeds"))
        # The Trainer computes metrics only where there are labels: any will do.
        return loss, embeds, torch.zeros(len(embeds[0]), device=loss.device)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self._eval_parts.clear()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        for name, values in self._eval_parts.items():
            mean = self.accelerator.gather(torch.stack(values).mean()).mean()
            output.metrics[f"{prefix}_{name}"] = mean.item()  # type: ignore[index]
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the loss parts since the last line."""
        if "loss" in logs and self._part_steps:
            sums = self.accelerator.reduce(torch.stack([*self._part_sums.values()]), "mean") / self._part_steps
            means = {name: round(value, 4) for name, value in zip(self._part_sums, sums.tolist(), strict=True)}
            logs = {**logs, **means, "logit_scale": round(self._logit_scale.item(), 2)}
            self._part_sums, self._part_steps = {}, 0
        if "train_loss" in logs:  # what no line was logged for yet is this process's share
            loss = torch.tensor(logs["train_loss"], device=self.args.device)
            logs["train_loss"] = self.accelerator.reduce(loss, "mean").item()
        super().log(logs, start_time)

    def _note_parts(
        self, parts: dict[str, torch.Tensor], logit_scale: torch.Tensor, outputs: Mapping[str, Any] | None = None
    ) -> None:
        # The Trainer waits for the loss at every step, too.
        if not (parts["loss"].is_meta or torch.isfinite(parts["loss"])):
            self._stop_at_step({name: value.item() for name, value in parts.items()}, self._names, outputs)
        for name, value in parts.items():
            if name != "loss":
                self._part_sums[name] = self._part_sums.get(name, 0) + value.detach()
        self._part_steps += 1
        self._logit_scale = logit_scale.detach()  # of the output: the parameter may lie in shards
