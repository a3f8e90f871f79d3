"""FAST-GOAL on CLIP, MetaCLIP 2 and SigLIP."""

import os
from typing import Any, cast

from transformers import AutoModel, CLIPModel, MetaClip2Model, SiglipModel

from .base_fastgoal import FastGoalModel, config_of
from .configuration_fastgoal import FastGoalCLIPConfig, FastGoalMetaClip2Config, FastGoalSiglipConfig
from .families_fastgoal import family_of


class FastGoalCLIPModel(FastGoalModel, CLIPModel):
    """CLIP for long captions, with FAST-GOAL's losses over global and local pairs.

    The weights are CLIP's, name by name; see `from_base` for how a CLIP checkpoint becomes one.
    """

    config_class = FastGoalCLIPConfig
    config: FastGoalCLIPConfig

    @classmethod
    def from_clip(
        cls, name_or_model: str | os.PathLike[str] | CLIPModel, max_text_length: int | None = None, **kwargs: Any
    ) -> "FastGoalCLIPModel":
        """As `from_base`, of a CLIP."""
        return cast(FastGoalCLIPModel, cls.from_base(name_or_model, max_text_length, **kwargs))


class FastGoalMetaClip2Model(FastGoalModel, MetaClip2Model):
    """MetaCLIP 2, which reads many languages, likewise."""

    config_class = FastGoalMetaClip2Config
    config: FastGoalMetaClip2Config


class FastGoalSiglipModel(FastGoalModel, SiglipModel):
    """SigLIP, or SigLIP 2 of fixed resolution, likewise; its contrastive losses are sigmoid losses."""

    config_class = FastGoalSiglipConfig
    config: FastGoalSiglipConfig


MODELS: dict[str, Any] = {
    kind.__name__: kind for kind in (FastGoalCLIPModel, FastGoalMetaClip2Model, FastGoalSiglipModel)
}


def load_base(name: str | os.PathLike[str], max_text_length: int | None = None, **kwargs: Any) -> Any:
    """The FAST-GOAL model of any checkpoint that can be one, by what its configuration says; as `from_base`.

    >>> model = load_base("google/siglip2-base-patch16-224", max_text_length=256)  # doctest: +SKIP
    """
    family = family_of(config_of(name, kwargs), repr(os.fspath(name)))
    return MODELS[family.model].from_base(name, max_text_length, **kwargs)


for _kind in MODELS.values():
    _kind.config_class.register_for_auto_class()
    _kind.register_for_auto_class("AutoModel")
    # For `AutoModel.from_config` with our configuration; a folder's own is the base's, and loads as that.
    AutoModel.register(_kind.config_class, _kind, exist_ok=True)
