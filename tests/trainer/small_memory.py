"""A device with little memory."""

from typing import Any

import torch


class SmallMemory:
    """Raise an out-of-memory error for more than some rows at once, in the forward or in the backward pass.

    Attributes:
        sizes: Number of rows of each forward pass.
    """

    def __init__(self, trainer: Any, rows: int, in_backward: bool = False):
        self.sizes: list[int] = []
        forward = trainer.model.forward

        def limited(**inputs: Any) -> Any:
            size = len(next(iter(inputs.values())))
            self.sizes.append(size)
            outputs = forward(**inputs)
            if size > rows and in_backward:
                if torch.is_grad_enabled():
                    outputs["logit_scale"].register_hook(self.fail)
            elif size > rows:
                self.fail()
            return outputs

        trainer.model.forward = limited

    def fail(self, *args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
