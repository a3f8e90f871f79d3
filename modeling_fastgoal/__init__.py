"""The model: a CLIP that reads long captions and carries FAST-GOAL's token similarity learning.

The files beside this one travel to the Hub with every checkpoint, so they import nothing but torch,
transformers and one another.
"""

from .configuration_fastgoal import FastGoalCLIPConfig
from .losses_fastgoal import LossWeights, clip_loss, fast_goal_loss, token_similarity_loss
from .modeling_fastgoal import FastGoalCLIPModel, FastGoalOutput
from .positions_fastgoal import stretch_positions
from .sparc_fastgoal import group_patches, sparc_losses
from .towers_fastgoal import word_mask

__all__ = [
    "FastGoalCLIPConfig",
    "FastGoalCLIPModel",
    "FastGoalOutput",
    "LossWeights",
    "clip_loss",
    "fast_goal_loss",
    "group_patches",
    "sparc_losses",
    "stretch_positions",
    "token_similarity_loss",
    "word_mask",
]
