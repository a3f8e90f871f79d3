"""SPARC's loss against a slow loop over tokens, its guards, and the model that computes it."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from fastgoal.modeling_fastgoal import FastGoalCLIPModel, group_patches, sparc_losses, word_mask


def slow_sparc(patches, tokens, words, scale):
    """Loss of one row, one token and one patch after the other."""
    count = len(patches)
    kept = [i for i in range(len(tokens)) if words[i]]
    grouped = {}
    for i in kept:
        similarity = [sum((a * b).item() for a, b in zip(tokens[i], patch)) for patch in patches]
        low, high = min(similarity), max(similarity)
        scaled = [(s - low) / (high - low) for s in similarity]
        scaled = [s if s >= 1 / count else 0.0 for s in scaled]
        grouped[i] = sum(s / sum(scaled) * patch for s, patch in zip(scaled, patches))
    total = 0.0
    for i in kept:
        for anchor, others in ((tokens[i], grouped), (grouped[i], {j: tokens[j] for j in kept})):
            logits = {j: scale * torch.cosine_similarity(anchor, other, dim=0).item() for j, other in others.items()}
            total += math.log(sum(math.exp(value) for value in logits.values())) - logits[i]
    return total / (2 * len(kept))


def inputs(batch=3, patches=6, tokens=7, dim=5):
    generator = torch.Generator().manual_seed(0)
    patch_embeds = torch.randn(batch, patches, dim, generator=generator, dtype=torch.float64)
    token_embeds = torch.randn(batch, tokens, dim, generator=generator, dtype=torch.float64)
    words = word_mask(torch.arange(tokens) < torch.tensor([[7], [5], [4]])[:batch])
    return patch_embeds, token_embeds, words


def test_loss_equals_a_slow_loop():
    patches, tokens, words = inputs()
    got = sparc_losses(patches, tokens, words, torch.tensor(7.0, dtype=torch.float64))
    expected = [slow_sparc(patches[i], tokens[i], words[i], 7.0) for i in range(3)]
    assert got.tolist() == pytest.approx(expected, rel=1e-6)


def test_padding_does_not_matter():
    patches, tokens, words = inputs()
    scale = torch.tensor(7.0)
    other = torch.where(words[..., None], tokens, 1e3 * torch.randn_like(tokens))
    torch.testing.assert_close(sparc_losses(patches, other, words, scale), sparc_losses(patches, tokens, words, scale))
    longer = torch.cat([tokens, torch.ones(3, 4, 5)], dim=1)
    padded = torch.cat([words, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(
        sparc_losses(patches, longer, padded, scale), sparc_losses(patches, tokens, words, scale)
    )


def test_weights_by_hand():
    # Similarities 0, 1, 2, 4 of four patches: scaled 0, 1/4, 1/2, 1, none below 1/4 but the first.
    patches = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [4.0, 1.0]]])
    grouped = group_patches(patches, torch.tensor([[[1.0, 0.0]]]))
    weights = torch.tensor([0.0, 0.25, 0.5, 1.0]) / 1.75
    torch.testing.assert_close(grouped[0, 0], weights @ patches[0])
    # 0, 1, 3, 5: scaled 0, 1/5, 3/5, 1; the second falls below 1/4.
    patches = torch.tensor([[[0.0], [1.0], [3.0], [5.0]]])
    torch.testing.assert_close(group_patches(patches, torch.ones(1, 1, 1))[0, 0], torch.tensor([(1.8 + 5) / 1.6]))


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e6])
def test_equal_similarities_give_the_mean_of_all_patches(scale):
    # Equal but for rounding: the same patch moved along a direction that the token does not see.
    patches = scale * torch.tensor([[[0.1, 1.0], [0.1, 2.0], [0.1, 6.0]]])
    tokens = torch.tensor([[[0.3, 0.0], [0.0, 1.0], [0.0, 0.0]]]).requires_grad_()
    patches.requires_grad_()
    grouped = group_patches(patches, tokens)
    torch.testing.assert_close(grouped[0, 0], patches[0].mean(dim=0))
    torch.testing.assert_close(grouped[0, 2], patches[0].mean(dim=0))
    sparc_losses(patches, tokens, torch.ones(1, 3), torch.tensor(10.0)).sum().backward()
    assert patches.grad.isfinite().all()
    assert tokens.grad.isfinite().all()


def test_a_row_without_words_is_zero_and_has_no_gradient():
    patches, tokens, words = inputs()
    words[1] = False
    tokens.requires_grad_()
    losses = sparc_losses(patches, tokens, words, torch.tensor(7.0))
    assert losses[1] == 0
    losses.sum().backward()
    assert tokens.grad.isfinite().all()
    assert (tokens.grad[1] == 0).all()


def test_a_mask_of_another_length_is_refused():
    patches, tokens, words = inputs()
    with pytest.raises(ValueError, match="token_mask"):
        sparc_losses(patches, tokens, words[:, :-1], torch.tensor(1.0))


@pytest.fixture(scope="module")
def model(tiny_clip):
    return FastGoalCLIPModel.from_base(str(tiny_clip))


@pytest.fixture
def batch(model):
    torch.manual_seed(0)
    ids = torch.randint(0, 500, (2, 9))
    ids[:, 0], ids[0, 8], ids[1, 5:] = model.config.text_config.bos_token_id, 513, 513
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 32, 32)}


@torch.no_grad()
def test_token_embeddings_of_the_model(model, batch):
    plain, asked = model(**batch), model(**batch, return_token_embeds=True)
    assert plain.patch_embeds is plain.token_embeds is plain.word_mask is None
    torch.testing.assert_close(asked.image_embeds, plain.image_embeds)
    torch.testing.assert_close(asked.logits_per_text, plain.logits_per_text)
    assert asked.patch_embeds.shape == (2, 16, 16)
    assert asked.word_mask.sum(dim=1).tolist() == [7, 4]
    # The token that CLIP pools, projected, is the caption's embedding.
    for row, last in enumerate((8, 5)):
        torch.testing.assert_close(normalize(asked.token_embeds[row, last], dim=-1), asked.text_embeds[row])
    # The last layer's patches one by one through norm and projection.
    hidden = model.vision_model(batch["pixel_values"]).last_hidden_state[1, 5]
    expected = model.visual_projection(model.vision_model.post_layernorm(hidden))
    torch.testing.assert_close(asked.patch_embeds[1, 4], expected)


@torch.no_grad()
def test_the_loss_of_a_model_with_sparc(tiny_clip, batch):
    model = FastGoalCLIPModel.from_base(str(tiny_clip))
    model.config.global_weight, model.config.sparc_weight = 0.5, 3.0
    outputs = model(**batch, return_loss=True)
    rows = sparc_losses(outputs.patch_embeds, outputs.token_embeds, outputs.word_mask, outputs.logit_scale)
    torch.testing.assert_close(outputs.loss_sparc, rows.mean())
    torch.testing.assert_close(outputs.loss, 0.5 * outputs.loss_global + 3 * outputs.loss_sparc)


@torch.no_grad()
def test_local_pairs_by_themselves(model, batch):
    local = {f"local_{name}": value for name, value in batch.items()}
    alone = model(**local)
    both = model(**batch, **local)
    torch.testing.assert_close(alone.local_image_embeds, both.local_image_embeds)
    torch.testing.assert_close(alone.local_text_embeds, both.local_text_embeds)
    assert alone.image_embeds is alone.text_embeds is alone.logits_per_text is None
    expected = model(**batch, **local, return_loss=True).loss_local
    torch.testing.assert_close(model(**local, return_loss=True).loss, 0.5 * expected)
    with pytest.raises(ValueError, match="return_token_embeds"):
        model(**local, return_token_embeds=True)
