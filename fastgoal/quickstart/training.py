"""The trainer of the quickstart and the study, which does not print or save anything by itself."""

import time
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback

from fastgoal.trainer.callbacks import StartLines
from fastgoal.trainer.card import CardOptions
from fastgoal.trainer.trainer import FastGoalTrainer
from fastgoal.trainer.training_arguments import FastGoalTrainingArguments


def quiet_trainer(
    model: Any,
    processor: Any,
    rows: Any,
    collator: Any = None,
    trainer_class: type[FastGoalTrainer] = FastGoalTrainer,
    card: CardOptions | None = None,
    **settings: Any,
) -> Any:
    """Return a trainer of `model` on `rows` that runs in this process and drops the last incomplete batch.

    `settings` are arguments of `FastGoalTrainingArguments`. The default collator is `FastGoalCollator`.
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
        model=model, args=args, processing_class=processor, train_dataset=rows, data_collator=collator, card=card
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(StartLines)
    return trainer


class EpochLines(TrainerCallback):
    """Report the mean loss and the remaining time after every epoch; needs `logging_strategy="epoch"`.

    On a terminal there is also a progress bar of the steps.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say, self.start = say, 0.0
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()
        self.bar = tqdm(total=state.max_steps, unit="step", leave=False, disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in logs:  # the final summary
            return
        rate = state.global_step / (time.perf_counter() - self.start)
        left = (state.max_steps - state.global_step) / rate
        time_left = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
        epoch = f"Epoch {round(state.epoch)} of {state.num_train_epochs}"
        self.say(f"   {epoch}: loss {float(logs['loss']):.2f}, {rate:.1f} steps/s, {time_left} left.")
