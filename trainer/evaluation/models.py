"""Loading any CLIP checkpoint to measure it or to ask it something."""

from typing import Any

import torch
from transformers import AutoConfig

from fastgoal.modeling_fastgoal.modeling_fastgoal import FastGoalCLIPModel
from fastgoal.processing.devices import choose_device, choose_dtype
from fastgoal.processing.processing_fastgoal import FastGoalProcessor


def check_clip(name: str, option: str) -> None:
    """Raise `ValueError` or `OSError` for what is no CLIP checkpoint; only its configuration is looked at."""
    kind = AutoConfig.from_pretrained(name).model_type
    if kind != "clip":
        raise ValueError(f"{option} {name} is a checkpoint of type {kind!r}; it must be a CLIP.")


def load_model(
    name: str, device: str | None = None, dtype: str = "float32", option: str = "--model"
) -> tuple[FastGoalCLIPModel, FastGoalProcessor]:
    """The model of a CLIP checkpoint (a folder or a Hub id), ready to be asked, and its processor.

    `device` is as for `choose_device`, `dtype` as for `choose_dtype`; messages call the checkpoint `option`.

    Raises:
        ValueError: The device is not there, the checkpoint is no CLIP, or it lacks weights.
    """
    device = choose_device(device)
    check_clip(name, option)
    kind: Any = getattr(torch, choose_dtype(dtype, device))
    loaded: Any = FastGoalCLIPModel.from_pretrained(name, dtype=kind, output_loading_info=True)
    model, loading = loaded
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(
            f"{option} {name} lacks {len(missing)} weights of a CLIP, {missing[0]} among them; it must hold both towers"
            " and their projections."
        )
    return model.to(device).eval(), FastGoalProcessor.from_pretrained(name)


def choose_workers(workers: int | None, model: Any) -> int:
    """Processes that read images: as asked, else 4, and none beside a model on the CPU, which needs its cores."""
    if workers is not None:
        return workers
    return 0 if model.device.type == "cpu" else 4
