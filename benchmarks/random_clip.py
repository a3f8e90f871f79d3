"""CLIPs of the published shapes with random weights, which change no time, that read 248 tokens; their processors."""

from typing import Any

from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from fastgoal import FastGoalCLIPModel, FastGoalProcessor

TOKENS = 248
LARGE: dict[str, Any] = {
    "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "projection_dim": 768,
}
SHAPES: dict[str, dict[str, Any]] = {
    "b32": {"patch_size": 32},
    "b16": {"patch_size": 16},
    "l14": {"patch_size": 14, **LARGE},
    "l14-336": {"patch_size": 14, "image_size": 336, **LARGE},
}
"""OpenAI's shapes; what is not said is ViT-B's, of 224 pixels."""


def build_model(shape: str, thin: bool = False, tokens: int = TOKENS) -> Any:
    """The model, or one with two thin layers in each tower."""
    facts = SHAPES[shape]
    vision, text = dict(facts.get("vision", {})), dict(facts.get("text", {}))
    if thin:
        size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision, text = vision | size, text | size
    vision |= {"patch_size": facts["patch_size"], "image_size": facts.get("image_size", 224)}
    projection = facts.get("projection_dim", 512)
    config = CLIPConfig(
        text_config={"eos_token_id": 49407, "projection_dim": projection, **text},
        vision_config={"projection_dim": projection, **vision},
        projection_dim=projection,
    )
    return FastGoalCLIPModel.from_base(CLIPModel(config), tokens)


def build_processor(tokenizer: str | None, shape: str) -> FastGoalProcessor:
    """CLIP's processor; without a tokenizer one that knows letters, each letter of a text being a word."""
    if tokenizer:
        tokens = AutoTokenizer.from_pretrained(tokenizer)
    else:
        letters = [f"{letter}</w>" for letter in ".abcdefghijklmnopqrstuvwxyz"]
        vocab = {token: index for index, token in enumerate([*letters, *(x.removesuffix("</w>") for x in letters)])}
        vocab |= {f"unused {index}": index for index in range(len(vocab), 49406)}  # a token for each embedding
        vocab |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
        tokens = CLIPTokenizer(vocab=vocab, merges=[])
    tokens.model_max_length = TOKENS
    patch, side = SHAPES[shape]["patch_size"], SHAPES[shape].get("image_size", 224)
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return FastGoalProcessor(images, tokens, patch_size=patch)
