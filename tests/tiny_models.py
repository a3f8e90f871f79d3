"""Checkpoints as on the Hub, tiny and with random weights: CLIP and its like, a captioner and detectors."""

from pathlib import Path

import torch


def make_vlm(folder: Path) -> Path:
    """A Qwen2-VL with a chat template and a vocabulary of some forty words.

    An image takes more tokens the larger it is, so that the prompts of a batch differ in length.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    special = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special += ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    sentence = (
        "a the red green blue grey round square small large cup dog tree road house sky light stone wood person stands "
        "lies shines on under beside behind left right above two three ."
    )
    vocab = {token: index for index, token in enumerate([*special, *sentence.split()])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[2:],
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": rope,
            "eos_token_id": vocab["<|im_end|>"],
            "pad_token_id": vocab["<|endoftext|>"],
            "initializer_range": 0.5,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
            "initializer_range": 0.5,
        },
        image_token_id=vocab["<|image_pad|>"],
        video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"],
        vision_end_token_id=vocab["<|vision_end|>"],
        initializer_range=0.5,
    )
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        # It comes to an end now and then, and writes no other special token.
        model.lm_head.weight[vocab["<|im_end|>"]] *= 1.5
        model.lm_head.weight[[vocab[token] for token in special if token != "<|im_end|>"]] = 0
    model.generation_config.eos_token_id = vocab["<|im_end|>"]
    model.save_pretrained(folder)
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(patch_size=8, size=size),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=8),
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def make_sam(folder: Path) -> Path:
    """A SAM for images of 32 pixels."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "window_size": 2,
            "global_attn_indexes": [],
            "mlp_dim": 16,
            "num_pos_feats": 4,
        },
        prompt_encoder_config={
            "hidden_size": 8,
            "image_size": 32,
            "patch_size": 8,
            "image_embedding_size": 4,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 8,
            "mlp_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 8,
            "iou_head_depth": 2,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SamModel(config).save_pretrained(folder)
    images = SamImageProcessor(
        size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}, mask_size={"longest_edge": 8}
    )
    SamProcessor(images).save_pretrained(folder)
    return folder


def make_yolos(folder: Path) -> Path:
    """A YOLOS of two classes, cat and dog."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=16,
        num_detection_tokens=3,
        use_mid_position_embeddings=False,
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    return folder


WORDS = "a red green blue dog cat sits on under the sofa lawn house stands wide near by two birds fly over grey ."
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def make_clip(folder: Path) -> Path:
    """A CLIP that reads 77 tokens, one for each byte, and images of 32 pixels in patches of 8."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    start, end = len(vocab) - 2, len(vocab) - 1
    config = CLIPConfig(
        text_config={
            **SIZE,
            **{"vocab_size": len(vocab), "max_position_embeddings": 77},
            **{"bos_token_id": start, "eos_token_id": end, "pad_token_id": end},
        },
        vision_config={**SIZE, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    return _save_clip_processor(CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77), folder)


def _save_clip_processor(tokenizer, folder: Path) -> Path:
    from transformers import CLIPImageProcessor, CLIPProcessor

    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def make_siglip(folder: Path, second: bool = False) -> Path:
    """A SigLIP that reads 64 tokens and images of 32 pixels in patches of 8, or a SigLIP 2 of fixed resolution.

    SigLIP's tokenizer is sentencepiece's, without capitals and punctuation; SigLIP 2's is fast and knows every byte.
    """
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    folder.mkdir(exist_ok=True)
    tokenizer = _gemma_tokenizer() if second else _siglip_tokenizer(folder)
    config = SiglipConfig(
        text_config={**SIZE, "vocab_size": len(tokenizer), "projection_size": 32, "max_position_embeddings": 64},
        vision_config={**SIZE, "image_size": 32, "patch_size": 8},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SiglipModel(config)
        model.logit_scale.data.fill_(3.0)
        model.logit_bias.data.fill_(-4.0)
    model.save_pretrained(folder)
    images = SiglipImageProcessor(size={"height": 32, "width": 32})
    SiglipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def _siglip_tokenizer(folder: Path):
    import io

    import sentencepiece
    from transformers import SiglipTokenizer

    words = WORDS.split()
    texts = [f"{' '.join(words[i:] + words[:i])} {' '.join(words[i::3])}" for i in range(len(words))] * 20
    model = io.BytesIO()
    sentencepiece.set_min_log_level(2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=80,
        hard_vocab_limit=False,
        num_threads=1,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"), model_max_length=64, model_input_names=["input_ids"])


def _gemma_tokenizer():
    """As SigLIP 2's: lower case, padding 0, EOS 1 at the end, no BOS, a token for each byte."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    tokens = [*special, *(f"<0x{number:02X}>" for number in range(256)), "▁", *letters, *".,!?0123456789"]
    core = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
        model_max_length=64,
        model_input_names=["input_ids"],
        padding_side="right",
    )


def make_metaclip2(folder: Path) -> Path:
    """A MetaCLIP 2 that reads 77 tokens, of an XLM-RoBERTa tokenizer, and images of 32 pixels in patches of 8."""
    from transformers import MetaClip2Config, MetaClip2Model, XLMRobertaTokenizer

    characters = sorted(
        {*"abcdefghijklmnopqrstuvwxyzäöüßéèçABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'0123456789", *"红色的狗在草地上。猫"}
    )
    vocab = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocab += [(token, -3.0) for token in ("▁", *characters)]
    tokenizer = XLMRobertaTokenizer(vocab=vocab, model_max_length=77)
    config = MetaClip2Config(
        text_config={
            **SIZE,
            **{"vocab_size": len(tokenizer), "max_position_embeddings": 77, "projection_dim": 16},
            **{"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
        },
        vision_config={**SIZE, "image_size": 32, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MetaClip2Model(config).save_pretrained(folder)
    return _save_clip_processor(tokenizer, folder)
