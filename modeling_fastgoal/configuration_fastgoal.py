"""Configurations of the FAST-GOAL models: those of their bases, and the losses they are trained with."""

from dataclasses import dataclass

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, MetaClip2Config, SiglipConfig

from .losses_fastgoal import LossWeights


@dataclass
class LossSettings(LossWeights):
    """The settings of the losses.

    Attributes:
        contrastive: The contrastive loss: `softmax` (InfoNCE), `sigmoid` (SigLIP's), or None for the one of the base.
        matryoshka_dims: Numbers of dimensions that the contrastive losses also train, see `fast_goal_loss`.
    """

    contrastive: str | None = None
    matryoshka_dims: list[int] | None = None


@strict
class FastGoalCLIPConfig(CLIPConfig, LossSettings):
    """Configuration of CLIP with the settings of the losses.

    The model type stays `"clip"`: `AutoModel.from_pretrained` loads a checkpoint with this configuration as a plain
    `CLIPModel`, without remote code.
    """

    model_type = "clip"


@strict
class FastGoalMetaClip2Config(MetaClip2Config, LossSettings):
    """Configuration of MetaCLIP 2 with the settings of the losses. The model type stays `"metaclip_2"`."""

    model_type = "metaclip_2"


@strict
class FastGoalSiglipConfig(SiglipConfig, LossSettings):
    """Configuration of SigLIP, or SigLIP 2 with fixed resolution, with the settings of the losses. The model type stays
    `"siglip"`."""

    model_type = "siglip"
