"""A small SigLIP of the study's sizes: as the small CLIP, with SigLIP's towers, heads, loss and way of reading."""

import json
import math
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel

from fastgoal.quickstart.train_base import TOWER, VOCABULARY

LENGTH = 64
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of SigLIP 2's kind with a small vocabulary, learned from `texts`: lower case, EOS and no BOS."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    every_byte = [f"<0x{number:02X}>" for number in range(256)]
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[*SPECIAL, *every_byte], show_progress=False)
    )
    learned = json.loads(core.to_str())
    learned["added_tokens"] = [token for token in learned["added_tokens"] if token["content"] in SPECIAL]
    core = Tokenizer.from_str(json.dumps(learned))
    core.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **names,
        model_max_length=LENGTH,
        model_input_names=["input_ids"],
        padding_side="right",
    )


def square_images(side: int) -> SiglipImageProcessor:
    """SigLIP's image processor for pictures of `side` x `side` pixels, which it squashes to that."""
    return SiglipImageProcessor(size={"height": side, "width": side})


def make_model(tokenizer: PreTrainedTokenizerFast, image_size: int, patch_size: int) -> SiglipModel:
    """A SigLIP of about a million weights; scale and bias are 10 and -10 to begin with, as published."""
    config = SiglipConfig(
        text_config={
            **{**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH},
            **{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
        },
        vision_config={**TOWER, "image_size": image_size, "patch_size": patch_size},
    )
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    return model
