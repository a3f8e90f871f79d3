"""What `auto` stands for here: the device and the number format of a model, and who reads its images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "float16", "bfloat16")


def choose_device(device: "str | torch.device | None" = None) -> str:
    """The name of a device, or a `ValueError` if it cannot be used; None and `auto`: the accelerator, else the CPU."""
    import torch

    if device in (None, "auto"):
        accelerator: Any = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = "cpu" if accelerator is None else str(accelerator.type)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={str(device)!r} cannot be used here: {reason} Use auto, cpu, or a device that is there."
        ) from None
    return str(device)


def choose_dtype(dtype: str, device: str, bfloat16: bool = False) -> str:
    """The name of a number format, a `ValueError` for one not in `DTYPES`; `auto` is a half one on CUDA, else float32.

    With `bfloat16` it is that one where the GPU has it, for models whose numbers may outgrow float16.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if dtype != "auto":
        return dtype
    if not device.startswith("cuda"):
        return "float32"
    return "bfloat16" if bfloat16 and torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def choose_workers(workers: int | None, model: Any) -> int:
    """Processes that read images: as asked, else 4, and none beside a model on the CPU, which needs its cores."""
    if workers is not None:
        return workers
    return 0 if model.device.type == "cpu" else 4
