"""FAST-GOAL on CLIP, MetaCLIP 2 and SigLIP."""

from transformers import AutoModel, CLIPModel, MetaClip2Model, SiglipModel

from .base_fastgoal import FastGoalModel
from .configuration_fastgoal import FastGoalCLIPConfig, FastGoalMetaClip2Config, FastGoalSiglipConfig


class FastGoalCLIPModel(FastGoalModel, CLIPModel):
    """CLIP for long captions, with FAST-GOAL's losses over global and local pairs.

    The weights are CLIP's, name by name; see `from_base` for how a CLIP checkpoint becomes one.
    """

    config_class = FastGoalCLIPConfig
    config: FastGoalCLIPConfig


class FastGoalMetaClip2Model(FastGoalModel, MetaClip2Model):
    """MetaCLIP 2, which reads many languages, likewise."""

    config_class = FastGoalMetaClip2Config
    config: FastGoalMetaClip2Config


class FastGoalSiglipModel(FastGoalModel, SiglipModel):
    """SigLIP, or SigLIP 2 of fixed resolution, likewise; its contrastive losses are sigmoid losses."""

    config_class = FastGoalSiglipConfig
    config: FastGoalSiglipConfig


for _model_class in (FastGoalCLIPModel, FastGoalMetaClip2Model, FastGoalSiglipModel):
    _model_class.config_class.register_for_auto_class()
    _model_class.register_for_auto_class("AutoModel")
    # For `AutoModel.from_config` with our configuration; a saved folder has the model type of its base.
    AutoModel.register(_model_class.config_class, _model_class, exist_ok=True)
