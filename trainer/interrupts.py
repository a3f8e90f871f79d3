"""Stop a training at SIGINT and SIGTERM: all processes finish the same step, save a checkpoint and stop."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Written by a signal handler, which must not use streams: they may be in the middle of a line.
NOTICE = b"\nInterrupted: finishing this step and saving a checkpoint. Press Ctrl-C again to stop at once.\n"


class Interrupted(KeyboardInterrupt):
    """A training was interrupted.

    Args:
        message: What was saved, and how to resume.
        signum: The signal, SIGINT or SIGTERM.
    """

    def __init__(self, message: str = "", signum: int = signal.SIGINT):
        super().__init__(message)
        self.signum = signum


class EvaluationStopped(Exception):
    """An evaluation within a training was stopped by a signal. A resumed training repeats it."""


class Interrupts(TrainerCallback):
    """Stop a training at the step on which all processes agree after one of them got SIGINT or SIGTERM.

    Nothing is lost before the first step, so a signal stops the training at once there. Later a second Ctrl-C does.
    A second SIGTERM does not: some schedulers send it to the launcher, which passes it on, and to each process.

    Args:
        accelerator: The accelerator of the trainer.

    Attributes:
        signum: The signal at which all processes stop, 0 without one.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.signum = 0
        self._received = 0  # by this process
        self._finishes_step = False  # from the first step on

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals in this block. Only the main thread can, and a signal that is ignored stays ignored."""
        self.signum, self._received, self._finishes_step = 0, 0, False
        handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
        handlers = {number: handler for number, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
        for number in handlers:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            self._finishes_step = False
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if not self._finishes_step or (self._received and signal.SIGINT in (number, self._received)):
            raise Interrupted(signum=number)
        if self._received:
            return
        self._received = number
        if self.accelerator.num_processes > 1:
            # A process that waits for another one never gets back to Python, and torchrun passes a second Ctrl-C on as
            # SIGTERM.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if number == signal.SIGINT:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.accelerator.is_main_process:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, NOTICE)

    def agree(self) -> bool:
        """Return whether a process got a signal, the same in all processes. All of them must call this together."""
        if not self.signum:
            received = torch.tensor([self._received], device=self.accelerator.device)
            if self.accelerator.num_processes > 1:
                received = self.accelerator.gather(received)
            self.signum = int(received.max())
        return bool(self.signum)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._finishes_step = True

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if self.agree():
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False  # it may take longer than the launcher waits

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        if self._finishes_step and self.agree():
            raise EvaluationStopped

    def on_save(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if self.agree():
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if self.signum:
            control.should_save = control.should_evaluate = False
