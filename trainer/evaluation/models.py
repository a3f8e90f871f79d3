"""How a model that is measured reads its images."""

from typing import Any


def choose_workers(workers: int | None, model: Any) -> int:
    """Processes that read images: as asked, else 4, and none beside a model on the CPU, which needs its cores."""
    if workers is not None:
        return workers
    return 0 if model.device.type == "cpu" else 4
