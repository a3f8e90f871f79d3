"""Arguments of a FAST-GOAL training: `TrainingArguments` with the arguments and defaults of this method."""

import math
from dataclasses import dataclass, field, fields, make_dataclass, replace
from inspect import signature
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import IntervalStrategy

from fastgoal.modeling_fastgoal.losses_fastgoal import LossWeights
from fastgoal.processing.checkpoints.adapters import TARGETS, TOWERS

from .batches.collator import PAIR_SAMPLING
from .objectives import OBJECTIVES, WEIGHTS, Objective, resolve_objective

_PAPER: dict[str, Any] = {
    "pair_sampling": "best",
    "hard_negatives": False,
    "hard_negative_refresh": 0.0,
    "l2sp_weight": 0.0,
    "warmup_steps": 0,
    "per_device_train_batch_size": 64,
    "dataloader_drop_last": False,
    "max_grad_norm": 1.0,
    "decay_all": False,
}
RECIPES: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "goal": {
        **_PAPER,
        "per_device_train_batch_size": 16,
        "dataloader_drop_last": True,
        "max_grad_norm": 0.0,
        "decay_all": True,
    },
    "experimental": {
        **_PAPER,
        **{"pair_sampling": "any", "hard_negatives": True, "hard_negative_refresh": 0.4, "warmup_steps": 0.2},
        **{"tsl_weight": 0.0, "token_weight": 0.1, "short_weight": 0.3, "l2sp_weight": 0.001},
    },
}
"""Values of the arguments that are None, by recipe. A weight is set for the objectives that use the loss of
`_GOES_WITH`."""
_GOES_WITH = {"token_weight": "tsl_weight", "short_weight": "global_weight"}

