"""Models of the published shapes, with random weights, against their plain classes: equal to the bit, also stretched.

    python tests/peers/published_shapes.py [NAME ...]

Sizes are those of the checkpoints' configurations on the Hub. For each: ours made of the plain class gives the same
logits; SigLIP's head over all patches is its image embedding, and over some of them what the head makes of those alone;
stretched and saved, the plain class reads it and says the same. The largest one takes 12 GB.
"""

import sys
import tempfile
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, MetaClip2Config, MetaClip2Model, SiglipConfig, SiglipModel

from fastgoal import FastGoalModel


def siglip(vocabulary: int, image: int = 224, patch: int = 16, **tower: int) -> Any:
    """A SigLIP; both towers are of one size."""
    return SiglipModel, SiglipConfig(
        text_config={"vocab_size": vocabulary, **tower},
        vision_config={"image_size": image, "patch_size": patch, **tower},
    )


def metaclip2(vision: dict[str, int], text: dict[str, int], dim: int, act: str) -> Any:
    """A MetaCLIP 2 with the vocabulary of XLM-V."""
    ids = {"vocab_size": 901629, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    common = {"hidden_act": act, "projection_dim": dim}
    config = MetaClip2Config(
        text_config={**text, **ids, **common}, vision_config={**vision, **common}, projection_dim=dim
    )
    return MetaClip2Model, config


def tower(width: int, inner: int, layers: int, heads: int, **more: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


SHAPES: dict[str, Any] = {
    "siglip-base-patch16-224": lambda: siglip(32000),
    "siglip2-base-patch16-224": lambda: siglip(256000),
    "siglip2-so400m-patch14-384": lambda: siglip(256000, 384, 14, **tower(1152, 4304, 27, 16)),
    "metaclip-2-worldwide-b32": lambda: metaclip2(
        tower(768, 3072, 12, 12, patch_size=32), tower(512, 2048, 12, 8), 512, "gelu"
    ),
    "metaclip-2-worldwide-huge-quickgelu": lambda: metaclip2(
        tower(1280, 5120, 32, 16, patch_size=14), tower(1024, 4096, 24, 16), 1024, "quick_gelu"
    ),
}


@torch.no_grad()
def check(name: str) -> str:
    """What was compared, in a line; an AssertionError where something differs."""
    kind, config = SHAPES[name]()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if "huge" in name else torch.float32  # or it would take 24 GB
    plain = _made(kind, config, dtype)
    end, side, count = 2 if kind is MetaClip2Model else 1, config.vision_config.image_size, 3
    ids = torch.randint(3, 30000, (count, config.text_config.max_position_embeddings))
    ids[:, -1] = ids[1, 20:] = end
    pixels = torch.randn(count, 3, side, side, dtype=dtype)
    inputs = {"input_ids": ids, "pixel_values": pixels}
    expected = plain(**inputs, return_loss=True)
    vision = plain.vision_model(pixels).last_hidden_state if kind is SiglipModel else None
    head = plain.vision_model.head if kind is SiglipModel else None
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        tokens = config.text_config.max_position_embeddings
        weights = plain.num_parameters()
        if head is None:
            del plain
        ours = FastGoalModel.from_base(folder, tokens, dtype=dtype)
        got = ours(**inputs, return_loss=True)
        for part in ("loss", "logits_per_image", "image_embeds", "text_embeds"):
            assert torch.equal(expected[part], got[part]), part
        if head is not None:
            patches = vision.shape[1]
            masks = torch.zeros(count, patches, dtype=torch.bool)
            masks[0], masks[1, 5:50] = True, True
            pooled = ours(**inputs, region_mask=masks).region_embeds
            torch.testing.assert_close(pooled[0], expected.image_embeds[0], atol=1e-5, rtol=1e-5)
            some = normalize(head(vision[1:2, 5:50])[0], dim=0)
            torch.testing.assert_close(pooled[1], some, atol=1e-5, rtol=1e-5)
            assert not pooled[2].any()
            del plain, head
        del ours
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        _made(kind, config, dtype).save_pretrained(folder)
        longer = FastGoalModel.from_base(folder, dtype=dtype)
        length = longer.config.text_config.max_position_embeddings
        text = torch.randint(3, 30000, (count, length))
        text[:, -1] = end
        logits = longer(input_ids=text, pixel_values=pixels).logits_per_text
        longer.save_pretrained(folder)
        del longer
        again = AutoModel.from_pretrained(folder, dtype=dtype)
        assert type(again) is kind
        assert torch.equal(again(input_ids=text, pixel_values=pixels).logits_per_text, logits)
    return f"{name}: {weights / 1e6:,.0f} M weights, equal to {kind.__name__} at {tokens} and at {length} tokens"


def _made(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    """A model that is made in a number format, and never was in a larger one."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return kind(config).eval()
    finally:
        torch.set_default_dtype(default)


if __name__ == "__main__":
    for shape in sys.argv[1:] or SHAPES:
        print(check(shape), flush=True)
