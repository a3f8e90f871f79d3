"""Average the weights of a base model and a tuned one (WiSE-FT, arXiv 2109.01903): points between the two."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastgoal.hub_cards.model_card import AverageFacts
from fastgoal.modeling_fastgoal.base_fastgoal import FastGoalModel
from fastgoal.modeling_fastgoal.families_fastgoal import family_of
from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.adapters import base_name, is_adapter, read_base
from fastgoal.processing.checkpoints.load import check_model, load_model
from fastgoal.processing.processing_fastgoal import FastGoalProcessor

from .merge import load_merged
from .model_folder import require_new_folder, write_model_folder

# Settings that change what the weights compute and do not show in their shapes.
_SETTINGS = ("hidden_act", "num_attention_heads", "image_size", "patch_size")


@dataclass(frozen=True)
class Endpoints:
    """A tuned model and the weights of its base, which have the same names and shapes.

    Attributes:
        model: The tuned model, on the CPU, in the dtype that it is stored in.
        processor: Its processor.
        base_weights: The weights of the base by name, with the text positions stretched as those of the model.
        base: Folder or Hub id of the base.
    """

    model: FastGoalModel
    processor: FastGoalProcessor
    base_weights: dict[str, torch.Tensor]
    base: str

    def weights(self, alpha: float) -> dict[str, torch.Tensor]:
        """Return the weights at `alpha`, see `average_weights`."""
        return average_weights(self.base_weights, self.model.state_dict(), alpha)


def average(
    tuned: str | os.PathLike[str], base: str | os.PathLike[str] | None, alpha: float, output: str | os.PathLike[str]
) -> int:
    """Write a model with the weights `(1 - alpha) base + alpha tuned` (WiSE-FT, arXiv 2109.01903).

        fastgoal.average("fast-goal", "openai/clip-vit-base-patch16", 0.6, "fast-goal-0.6")

    A smaller `alpha` keeps more of what the base could do, and less of what the training added.

    Args:
        tuned: Folder or Hub id of the tuned model, or of an adapter, which is merged into its base first.
        base: Folder or Hub id of the model that it was trained from. If it reads fewer tokens than the tuned model, its
            text positions are stretched first. May be None for an adapter that names its base.
        alpha: Share of the tuned weights, from 0 to 1. With 0 and 1 the weights equal those of the two models to the
            bit. Other weights are computed in float32 at least. All are saved in the dtype of the tuned model.
        output: Folder to write, new or empty. The configuration and the processor are those of the tuned model.

    Returns:
        Number of tokens that the model reads.

    Raises:
        ValueError: An argument is invalid, a model cannot be loaded, or the two differ in more than their weights.
    """
    path = require_new_folder(output)
    check_alpha(alpha)
    ends = load_endpoints(tuned, base)
    model = ends.model
    model.load_state_dict(ends.weights(alpha))
    facts = AverageFacts(tuned=os.fspath(tuned), alpha=float(alpha))
    write_model_folder(path, model, ends.processor, base_model=ends.base, average=facts)
    return text_positions(model)


def average_weights(
    base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], alpha: float
) -> dict[str, torch.Tensor]:
    """Return `(1 - alpha) base + alpha tuned` for each tensor, in the dtype of the tuned one.

    It is computed in float32, or in float64 if one of the two has it. Tensors that are equal in both stay equal.

    Args:
        base: Tensors by name.
        tuned: Tensors with the same names and shapes.
        alpha: Share of the tuned weights, from 0 to 1.

    Raises:
        ValueError: `alpha` is not from 0 to 1, or the names or shapes differ.
    """
    check_alpha(alpha)
    _check_shapes(base, tuned)
    averaged = {}
    for name, weight in tuned.items():
        start = base[name]
        if alpha in (0, 1):  # lerp would lose the sign of a zero
            averaged[name] = (start if alpha == 0 else weight).to(weight.dtype)
        else:
            dtype = torch.promote_types(torch.promote_types(start.dtype, weight.dtype), torch.float32)
            averaged[name] = torch.lerp(start.to(dtype), weight.to(dtype), alpha).to(weight.dtype)
    return averaged


def _check_shapes(
    base: Mapping[str, torch.Tensor],
    tuned: Mapping[str, torch.Tensor],
    label: str = "`base` and `tuned` must have the same tensors",
) -> None:
    for name in sorted(base.keys() | tuned.keys()):
        _compare(name, label, *(tuple(w[name].shape) if name in w else "missing" for w in (base, tuned)))


def _compare(name: str, label: str, base: object, tuned: object) -> None:
    """Raise `ValueError` if a property of the base and of the tuned model differs."""
    if base != tuned:
        raise ValueError(f"{label}. They differ in {name}: {base} and {tuned}.")


def check_alpha(alpha: float, argument: str = "alpha") -> None:
    """Raise `ValueError` unless a share of the tuned weights is a number from 0 to 1."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ValueError(f"`{argument}` must be from 0 (the base) to 1 (the tuned model), got {alpha!r}.")


def load_endpoints(tuned: str | os.PathLike[str], base: str | os.PathLike[str] | None) -> Endpoints:
    """Load a tuned model (or an adapter, which is merged) and its base, with the text positions stretched if necessary.

    Raises:
        ValueError: `base` is missing, a model cannot be loaded, or the two differ in more than their weights.
    """
    tuned, base = os.fspath(tuned), None if base is None else os.fspath(base)
    adapter = is_adapter(tuned)
    if base is None:
        if not adapter:
            raise ValueError(f"`base` must be the model that `tuned={tuned}` was trained from, got None.")
        base = base_name(tuned)
    label = f"`base={base}` must be the model that `tuned={tuned}` was trained from"
    # An adapter's base may not be where the adapter says.
    configs: list[Any] = [check_model(base, "base"), check_model(base if adapter else tuned, "tuned")]
    _compare("family", label, *(family_of(config).label for config in configs))
    for part in ("text_config", "vision_config"):
        for name in _SETTINGS:
            _compare(f"{part}.{name}", label, *(getattr(getattr(config, part), name, None) for config in configs))
    length = read_base(tuned, base).max_text_length if adapter else text_positions(configs[1])
    if text_positions(configs[0]) > length:
        _compare("text length", label, text_positions(configs[0]), length)
    model, processor = load_merged(tuned, "tuned", base) if adapter else load_model(tuned, "cpu", None, "tuned")
    start, _ = load_model(base, "cpu", None, "base", stretch=True, max_text_length=length)
    _check_shapes(start.state_dict(), model.state_dict(), label)
    return Endpoints(model, processor, start.state_dict(), base)
