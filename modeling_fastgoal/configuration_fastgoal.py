"""Configurations of the FAST-GOAL models: those of their bases, and the losses they are trained with."""

from dataclasses import dataclass
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, MetaClip2Config, SiglipConfig
from transformers.utils.versions import require_version

from .families_fastgoal import FAMILIES
from .losses_fastgoal import LossWeights

# Versions before 5 copy only the files that this one imports itself, and must reach the next line.
from .sparc_fastgoal import sparc_losses  # noqa: F401

require_version("transformers>=5.17", "Load the folder without `trust_remote_code`: as a plain model it works.")


@dataclass
class LossSettings(LossWeights):
    """The settings of the losses.

    Attributes:
        contrastive: The contrastive loss: `softmax` (InfoNCE), `sigmoid` (SigLIP's), or None for the one of the base.
        matryoshka_dims: Numbers of dimensions that the contrastive losses also train, see `fast_goal_loss`.
        crop_size: Side in pixels of the region crops that the losses were computed with; None for `image_size`.
    """

    contrastive: str | None = None
    matryoshka_dims: list[int] | None = None
    crop_size: int | None = None


class _PlainConfig:
    """Names the model class of transformers in `config.json`: servers choose their code by `architectures`."""

    model_type: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        settings: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        return {**settings, "architectures": [FAMILIES[self.model_type].model]}


@strict
class FastGoalCLIPConfig(_PlainConfig, CLIPConfig, LossSettings):
    """Configuration of CLIP with the settings of the losses.

    The model type stays `"clip"`: `AutoModel.from_pretrained` loads a checkpoint with this configuration as a plain
    `CLIPModel`, without remote code.
    """

    model_type = "clip"


@strict
class FastGoalMetaClip2Config(_PlainConfig, MetaClip2Config, LossSettings):
    """Configuration of MetaCLIP 2 with the settings of the losses. The model type stays `"metaclip_2"`."""

    model_type = "metaclip_2"


@strict
class FastGoalSiglipConfig(_PlainConfig, SiglipConfig, LossSettings):
    """Configuration of SigLIP, or SigLIP 2 with fixed resolution, with the settings of the losses. The model type stays
    `"siglip"`."""

    model_type = "siglip"
