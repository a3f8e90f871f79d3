"""Configurations of the FAST-GOAL models: the base's own, plus what the losses are made of."""

from dataclasses import dataclass

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, MetaClip2Config, SiglipConfig

from .losses_fastgoal import LossWeights


@dataclass
class LossSettings:
    """The weights of the losses, of which `LossWeights` says what they are, and the kind of the contrastive ones:
    `softmax` (InfoNCE) or `sigmoid` (SigLIP's); None is the base's own."""

    global_weight: float | int = LossWeights.global_weight
    local_weight: float | int = LossWeights.local_weight
    tsl_weight: float | int = LossWeights.tsl_weight
    sparc_weight: float | int = LossWeights.sparc_weight
    token_weight: float | int = LossWeights.token_weight
    short_weight: float | int = LossWeights.short_weight
    contrastive: str | None = None


@strict
class FastGoalCLIPConfig(CLIPConfig, LossSettings):
    """CLIP's configuration with the settings of the losses.

    The model type stays `"clip"`: a checkpoint that is saved with this configuration loads as a plain
    `CLIPModel` through `AutoModel.from_pretrained`, with no remote code.
    """

    model_type = "clip"


@strict
class FastGoalMetaClip2Config(MetaClip2Config, LossSettings):
    """MetaCLIP 2's configuration with the settings of the losses, likewise."""

    model_type = "metaclip_2"


@strict
class FastGoalSiglipConfig(SiglipConfig, LossSettings):
    """The configuration of SigLIP, and of SigLIP 2 of fixed resolution, with the settings of the losses, likewise."""

    model_type = "siglip"