# Lower bounds of numbers that would fail late or silently otherwise, and whether a number must be above its bound.
LOWEST: dict[str, tuple[float, bool]] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), (1, False)
    ),
    **dict.fromkeys(("mini_batch_size", "lora_r", "crop_size"), (1, False)),
    **dict.fromkeys(("logging_steps", "save_steps", "eval_steps", "num_train_epochs", "adam_epsilon"), (0, True)),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm"), (0, False)),
    **dict.fromkeys(("dataloader_num_workers", "adam_beta1", "adam_beta2", "max_logit_scale"), (0, False)),
    **dict.fromkeys(("lora_alpha",), (0, True)),
    **dict.fromkeys(("freeze_layers", "hard_negative_refresh", "l2sp_weight"), (0, False)),
    **dict.fromkeys(WEIGHTS, (0, False)),
}
# Arguments that change the trained weights by more than rounding, so that a resumed training must not change them.
# `FastGoalTrainer.training_settings` adds what results from the other ones, such as the loss weights.
WEIGHT_ARGUMENTS = (
    *("pair_sampling", "train_sampling_strategy", "hard_negatives", "hard_negative_refresh", "l2sp_weight"),
    *("matryoshka_dims", "crop_size"),
    *("lora_r", "lora_alpha", "lora_target_modules", "freeze", "freeze_layers", "neftune_noise_alpha"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs"),
    *("optim", "optim_args", "optim_target_modules", "weight_decay", "decay_all", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "auto_find_batch_size"),
    *("dataloader_drop_last", "bf16", "fp16", "tf32", "deepspeed", "seed", "load_best_model_at_end"),
)
# The model that a training ends with depends on them only if it is the best one.
BEST_MODEL_ARGUMENTS = (
    *("metric_for_best_model", "greater_is_better", "save_strategy", "save_steps"),
    *("eval_strategy", "eval_steps", "eval_delay"),
)
ACCELERATOR_SETTINGS = ("split_batches", "even_batches", "use_seedable_sampler", "gradient_accumulation_kwargs")
AUTO = "auto"
BEST_METRIC = "text_to_image_R@1"
SAVE_STEPS = 500
SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length")


def _refuse_numbers(args: Any) -> None:
    """Raise `ValueError` for a number that is too small, NaN or infinite."""
    for name, (lowest, is_open) in LOWEST.items():
        value = getattr(args, name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, got {value}.")
        if value < lowest or (is_open and value == lowest):
            words = "must be above" if is_open else "must not be negative" if lowest == 0 else "must be at least"
            raise ValueError(f"`{name}` {words}{'' if lowest == 0 and not is_open else f' {lowest}'}, got {value}.")


def _check_schedule(args: Any) -> None:
    """Raise `ValueError` if `lr_scheduler_kwargs` does not fit `lr_scheduler_type`, which would fail after loading."""
    given = dict(args.lr_scheduler_kwargs or {})
    schedule: Any = TYPE_TO_SCHEDULER_FUNCTION[args.lr_scheduler_type]
    parameters = signature(schedule).parameters
    names = [name for name in parameters if name not in ("optimizer", "num_warmup_steps", "num_training_steps")]
    allowed = "any keyword of that schedule" if "kwargs" in names else ", ".join(names) or "none"
    unknown = [] if "kwargs" in names else [name for name in given if name not in names]
    reason = f"it has no {', '.join(unknown)}" if unknown else ""
    try:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
        if not unknown:
            get_scheduler(args.lr_scheduler_type, optimizer, 0, 10, given)
    except (TypeError, ValueError, ArithmeticError) as error:
        reason = str(error)
    if reason:
        raise ValueError(
            f"`lr_scheduler_kwargs` must fit `lr_scheduler_type={args.lr_scheduler_type.value}`, got {given}: {reason}."
            f" Keys: {allowed}."
        )


def _setting(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


_FLAG = {"nargs": "?", "const": True}
"""For a boolean with the default None: a flag by itself, or followed by true or false."""

# One argument for each weight of `LossWeights`.
_WeightArguments: Any = make_dataclass(
    "_WeightArguments",
    [
        (
            weight.name,
            float | None,
            _setting(None, f"Weight of {weight.metadata['help']}. Set by the objective or the recipe by default."),
        )
        for weight in fields(LossWeights)
    ],
    repr=False,
    eq=False,
)


@dataclass(repr=False)  # the one of `TrainingArguments` hides tokens
class FastGoalTrainingArguments(_WeightArguments, TrainingArguments):
    """Arguments of a FAST-GOAL training.

    >>> args = FastGoalTrainingArguments("fast-goal", num_train_epochs=2, use_cpu=True)
    >>> args.learning_rate, args.per_device_train_batch_size
    (5e-06, 64)

    Only the arguments that `TrainingArguments` does not have, or that have another default or another meaning here, are
    listed. The defaults are those of GOAL's published training: AdamW, and a cosine schedule without warmup.

    The recipe replaces arguments that are None with its own values. To change the recipe, create new arguments:
    `dataclasses.replace` would keep the values of the old recipe.

    Raises:
        ValueError: A value is not allowed; the message names the argument.
    """

    recipe: str = _setting(
        "paper",
        "Set of defaults for the arguments that are not given. `paper`: the published settings. `goal`: the settings "
        "of GOAL's public code (batches of 16, incomplete batches dropped, no gradient clipping, weight decay on "
        "all parameters); use it with `bf16` and with pairs made by `fastgoal pairs --model "
        "openai/clip-vit-large-patch14-336`, the model that GOAL matches pairs with. `experimental`: the best settings "
        "of this project's study on drawn scenes, never tried on photographs (`pair_sampling` any, "
        "`hard_negatives`, `hard_negative_refresh` 0.4, `warmup_steps` 0.2, `l2sp_weight` 0.001, `token_weight` 0.1 "
        "instead of `tsl_weight`, `short_weight` 0.3 if the rows have short captions).",
        choices=[*RECIPES],
    )
    objective: str = _setting("fast_goal", f"Objective to train: {', '.join(OBJECTIVES)}.", choices=[*OBJECTIVES])
    contrastive: str | None = _setting(
        None,
        "Contrastive loss: `softmax` (InfoNCE, as in CLIP) or `sigmoid` (as in SigLIP; for SigLIP only). Defaults to "
        "the loss that the base model was trained with.",
        choices=["softmax", "sigmoid"],
    )
    matryoshka_dims: list[int] | None = _setting(  # noqa: RUF009
        None,
        "Numbers of dimensions, such as 256 128 64, that the contrastive losses also train: each is then the mean of "
        "its values for the full embeddings and for their first dimensions (Matryoshka representation learning).",
    )
    pair_sampling: str | None = _setting(
        None,
        "Which local pair of an image to train on: the `best` (as published), one of the `top3`, or `any`. "
        "`top3` and `any` draw a new pair in each epoch. Set by the recipe by default.",
        choices=[*PAIR_SAMPLING],
    )
    crop_size: int | None = _setting(
        None,
        "Side of the region crops in pixels, a multiple of the model's patch size, such as 160 for a ViT-B/16. Smaller "
        "crops make a step cheaper. Defaults to the model's image size, as published.",
    )
    hard_negatives: bool | None = _setting(
        None,
        "Whether to put images that look alike into the same batch, as hard negatives of each other. Takes one pass "
        "of the image tower over all training images before the first step. Set by the recipe by default.",
        **_FLAG,
    )
    hard_negative_refresh: float | None = _setting(
        None,
        "Fraction of the epochs after which to search for hard negatives again, with the current model; 0 disables it. "
        "Set by the recipe by default.",
    )
    l2sp_weight: float | None = _setting(
        None,
        "Weight of the squared distance between the trained weights and their initial values (L2-SP). Higher values "
        "keep the model closer to its base. Set by the recipe by default.",
    )
    lora_r: int | None = _setting(
        None,
        "Rank of a LoRA adapter to train instead of the model's own weights. Needs less memory, the package peft, and "
        "a `learning_rate` of about 1.0e-4. The model in `output_dir` has the adapter merged into its weights. The "
        "folder `adapter` inside has the adapter itself, which all commands accept too.",
    )
    lora_alpha: float | None = _setting(
        None, "LoRA's alpha: the adapter's output is scaled by `lora_alpha` / `lora_r`. Defaults to `lora_r`."
    )
    lora_target_modules: list[str] | None = _setting(  # noqa: RUF009
        None, f"Suffixes of the modules that get LoRA adapters. Defaults to {' '.join(TARGETS)}."
    )
    save_adapter_only: bool = _setting(
        False,
        "Whether to save only the adapter of `lora_r` in `output_dir`, without the merged model. `fastgoal merge` "
        "merges it into its base.",
    )
    freeze: str | None = _setting(
        None,
        "Tower to freeze together with its projection: `vision` or `text`. By default neither is frozen.",
        choices=[*TOWERS],
    )
    freeze_layers: int = _setting(
        0, "Number of layers to freeze in both towers, counted from the input, together with the embeddings."
    )
    mini_batch_size: int | str | None = _setting(
        None,
        "Number of pairs to process at once with gradient caching. Loss and gradients remain those of the whole batch. "
        "Needs the memory of a mini-batch and one more forward pass. `auto` starts with the whole batch and halves the "
        "number after every out-of-memory error.",
    )
    max_logit_scale: float | None = _setting(
        None,
        "Upper bound of the learned logit scale; 0 for no bound. Defaults to 100, as in CLIP's training, and to 0 with "
        "sigmoid losses.",
    )
    train_sampling_strategy: str = _setting(
        "random",
        "Order of the training rows: `random`, `sequential`, or `group_by_length`, which puts captions with similar "
        "numbers of tokens into the same batch, to reduce padding.",
        choices=[*SAMPLING_STRATEGIES],
    )
    output_dir: str = _setting("fast-goal", "Folder for the model and its checkpoints.")
    learning_rate: float = _setting(5e-6, "Peak learning rate of AdamW.")
    weight_decay: float = _setting(0.05, "Weight decay of AdamW.")
    num_train_epochs: float = _setting(10.0, "Number of training epochs.")
    warmup_steps: float | None = _setting(  # type: ignore[assignment]
        None, "Number of warmup steps, or a fraction of all steps if below 1. Set by the recipe by default."
    )
    decay_all: bool | None = _setting(
        None,
        "Whether to apply weight decay to biases and normalization layers too. Set by the recipe by default.",
        **_FLAG,
    )
    max_grad_norm: float | None = _setting(  # type: ignore[assignment]
        None, "Maximum gradient norm; 0 disables clipping. Set by the recipe by default."
    )
    lr_scheduler_type: str = _setting("cosine", "Learning rate schedule.")
    per_device_train_batch_size: int | None = _setting(  # type: ignore[assignment]
        None, "Training batch size per device. Set by the recipe by default."
    )
    dataloader_drop_last: bool | None = _setting(  # type: ignore[assignment]
        None, "Whether to drop the last incomplete batch of an epoch. Set by the recipe by default.", **_FLAG
    )
    per_device_eval_batch_size: int = _setting(64, "Evaluation batch size per device.")
    dataloader_num_workers: int = _setting(2, "Number of subprocesses that load and crop images.")
    dataloader_persistent_workers: bool = _setting(
        True, "Whether the subprocesses that load images live as long as the training instead of one epoch."
    )
    logging_steps: float = _setting(10, "Log every N steps.")
    eval_on_start: bool | None = _setting(  # type: ignore[assignment]
        None,
        "Whether to evaluate before the first step. `fastgoal train` does by default if `eval_data` is given.",
        **_FLAG,
    )
    gradient_accumulation_steps: int = _setting(
        1,
        "Number of batches whose gradients are added before a step of the optimizer. This adds no negatives: each "
        "batch is contrasted by itself. For a larger contrastive batch use `mini_batch_size`.",
    )
    save_strategy: str | None = _setting(  # type: ignore[assignment]
        None,
        "When to save checkpoints: `no`, `steps` (every `save_steps` steps), `epoch` (and every `save_steps` steps "
        "within an epoch, if given) or `best`. By default at the end of every epoch and every 500 steps within longer "
        "epochs, or every `save_steps` steps if only that is given. An interrupt always saves one.",
    )
    save_steps: float | None = _setting(  # type: ignore[assignment]
        None, "Number of steps between checkpoints, or a fraction of all steps if below 1; see `save_strategy`."
    )
    save_total_limit: int | None = _setting(
        2,
        "Number of checkpoints to keep: the newest, and the best by `metric_for_best_model`. Others are deleted.",
    )
    metric_for_best_model: str | None = _setting(
        None, f"Metric that the best checkpoint is chosen by. Defaults to {BEST_METRIC} on the evaluation data."
    )
    eval_strategy: IntervalStrategy | str = _setting(  # noqa: RUF009
        "no",
        "When to evaluate: `no`, `steps` or `epoch`. `fastgoal train` does after each epoch if `eval_data` is given.",
    )
    resume_from_checkpoint: str | None = _setting(
        None, "Checkpoint to resume from: a folder, or `true` for the newest one in `output_dir`, if there is one."
    )
    use_cpu: bool = _setting(False, "Whether to train on the CPU even if there is a GPU.")
    do_train: bool = _setting(False, "Has no effect: `fastgoal train` always trains.")
    do_eval: bool = _setting(False, "Has no effect here: set `eval_data` to evaluate.")
    do_predict: bool = _setting(False, "Has no effect here.")
    push_to_hub: bool = _setting(
        False,
        "Whether to push each checkpoint when it is saved, and the model at the end, to the Hub repository "
        "`hub_model_id`; see `hub_strategy`.",
    )
    overwrite_output_dir: bool = _setting(
        False,
        "Whether to train into a folder that already contains a model, a dataset or another training. Old checkpoints "
        "in it are deleted.",
    )
    ignore_resume_mismatch: bool = _setting(
        False,
        "Whether to resume with the given data and settings even if those of the checkpoint differ, which is an error "
        "otherwise.",
    )
    remove_unused_columns: bool = _setting(
        False, "Must be False: the collator needs columns that the model does not take."
    )

    def __post_init__(self) -> None:
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be False, got True: the collator reads these columns.")
        for name, allowed in (
            ("recipe", RECIPES),
            ("freeze", (None, *TOWERS)),
            ("train_sampling_strategy", SAMPLING_STRATEGIES),
        ):
            if getattr(self, name) not in allowed:
                names = ", ".join(str(value) for value in allowed if value)
                raise ValueError(f"`{name}` must be one of {names}, got {getattr(self, name)!r}.")
        if self.length_column_name != "length":
            raise ValueError(
                f"`length_column_name` is not supported, got {self.length_column_name!r}. The lengths of "
                "`train_sampling_strategy=group_by_length` are the captions' numbers of tokens."
            )
        if isinstance(self.mini_batch_size, str) and self.mini_batch_size != AUTO:
            try:
                self.mini_batch_size = int(self.mini_batch_size)
            except ValueError:
                raise ValueError(
                    f"`mini_batch_size` must be a positive integer or auto, got {self.mini_batch_size!r}."
                ) from None
        _refuse_numbers(self)
        if self.max_logit_scale and self.max_logit_scale < 1:
            raise ValueError(f"`max_logit_scale` must be 0 (no limit) or at least 1, got {self.max_logit_scale}.")
        if self.lora_r is None and (self.lora_alpha is not None or self.lora_target_modules is not None):
            raise ValueError("`lora_alpha` and `lora_target_modules` need `lora_r`. Set it, or leave them out.")
        published = resolve_objective(self.objective)
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None and getattr(published.weights, _GOES_WITH.get(name, name), True):
                setattr(self, name, value)
        if self.hard_negatives and self.train_sampling_strategy == "sequential":
            raise ValueError(
                "`hard_negatives` cannot be combined with `train_sampling_strategy=sequential`: it orders the rows "
                "itself. Set `hard_negatives=False`, which the recipe may have set."
            )
        if self.hard_negative_refresh and self.hard_negative_refresh >= 1:
            raise ValueError(
                "`hard_negative_refresh` must be a fraction of the epochs, from 0 (never) to below 1, got "
                f"{self.hard_negative_refresh}. For example, 0.4 means after two of five epochs."
            )
        if self.l2sp_weight and self.fp16 and not self.max_grad_norm:
            raise ValueError(
                "`l2sp_weight` with `fp16` needs unscaled gradients, which clipping provides. Set `max_grad_norm`, or "
                "use `bf16`."
            )
        if self.enable_jit_checkpoint:
            raise ValueError(
                "`enable_jit_checkpoint` is not supported: each process would start its own timer, and may save before "
                "the optimizer's step. Leave it out. After SIGTERM or SIGINT, all processes finish the same step and "
                "save a checkpoint anyway."
            )
        if self.save_strategy is None and self.save_steps is None:
            self.save_strategy, self.save_steps = "epoch", SAVE_STEPS
        elif self.save_strategy is None:
            self.save_strategy = "steps"
        elif self.save_strategy == "steps" and self.save_steps is None:
            self.save_steps = SAVE_STEPS
        if self.metric_for_best_model is None and self.lr_scheduler_type not in ("reduce_lr_on_plateau", "greedy"):
            self.metric_for_best_model = BEST_METRIC
        objective = self.resolved_objective()  # refuse wrong names and weights before anything is loaded
        if self.crop_size is not None and not objective.needs_pairs:
            raise ValueError(
                f"`crop_size` needs an objective with local pairs, got {self.crop_size} with "
                f"`objective={self.objective}`. Leave it out."
            )
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # settings for a GPU run without one
        # Without an accelerator torch warns about every data loader that is asked to pin memory.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        # Workers that start anew in each epoch are forked next to running threads, which can hang with Python 3.11.
        self.dataloader_persistent_workers = self.dataloader_persistent_workers and self.dataloader_num_workers > 0
        super().__post_init__()
        _check_schedule(self)
        available = get_available_reporting_integrations()
        for logger in self.report_to or ():
            if logger in INTEGRATION_TO_CALLBACK and logger not in available:
                raise ValueError(
                    f"`report_to` names {logger}, which is not installed. Install it with `pip install {logger}`, or "
                    "leave it out."
                )

    @property
    def order_seed(self) -> int:
        """The seed of the order of the rows and of the pairs that are drawn."""
        return self.seed if self.data_seed is None else self.data_seed

    def weight_settings(self) -> dict[str, Any]:
        """Return the arguments that the trained weights depend on and that are used as given, by name."""
        names = [*WEIGHT_ARGUMENTS, *(BEST_MODEL_ARGUMENTS if self.load_best_model_at_end else ())]
        names.remove("num_train_epochs" if self.max_steps > 0 else "max_steps")
        accelerator = {
            f"accelerator_config.{name}": getattr(self.accelerator_config, name) for name in ACCELERATOR_SETTINGS
        }
        return {name: getattr(self, name) for name in names} | accelerator

    @property
    def wants_resume(self) -> bool:
        """Whether `resume_from_checkpoint` asks to resume, if there is a complete checkpoint."""
        return (self.resume_from_checkpoint or "false").lower() != "false"

    def resolved_objective(self) -> Objective:
        """Return the objective with its weights, those of the recipe, and those that are given."""
        return resolve_objective(self.objective, **{name: getattr(self, name) for name in WEIGHTS})

    def without_short_captions(self, objective: Objective) -> Objective:
        """Return the objective for data without short captions, with the loss over them left out.

        Raises:
            ValueError: `short_weight` was given, not only set by the recipe.
        """
        if self.short_weight and self.short_weight != RECIPES[self.recipe].get("short_weight"):
            raise ValueError(
                f"`short_weight` is {self.short_weight}, and the rows have no column short_captions. Add one (a text "
                "or several), which `fastgoal pairs` keeps, or set it to 0."
            )
        return replace(objective, weights=replace(objective.weights, short_weight=0.0))
