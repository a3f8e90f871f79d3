"""Configuration of the FAST-GOAL model: CLIP's own, plus the weights of the losses."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig

from .losses_fastgoal import LossWeights


@strict
class FastGoalCLIPConfig(CLIPConfig):
    """CLIP's configuration with the weights of the losses; `LossWeights` says what they are.

    The model type stays `"clip"`: a checkpoint that is saved with this configuration loads as a plain
    `CLIPModel` through `AutoModel.from_pretrained`, with no remote code.
    """

    model_type = "clip"

    global_weight: float | int = LossWeights.global_weight
    local_weight: float | int = LossWeights.local_weight
    tsl_weight: float | int = LossWeights.tsl_weight
    sparc_weight: float | int = LossWeights.sparc_weight
    token_weight: float | int = LossWeights.token_weight
    short_weight: float | int = LossWeights.short_weight
