"""Functions of the towers against CLIP itself and a slow loop, with a plain CLIPModel."""

import pytest
import torch
from transformers import CLIPModel

from fastgoal.modeling_fastgoal import word_mask
from fastgoal.modeling_fastgoal.towers_fastgoal import (
    cut_texts,
    patch_embeds,
    patch_tokens,
    pool_patches,
    pool_text,
    record_tokens,
    recorded_tokens,
    text_positions,
    token_embeds,
)
from tests.modeling_fastgoal.norms import shake_norms


@pytest.fixture(scope="module")
def clip(tiny_clip):
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    shake_norms(model)
    return model


@pytest.fixture
def ids(clip):
    ids = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = clip.text_model.eos_token_id
    return ids


@torch.no_grad()
def test_patches_in_the_joint_space(clip):
    outputs = clip.vision_model(torch.randn(2, 3, 32, 32))
    assert patch_tokens(clip, outputs).shape == (2, 16, 32)
    embeds = patch_embeds(clip, outputs)
    one = outputs.last_hidden_state[1, 6]  # behind the class token: patch 5
    torch.testing.assert_close(embeds[1, 5], clip.visual_projection(clip.vision_model.post_layernorm(one)))
    # A region of one patch is that patch; an empty one is a row of zeros.
    mask = torch.zeros(2, 16)
    mask[1, 5] = 1
    pooled = pool_patches(clip, outputs, mask)
    torch.testing.assert_close(pooled[1], torch.nn.functional.normalize(embeds[1, 5], dim=0))
    assert torch.equal(pooled[0], torch.zeros(16))
    # The mean is of the tokens, before norm and projection.
    mask[0, [1, 2, 9]] = 1
    mean = sum(outputs.last_hidden_state[0, 1 + patch] for patch in (1, 2, 9)) / 3
    expected = clip.visual_projection(clip.vision_model.post_layernorm(mean))
    torch.testing.assert_close(pool_patches(clip, outputs, mask)[0], expected / expected.norm())


@torch.no_grad()
def test_tokens_in_the_joint_space(clip, ids):
    record_tokens(clip)
    with recorded_tokens(clip) as recorded:
        outputs = clip.text_model(ids, output_hidden_states=True)
    (tokens,) = recorded
    assert torch.equal(tokens, outputs.hidden_states[-1])
    clip.text_model(ids)
    assert len(recorded) == 1  # outside, nothing is kept
    embeds = token_embeds(clip, outputs)
    torch.testing.assert_close(embeds[:, -1], clip.get_text_features(ids).pooler_output)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[1, 3] = True
    pooled = pool_text(clip, tokens, mask)
    torch.testing.assert_close(pooled[1], torch.nn.functional.normalize(embeds[1, 3], dim=0))
    assert torch.equal(pooled[0], torch.zeros(16))
    with pytest.raises(ValueError, match=r"\(2, 9\).*got \(2, 8\)"):
        pool_text(clip, tokens, mask[:, 1:])


@pytest.mark.parametrize("legacy", [False, True])
def test_long_texts_end_in_eos(clip, monkeypatch, legacy):
    eos = clip.text_model.eos_token_id
    if legacy:  # says 2, means the highest id, which EOS is
        monkeypatch.setattr(clip.text_model, "eos_token_id", 2)
    assert text_positions(clip) == 77
    long = torch.randint(3, 500, (2, 100))
    long[0, -1], long[1, 10:] = eos, eos
    cut = cut_texts(long, clip)
    assert cut.shape == (2, 77)
    assert cut[0, -1] == eos
    assert torch.equal(cut[0, :-1], long[0, :76])
    assert torch.equal(cut[1], long[1, :77])
    assert long[0, 76] != eos


def test_words_are_neither_bos_nor_eos_nor_padding():
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    assert word_mask(attention).int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
