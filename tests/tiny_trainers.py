"""A trainer on a tiny model, for every test that trains."""

from pathlib import Path
from typing import Any

from fastgoal import FastGoalModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments

# One epoch in batches of four, on the CPU, without checkpoints.
SETTINGS = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
# Parameters of the trainer; all others are training arguments.
PARAMETERS = ("model", "processing_class", "callbacks", "peft_config", "card", "data_collator", "optimizers")


def make_trainer(
    base: str | Path,
    output: str | Path,
    train_dataset: Any,
    eval_dataset: Any = None,
    trainer_class: type[FastGoalTrainer] = FastGoalTrainer,
    **changes: Any,
) -> FastGoalTrainer:
    """Return a trainer of a base model, with `SETTINGS` unless `changes` say otherwise."""
    given = {name: changes.pop(name) for name in PARAMETERS if name in changes}
    given.setdefault("model", FastGoalModel.from_base(str(base)) if "model" not in given else None)
    given.setdefault("processing_class", FastGoalProcessor.from_base(str(base)))
    return trainer_class(
        args=FastGoalTrainingArguments(output_dir=str(output), **{**SETTINGS, **changes}),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        **given,
    )
