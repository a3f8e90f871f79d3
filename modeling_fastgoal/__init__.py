"""The models: CLIP, MetaCLIP 2 and SigLIP for long captions, with FAST-GOAL's token similarity learning.

The other files of this folder are saved with every checkpoint, so they import only torch, transformers and one another.
"""

from .base_fastgoal import FastGoalModel, FastGoalOutput
from .configuration_fastgoal import FastGoalCLIPConfig, FastGoalMetaClip2Config, FastGoalSiglipConfig
from .losses_fastgoal import LossWeights, clip_loss, fast_goal_loss, sigmoid_loss, token_similarity_loss
from .modeling_fastgoal import FastGoalCLIPModel, FastGoalMetaClip2Model, FastGoalSiglipModel
from .positions_fastgoal import stretch_positions
from .sparc_fastgoal import group_patches, sparc_losses
from .towers_fastgoal import word_mask

__all__ = [
    "FastGoalCLIPConfig",
    "FastGoalCLIPModel",
    "FastGoalMetaClip2Config",
    "FastGoalMetaClip2Model",
    "FastGoalModel",
    "FastGoalOutput",
    "FastGoalSiglipConfig",
    "FastGoalSiglipModel",
    "LossWeights",
    "clip_loss",
    "fast_goal_loss",
    "group_patches",
    "sigmoid_loss",
    "sparc_losses",
    "stretch_positions",
    "token_similarity_loss",
    "word_mask",
]
