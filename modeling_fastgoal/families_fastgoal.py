"""The supported model families, and everything that is known of each before a checkpoint is loaded."""

from dataclasses import dataclass

LONGEST = 1024
"""Largest number of text positions that a checkpoint can be stretched to."""


@dataclass(frozen=True)
class Family:
    """A model family. Ask the family of a model (`family_of`) instead of its class, configuration or attributes.

    Attributes:
        model_type: Model type of its configurations.
        label: Name of the family in messages and cards.
        model: Name of the model class in transformers.
        processor: Name of the processor class in transformers.
        positions: Number of text positions of the published checkpoints.
        default_length: Number of text positions that they are stretched to by default.
        pools_last: Whether a text's embedding is the output at the last position. Such a text tower attends to padding:
            all texts are padded to the model's length, and there is no attention mask. Otherwise a text's embedding is
            the output at EOS.
        has_image_head: Whether an attention head pools the patches. Otherwise there is a class token.
        is_sigmoid: Whether the family is trained with the sigmoid loss, and so has a `logit_bias`.
        has_legacy_eos: Whether `eos_token_id=2` in a configuration stands for the highest id (early files of CLIP).
        last_special_id: Id of EOS, where padding has a lower id and there is no BOS; None where the configuration says
            the id of EOS. (Configurations of SigLIP say CLIP's.)
    """

    model_type: str
    label: str
    model: str
    processor: str
    positions: int
    default_length: int
    pools_last: bool = False
    has_image_head: bool = False
    is_sigmoid: bool = False
    has_legacy_eos: bool = False
    last_special_id: int | None = None


CLIP = Family("clip", "CLIP", "CLIPModel", "CLIPProcessor", 77, 248, has_legacy_eos=True)
METACLIP_2 = Family("metaclip_2", "MetaCLIP 2", "MetaClip2Model", "CLIPProcessor", 77, 248)
SIGLIP = Family(
    "siglip",
    "SigLIP",
    "SiglipModel",
    "SiglipProcessor",
    64,
    256,
    pools_last=True,
    has_image_head=True,
    is_sigmoid=True,
    last_special_id=1,
)
"""Also SigLIP 2 of fixed resolution, which has the same model type."""

FAMILIES = {family.model_type: family for family in (CLIP, METACLIP_2, SIGLIP)}
SUPPORTED = "Supported are CLIP, MetaCLIP 2, and SigLIP and SigLIP 2 of fixed resolution."


def family_of(model: object, name: str = "The checkpoint") -> Family:
    """Return the family of a model or configuration.

    Args:
        model: A model or a configuration of transformers.
        name: Name of the model, for messages.

    Raises:
        ValueError: The family is not supported, or the model does not embed images.
    """
    config = getattr(model, "config", model)
    model_type = getattr(config, "model_type", None)
    if model_type == "siglip2":
        raise ValueError(
            f"{name} is a SigLIP 2 of variable resolution (NaFlex). {SUPPORTED} The names of the latter end in their "
            "resolution, as google/siglip2-base-patch16-224."
        )
    if model_type not in FAMILIES:
        raise ValueError(f"{name} is of type {model_type!r}. {SUPPORTED}")
    family = FAMILIES[model_type]
    if getattr(getattr(config, "vision_config", None), "vision_use_head", True) is False:
        raise ValueError(f"{name} is a {family.label} without its pooling head, so it does not embed images.")
    return family
