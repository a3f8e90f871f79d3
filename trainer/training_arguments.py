"""Arguments of a FAST-GOAL training: the Trainer's own, with this method's defaults."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

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
"""Values for the arguments that are None, by recipe. A weight goes to the objectives that have the loss of `_GOES_WITH`
at all."""
_GOES_WITH = {"token_weight": "tsl_weight", "short_weight": "global_weight"}


# Smallest values of numbers that the Trainer would stumble over late, and whether they themselves are too small.
LOWEST: dict[str, tuple[float, bool]] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), (1, False)
    ),
    **dict.fromkeys(("logging_steps", "save_steps", "eval_steps", "num_train_epochs", "adam_epsilon"), (0, True)),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm"), (0, False)),
    **dict.fromkeys(("dataloader_num_workers", "adam_beta1", "adam_beta2", "max_logit_scale"), (0, False)),
    **dict.fromkeys(("lora_alpha",), (0, True)),
    **dict.fromkeys(("freeze_layers", "hard_negative_refresh", "l2sp_weight"), (0, False)),
    **dict.fromkeys(WEIGHTS, (0, False)),
}


def _refuse_numbers(args: Any) -> None:
    """Raise `ValueError` of a number that is too small, infinite or none, by the name of its setting."""
    for name, (lowest, is_open) in LOWEST.items():
        value = getattr(args, name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, got {value}.")
        if value < lowest or (is_open and value == lowest):
            words = "must be above" if is_open else "must not be negative" if lowest == 0 else "must be at least"
            raise ValueError(f"`{name}` {words}{'' if lowest == 0 and not is_open else f' {lowest}'}, got {value}.")


def _setting(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


_FLAG = {"nargs": "?", "const": True}
"""A flag that may be given alone or with true or false, where None is the default."""


@dataclass
class FastGoalTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the objective and the defaults of GOAL's published training.

    Only what differs from `TrainingArguments` is listed. The optimizer is AdamW, and the learning rate falls
    along a cosine to 0; with the recipe `paper` there is no warm-up.

    What the recipe sets is written into the arguments that are None, and counts as given from then on: to change the
    recipe make new arguments, as `dataclasses.replace` would keep the old one's values.
    """

    recipe: str = _setting(
        "paper",
        "Values of what is not given itself. `paper`: as published (pair_sampling best, no hard_negatives, "
        "no warm-up). `goal`: as `paper`, with what GOAL's public code does besides (batches of 16 and no shorter "
        "last one, no clipping of gradients, weight decay on all parameters); give --bf16 too, and note that its "
        "pairs were matched by a fixed CLIP whatever is tuned: make them with `fastgoal pairs --model "
        "openai/clip-vit-large-patch14-336`. `experimental`: what did best in this project's study (pair_sampling any, "
        "hard_negatives, hard_negative_refresh 0.4, warmup_steps 0.2, l2sp_weight 0.001, token_weight 0.1 in place of "
        "tsl_weight, and short_weight 0.3 where the data have short_captions), which was on drawn scenes, not on "
        "photographs; see benchmarks/study/STUDY.md.",
        choices=[*RECIPES],
    )
    objective: str = _setting("fast_goal", f"What to train for: {', '.join(OBJECTIVES)}.", choices=[*OBJECTIVES])
    global_weight: float | None = _setting(
        None, "Weight of the loss over (image, caption); the recipe's by default, else the objective's own."
    )
    local_weight: float | None = _setting(None, "Weight of the loss over (region crop, sentence); likewise.")
    tsl_weight: float | None = _setting(None, "Weight of token similarity learning; likewise.")
    sparc_weight: float | None = _setting(
        None, "Weight of SPARC's fine-grained loss, to be added to any objective; likewise."
    )
    token_weight: float | None = _setting(
        None,
        "Weight of the contrastive loss of a region's patches against the crops and of a sentence's tokens against the "
        "sentences (token similarity learning with negatives), to be added to any objective; likewise.",
    )
    short_weight: float | None = _setting(
        None,
        "Weight of the contrastive loss of images and short captions (a row's short_captions, a text or several), to "
        "be added to any objective, so that short captions stay understood; likewise.",
    )
    contrastive: str | None = _setting(
        None,
        "The contrastive losses: softmax (InfoNCE, CLIP's) or sigmoid (SigLIP's, for a SigLIP alone, as it learns a "
        "bias); the base's own by default.",
        choices=["softmax", "sigmoid"],
    )
    pair_sampling: str | None = _setting(
        None,
        "Which of an image's local pairs a step trains on: the single best one, as published; one of the "
        "three best; or any of them, drawn anew each time. The recipe's by default.",
        choices=[*PAIR_SAMPLING],
    )
    hard_negatives: bool | None = _setting(
        None,
        "Make batches in which most images stand beside one that looks like them, so that the details tell "
        "their captions apart (hard negatives). Costs a pass of the image tower over all images at the start. The "
        "recipe's by default.",
        **_FLAG,
    )
    hard_negative_refresh: float | None = _setting(
        None,
        "Share of the epochs after which hard negatives are searched again with the current model. "
        "0: never. The recipe's by default.",
    )
    l2sp_weight: float | None = _setting(
        None,
        "Weight of the squared distance of the trained weights from those that the training starts with (L2-SP): the "
        "larger, the more stays of what the base knows. The recipe's by default.",
    )
    lora_r: int | None = _setting(
        None,
        "Train an adapter (LoRA) of this rank in place of the model's own weights: needs a part of the memory, and "
        "leaves a small folder that every command takes and `fastgoal merge` makes a model of. Needs peft, and a "
        "learning_rate of about 1.0e-4.",
    )
    lora_alpha: float | None = _setting(
        None, "What the adapter adds is multiplied by lora_alpha / lora_r; by default the rank."
    )
    lora_target_modules: list[str] | None = _setting(  # noqa: RUF009
        None, f"Ends of the names of the layers that get an adapter; by default {' '.join(TARGETS)}."
    )
    freeze: str | None = _setting(
        None, "A tower that is not trained, with its projection: vision or text.", choices=[*TOWERS]
    )
    freeze_layers: int = _setting(
        0, "So many of the first layers of both towers are not trained, nor what comes before them."
    )
    mini_batch_size: int | None = _setting(
        None,
        "Pairs that go through the model at once; the loss and gradients stay those of the whole batch, "
        "at the memory of so many pairs and the cost of one more forward.",
    )
    max_logit_scale: float | None = _setting(
        None,
        "Largest factor in the logits, which the model learns; 0 leaves it alone. By default 100, with which CLIP was "
        "trained; a SigLIP, which was trained without, has none.",
    )
    group_by_caption_length: bool = _setting(
        False, "Make batches of captions of like length, so that less of them is padding."
    )
    output_dir: str = _setting("fast-goal", "Folder for the model and its checkpoints.")
    learning_rate: float = _setting(5e-6, "Peak learning rate of AdamW.")
    weight_decay: float = _setting(0.05, "Weight decay of AdamW.")
    num_train_epochs: float = _setting(10.0, "Times the training data are gone through.")
    warmup_steps: float | None = _setting(  # type: ignore[assignment]
        None,
        "Steps over which the learning rate rises, or below 1 their share of all steps. The recipe's by default.",
    )
    decay_all: bool | None = _setting(
        None, "Weight decay on all parameters, biases and norms included. The recipe's by default.", **_FLAG
    )
    max_grad_norm: float | None = _setting(  # type: ignore[assignment]
        None, "Longer gradients are cut to this length; 0 leaves them. The recipe's by default."
    )
    lr_scheduler_type: str = _setting("cosine", "Shape of the learning rate over the steps.")
    per_device_train_batch_size: int | None = _setting(  # type: ignore[assignment]
        None, "Pairs per device and step. The recipe's by default."
    )
    dataloader_drop_last: bool | None = _setting(  # type: ignore[assignment]
        None, "Leave out the last batch of an epoch where it is shorter. The recipe's by default.", **_FLAG
    )
    per_device_eval_batch_size: int = _setting(64, "Pairs per device in evaluation.")
    dataloader_num_workers: int = _setting(2, "Processes that load and crop images.")
    logging_steps: float = _setting(10, "Steps between two lines of the log.")
    eval_on_start: bool | None = _setting(  # type: ignore[assignment]
        None, "Evaluate before the first step, too; by default where there are data for it.", **_FLAG
    )
    save_total_limit: int | None = _setting(2, "Checkpoints kept; older ones are deleted.")
    overwrite_output_dir: bool = _setting(
        False, "Train into a folder that holds a model, data or another training, whose checkpoints are then deleted."
    )
    ignore_resume_mismatch: bool = _setting(
        False, "Go on with a checkpoint though the data, the objective, the batch size or the like are others now."
    )
    remove_unused_columns: bool = _setting(False, "Must stay False: the collator needs the columns.")

    def __post_init__(self) -> None:
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns` must be False: the collator reads images, captions and pairs.")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"`mini_batch_size` must be positive, got {self.mini_batch_size}.")
        if self.max_logit_scale and not self.max_logit_scale >= 1:
            raise ValueError(f"`max_logit_scale` must be 0 (no limit) or at least 1, got {self.max_logit_scale}.")
        if self.recipe not in RECIPES:
            raise ValueError(f"`recipe` must be one of {', '.join(RECIPES)}, got {self.recipe!r}.")
        if self.lora_r is not None and self.lora_r < 1:
            raise ValueError(f"`lora_r` must be at least 1, got {self.lora_r}.")
        if self.lora_r is None and (self.lora_alpha is not None or self.lora_target_modules is not None):
            raise ValueError("`lora_alpha` and `lora_target_modules` say how an adapter is made: give `lora_r` too.")
        if self.freeze not in (None, *TOWERS):
            raise ValueError(f"`freeze` must be one of {', '.join(TOWERS)}, got {self.freeze!r}.")
        _refuse_numbers(self)
        published = resolve_objective(self.objective)
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None and getattr(published.weights, _GOES_WITH.get(name, name), True):
                setattr(self, name, value)
        if self.hard_negative_refresh and self.hard_negative_refresh >= 1:
            raise ValueError(
                "`hard_negative_refresh` is a share of the epochs, from 0 (never) to below 1, got "
                f"{self.hard_negative_refresh}: 0.4 is after two of five."
            )
        if self.l2sp_weight and self.fp16 and not self.max_grad_norm:
            raise ValueError(
                "`l2sp_weight` beside `fp16` needs gradients in their own units, which clipping brings them to: set "
                "`max_grad_norm`, or take `bf16`."
            )
        self.resolved_objective()  # a wrong name or weight is an error here, before anything is loaded
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # settings for a GPU run without one
        # Without an accelerator torch warns about every data loader that is asked to pin memory.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        super().__post_init__()
        available = get_available_reporting_integrations()
        for logger in self.report_to or ():
            if logger in INTEGRATION_TO_CALLBACK and logger not in available:
                raise ValueError(
                    f"`report_to` names {logger}, which is not installed: pip install {logger}, or leave it out."
                )

    @property
    def order_seed(self) -> int:
        """The seed of the order of rows and of the pairs that are drawn."""
        return self.seed if self.data_seed is None else self.data_seed

    def without_short_captions(self) -> None:
        """Leave the loss of short captions out, for data that have none.

        Raises:
            ValueError: It was asked for, and not by the recipe.
        """
        if self.short_weight and self.short_weight != RECIPES[self.recipe].get("short_weight"):
            raise ValueError(
                "`short_weight` needs short captions, and the data have no column short_captions. Give rows one (a "
                "text or several), which `fastgoal pairs` keeps, or set it to 0."
            )
        self.short_weight = 0.0 if self.short_weight else self.short_weight

    def resolved_objective(self) -> Objective:
        """The objective with the weights that are in force."""
        return resolve_objective(self.objective, **{name: getattr(self, name, None) for name in WEIGHTS})
