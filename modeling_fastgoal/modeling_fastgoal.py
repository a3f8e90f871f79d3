"""FAST-GOAL on CLIP, MetaCLIP 2 and SigLIP."""

from transformers import AutoModel, CLIPModel, MetaClip2Model, SiglipModel

from .base_fastgoal import FastGoalModel
from .configuration_fastgoal import FastGoalCLIPConfig, FastGoalMetaClip2Config, FastGoalSiglipConfig


class FastGoalCLIPModel(FastGoalModel, CLIPModel):
    """CLIP for long captions, with the losses of FAST-GOAL over global and local pairs.

    The weights have the same names and shapes as CLIP's. `from_base` creates the model from a CLIP checkpoint.
    """

    config_class = FastGoalCLIPConfig
    config: FastGoalCLIPConfig


class FastGoalMetaClip2Model(FastGoalModel, MetaClip2Model):
    """MetaCLIP 2, which is multilingual, for long captions, with the losses of FAST-GOAL.

    `from_base` creates the model from a MetaCLIP 2 checkpoint.
    """

    config_class = FastGoalMetaClip2Config
    config: FastGoalMetaClip2Config


class FastGoalSiglipModel(FastGoalModel, SiglipModel):
    """SigLIP, or SigLIP 2 with fixed resolution, for long captions, with the losses of FAST-GOAL.

    Its contrastive losses are sigmoid losses by default. `from_base` creates the model from a SigLIP checkpoint.
    """

    config_class = FastGoalSiglipConfig
    config: FastGoalSiglipConfig


for _model_class in (FastGoalCLIPModel, FastGoalMetaClip2Model, FastGoalSiglipModel):
    _model_class.config_class.register_for_auto_class()
    _model_class.register_for_auto_class("AutoModel")
    # For `AutoModel.from_config` with our configuration; a saved folder has the model type of its base.
    AutoModel.register(_model_class.config_class, _model_class, exist_ok=True)
