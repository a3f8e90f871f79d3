"""Loading configurations and models of transformers, and refusing what it would load wrongly."""

import os
from typing import Any

from transformers import AutoConfig
from transformers.utils.peft_utils import find_adapter_config_file

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def read_config(name: str | os.PathLike[str], kwargs: dict[str, Any]) -> Any:
    """Read the configuration of a checkpoint; `kwargs` are those of `from_pretrained`.

    Raises:
        ValueError: The checkpoint is an adapter, which transformers would add to a base of another text length.
    """
    name = os.fspath(name)
    kwargs = {key: value for key, value in kwargs.items() if key in _HUB_ARGUMENTS}
    if find_adapter_config_file(name, **kwargs) is not None:
        raise ValueError(
            f"{name!r} is an adapter. Merge it into its base with `fastgoal merge {name} --output DIR`, and load DIR."
        )
    return AutoConfig.from_pretrained(name, trust_remote_code=False, **kwargs)


def load_whole(model_class: Any, name: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Return `model_class.from_pretrained(name, **kwargs)`, a model of transformers, provided it has all its weights.

    Raises:
        ValueError: Weights are missing or have other shapes; transformers would initialize them at random.
    """
    kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = model_class.from_pretrained(name, **kwargs)
    wrong = sorted(
        f"{key} has the shape {tuple(shape)} instead of {tuple(expected)}"
        for key, shape, expected in report["mismatched_keys"]
    )
    wrong += [f"{key} is missing" for key in sorted(report["missing_keys"])]
    if wrong:
        rest = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"the checkpoint does not have the weights of a {type(model).__name__}: {wrong[0]}{rest}.")
    return model
