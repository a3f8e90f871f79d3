"""The kinds of checkpoints that there are, and what is known of each before it is loaded."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    Attributes:
        label: What people call it.
        model: Our class for it.
        processor: The transformers class of its processor.
        positions: Text positions of the published checkpoints.
        longest: How many they can be stretched to.
        pools_last: Whether a text's embedding is what stands at the last position, and the tower attends to padding:
            then all texts are padded to the model's length. Else it is what stands at EOS.
        is_sigmoid: Whether it was trained with the sigmoid loss, and has a bias for it beside the scale.
    """

    label: str
    model: str
    processor: str
    positions: int
    longest: int
    pools_last: bool = False
    is_sigmoid: bool = False


FAMILIES = {
    "clip": Family("CLIP", "FastGoalCLIPModel", "CLIPProcessor", 77, 248),
    "metaclip_2": Family("MetaCLIP 2", "FastGoalMetaClip2Model", "CLIPProcessor", 77, 248),
    "siglip": Family("SigLIP", "FastGoalSiglipModel", "SiglipProcessor", 64, 256, pools_last=True, is_sigmoid=True),
}
"""By the model type of the configuration; SigLIP 2 of fixed resolution has SigLIP's."""

SUPPORTED = "It must be a CLIP, a MetaCLIP 2, or a SigLIP or SigLIP 2 of fixed resolution."


def family_of(config: object, what: str = "The checkpoint") -> Family:
    """The family of a configuration (or of what has one as `config`).

    Raises:
        ValueError: It is of none of them; the message begins with `what`.
    """
    config = getattr(config, "config", config)
    model_type = getattr(config, "model_type", None)
    if model_type == "siglip2":
        raise ValueError(
            f"{what} is a SigLIP 2 of any resolution (NaFlex), whose images have no fixed patches. {SUPPORTED} Those "
            "of fixed resolution have it in their names, such as google/siglip2-base-patch16-224."
        )
    if model_type not in FAMILIES:
        raise ValueError(f"{what} is of type {model_type!r}. {SUPPORTED}")
    family = FAMILIES[model_type]
    if getattr(getattr(config, "vision_config", None), "vision_use_head", True) is False:
        raise ValueError(
            f"{what} is a {family.label} without its pooling head, which has no embeddings of images: take a whole one."
        )
    return family
