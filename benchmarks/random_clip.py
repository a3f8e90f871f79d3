"""A CLIP ViT-B with random weights that reads 248 tokens, which changes no time, and its processor."""

from typing import Any

from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from fastgoal import FastGoalCLIPModel, FastGoalProcessor

TOKENS = 248


def build_model(patch_size: int, thin: bool = False) -> Any:
    """The model, or one with two thin layers in each tower."""
    size: dict[str, Any] = {}
    if thin:
        size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(text_config={"eos_token_id": 49407, **size}, vision_config={"patch_size": patch_size, **size})
    return FastGoalCLIPModel.from_clip(CLIPModel(config), TOKENS)


def build_processor(tokenizer: str | None, patch_size: int) -> FastGoalProcessor:
    """CLIP's processor; without a tokenizer one that knows letters, each letter of a text being a word."""
    if tokenizer:
        tokens = AutoTokenizer.from_pretrained(tokenizer)
    else:
        letters = [f"{letter}</w>" for letter in ".abcdefghijklmnopqrstuvwxyz"]
        vocab = {token: index for index, token in enumerate([*letters, *(x.removesuffix("</w>") for x in letters)])}
        vocab |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
        tokens = CLIPTokenizer(vocab=vocab, merges=[])
    tokens.model_max_length = TOKENS
    images = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    return FastGoalProcessor(images, tokens, patch_size=patch_size)
