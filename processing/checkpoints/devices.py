"""The device and dtype of a model, and the number of processes that read its images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "float16", "bfloat16")


def choose_device(device: "str | torch.device | None" = None) -> str:
    """Return the name of a device; None and `auto` stand for the accelerator, or the CPU without one.

    Raises:
        ValueError: The device cannot be used.
    """
    import torch

    if device in (None, "auto"):
        accelerator: Any = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = "cpu" if accelerator is None else str(accelerator.type)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`device` must be auto, cpu or a device of this machine, got {str(device)!r}: {reason}"
        ) from None
    return str(device)


def choose_dtype(dtype: str, device: str, bfloat16: bool = False) -> str:
    """Return the name of a dtype; `auto` stands for half precision on CUDA, else for float32.

    Args:
        dtype: One of `DTYPES`.
        device: Name of the device.
        bfloat16: Prefer bfloat16 where the GPU has it, for models with values out of the range of float16.

    Raises:
        ValueError: There is no such dtype.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if dtype != "auto":
        return dtype
    if not device.startswith("cuda"):
        return "float32"
    return "bfloat16" if bfloat16 and torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def choose_workers(workers: int | None, model: Any) -> int:
    """Return the number of processes that read images: by default 4, and 0 for a model on the CPU, which needs it."""
    if workers is not None:
        return workers
    return 0 if model.device.type == "cpu" else 4
