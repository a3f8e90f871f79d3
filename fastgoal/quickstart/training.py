"""The trainer with the habits of the quickstart and the study: it prints nothing and saves nothing by itself."""

from typing import Any

from transformers import PrinterCallback

from fastgoal.trainer.fastgoal_trainer import FastGoalTrainer
from fastgoal.trainer.training_arguments import FastGoalTrainingArguments


def quiet_trainer(
    model: Any,
    processor: Any,
    rows: Any,
    collator: Any = None,
    trainer_class: type[FastGoalTrainer] = FastGoalTrainer,
    **settings: Any,
) -> Any:
    """A trainer of `model` on `rows`, in this process alone and with full batches only.

    Args:
        model: A `FastGoalCLIPModel`.
        processor: Its processor.
        rows: The data set.
        collator: Makes the batches, if not `FastGoalCollator`.
        trainer_class: `FastGoalTrainer` or a class on top of it.
        settings: Arguments of `FastGoalTrainingArguments`.
    """
    args = FastGoalTrainingArguments(
        dataloader_num_workers=0,
        dataloader_drop_last=True,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        **settings,
    )
    trainer = trainer_class(
        model=model, args=args, processing_class=processor, train_dataset=rows, data_collator=collator
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
