"""Configuration of the FAST-GOAL model: CLIP's own, plus the weights of the losses."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig


@strict
class FastGoalCLIPConfig(CLIPConfig):
    """CLIP's configuration with the loss weights of FAST-GOAL (arXiv 2605.26615).

    The model type stays `"clip"`: a checkpoint that is saved with this configuration loads as a plain
    `CLIPModel` through `AutoModel.from_pretrained`, with no remote code.

    Args:
        global_weight: Weight of the contrastive loss of (image, caption).
        local_weight: Weight of the contrastive loss of (region crop, sentence).
        tsl_weight: Weight of token similarity learning, image and text part together.
        sparc_weight: Weight of SPARC's fine-grained loss over patches and words (arXiv 2401.09865).
    """

    model_type = "clip"

    global_weight: float | int = 1.0
    local_weight: float | int = 0.5
    tsl_weight: float | int = 1.0
    sparc_weight: float | int = 0.0
