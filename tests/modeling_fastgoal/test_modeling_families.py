"""Every family against its plain class, against slow loops, and through save and load."""

import json

import pytest
import torch
import transformers
from torch.nn.functional import normalize
from transformers import AutoModel, SiglipConfig, SiglipModel

from fastgoal import FastGoalCLIPModel, FastGoalModel, FastGoalSiglipModel
from fastgoal.modeling_fastgoal import FastGoalSiglipConfig
from tests.modeling_fastgoal.norms import shake_norms

PLAIN = {"clip": "CLIPModel", "metaclip2": "MetaClip2Model", "siglip": "SiglipModel", "siglip2": "SiglipModel"}
LENGTHS = {"clip": (77, 248), "metaclip2": (77, 248), "siglip": (64, 256), "siglip2": (64, 256)}


@pytest.fixture(params=PLAIN, scope="module")
def family(request):
    return request.param


@pytest.fixture
def plain(family, tiny_bases):
    model = getattr(transformers, PLAIN[family]).from_pretrained(tiny_bases[family]).eval()
    shake_norms(model)
    return model


@pytest.fixture
def model(family, plain):
    kind = {"CLIPModel": "clip", "MetaClip2Model": "metaclip2", "SiglipModel": "siglip"}[type(plain).__name__]
    import fastgoal

    name = {"clip": "FastGoalCLIPModel", "metaclip2": "FastGoalMetaClip2Model", "siglip": "FastGoalSiglipModel"}[kind]
    return getattr(fastgoal, name).from_base(plain, LENGTHS[family][0])


def texts(model, rows: int, tokens: int, seed: int) -> dict[str, torch.Tensor]:
    """Ids as the family's tokenizer makes them, of different lengths; the mask only where it takes one."""
    end = {"clip": 513, "metaclip_2": 2, "siglip": 1}[model.config.model_type]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 30, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        ids[row, tokens - 1 - row :] = end
        mask[row, tokens - row :] = 0
    return {"input_ids": ids} if end == 1 else {"input_ids": ids, "attention_mask": mask}


def pictures(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch(model):
    local = texts(model, 3, 9, 2)
    region, sentence = torch.zeros(3, 16, dtype=torch.bool), torch.zeros(3, 12, dtype=torch.bool)
    region[0, [1, 2, 9]], region[1], sentence[0, 2:6], sentence[2, 1:4] = True, True, True, True
    return {
        **texts(model, 3, 12, 1),
        "pixel_values": pictures(3, 3),
        **{f"local_{name}": value for name, value in local.items()},
        "local_pixel_values": pictures(3, 4),
        "region_mask": region,
        "sentence_mask": sentence,
    }


@torch.no_grad()
def test_the_arguments_of_the_base_give_the_outputs_of_the_base(plain, model):
    inputs = {**texts(model, 3, 12, 1), "pixel_values": pictures(3, 3), "return_loss": True}
    expected, got = plain(**inputs), model(**inputs)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        assert torch.equal(expected[name], got[name]), name
    torch.testing.assert_close(got.loss, expected.loss)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}
    assert torch.equal(got.logits_per_text, got.logits_per_image.T)


@torch.no_grad()
def test_local_pairs_are_embedded_as_by_the_base(plain, model, batch):
    got = model(**batch, return_loss=True)
    expected = plain(
        **{name[6:]: value for name, value in batch.items() if name.startswith("local_")},
    )
    torch.testing.assert_close(got.local_image_embeds, expected.image_embeds)
    torch.testing.assert_close(got.local_text_embeds, expected.text_embeds)
    whole = {name: value for name, value in batch.items() if "local" not in name and "mask" not in name}
    whole |= {name: batch[name] for name in ("attention_mask",) if name in batch}
    torch.testing.assert_close(got.logits_per_text, plain(**whole).logits_per_text)
    weighted = got.loss_global + 0.5 * got.loss_local + got.loss_tsl_image + got.loss_tsl_text
    torch.testing.assert_close(got.loss, weighted)
    torch.testing.assert_close(got.loss_global, plain(**whole, return_loss=True).loss)


@torch.no_grad()
def test_regions_and_sentences_equal_a_slow_loop(plain, model, batch):
    got = model(**batch)
    vision = plain.vision_model(batch["pixel_values"]).last_hidden_state
    words = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    text = plain.text_model(**words, output_hidden_states=True).hidden_states[-1]
    for row in range(3):
        patches, tokens = batch["region_mask"][row], batch["sentence_mask"][row]
        if not patches.any():
            assert not got.region_embeds[row].any()
        elif isinstance(plain, SiglipModel):
            expected = plain.vision_model.head(vision[row : row + 1, patches])[0]
            torch.testing.assert_close(got.region_embeds[row], normalize(expected, dim=0))
        else:
            mean = plain.vision_model.post_layernorm(vision[row, 1:][patches].mean(dim=0))
            torch.testing.assert_close(got.region_embeds[row], normalize(plain.visual_projection(mean), dim=0))
        if not tokens.any():
            assert not got.sentence_embeds[row].any()
            continue
        mean = plain.text_model.final_layer_norm(text[row, tokens].mean(dim=0))
        project = plain.text_model.head if isinstance(plain, SiglipModel) else plain.text_projection
        torch.testing.assert_close(got.sentence_embeds[row], normalize(project(mean), dim=0))


@pytest.mark.parametrize("side", [8, 24])
@torch.no_grad()
def test_smaller_crops_are_embedded_as_by_the_base(plain, model, batch, side):
    """The base interpolates its positions for them; nothing else changes, and a slow loop gives the same losses."""
    model.config.token_weight = 0.3
    expected = model(**batch, return_loss=True)
    crops = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(6))
    passes = []
    model.vision_model.register_forward_pre_hook(
        lambda tower, args, inputs: passes.append(inputs["pixel_values"].shape), with_kwargs=True
    )
    model(**batch)
    got = model(**{**batch, "local_pixel_values": crops}, return_loss=True)
    assert passes == [(6, 3, 32, 32), (3, 3, 32, 32), (3, 3, side, side)]  # one for each size
    alone = plain.get_image_features(pixel_values=crops, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(got.local_image_embeds, normalize(alone, dim=-1))
    for name in ("image_embeds", "text_embeds", "local_text_embeds", "region_embeds", "sentence_embeds"):
        torch.testing.assert_close(got[name], expected[name])
    assert got.vision_model_output.last_hidden_state.shape == expected.vision_model_output.last_hidden_state.shape
    # The region is pulled toward the smaller crop.
    distances = [
        (float(got.region_embeds[row] @ normalize(alone[row], dim=0)) - 1) ** 2
        for row in range(3)
        if batch["region_mask"][row].any()
    ]
    assert float(got.loss_tsl_image) == pytest.approx(sum(distances) / len(distances), abs=1e-5)
    assert got.loss_global == pytest.approx(float(expected.loss_global), abs=1e-5)
    assert abs(got.loss_local - expected.loss_local) > 1e-4
    local = {"local_input_ids": batch["local_input_ids"], "local_pixel_values": crops}
    torch.testing.assert_close(model(**local).local_image_embeds, got.local_image_embeds)


@torch.no_grad()
def test_whole_images_of_another_size_are_refused_as_by_the_base(model, batch):
    images = {"pixel_values": torch.zeros(3, 3, 24, 24)}
    for inputs in (images, {**images, "local_pixel_values": torch.zeros(3, 3, 24, 24)}):
        with pytest.raises((ValueError, RuntimeError)):
            model(**{**batch, **inputs})


@torch.no_grad()
def test_single_patches_and_tokens(model, batch):
    got = model(**batch, return_token_embeds=True)
    for patch in (0, 7):
        alone = torch.zeros(3, 16, dtype=torch.bool)
        alone[:, patch] = True
        expected = model(**{**batch, "region_mask": alone}).region_embeds
        torch.testing.assert_close(normalize(got.patch_embeds[:, patch], dim=-1), expected)
    last = 11 if model.config.model_type == "siglip" else 9
    torch.testing.assert_close(normalize(got.token_embeds[2, last], dim=-1), got.text_embeds[2])
    words = 9 if model.config.model_type == "siglip" else 8  # of the last row; without BOS there is one more
    assert got.word_mask.sum(dim=1).tolist() == [words + 2, words + 1, words]


@torch.no_grad()
def test_siglip_pools_all_patches_to_its_own_embedding(tiny_bases):
    model = FastGoalModel.from_base(tiny_bases["siglip"])
    inputs = {"pixel_values": pictures(2, 3), **texts(model, 2, 12, 1)}
    got = model(**inputs, region_mask=torch.ones(2, 16), sentence_mask=torch.zeros(2, 12))
    torch.testing.assert_close(got.region_embeds, got.image_embeds)


def test_gradients_reach_all_weights_of_the_base(model, batch):
    model.train()
    model(**batch, return_loss=True).loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    if isinstance(model, FastGoalSiglipModel):
        region = model.vision_model.head.probe.grad
        assert torch.isfinite(region).all()


def test_a_stretched_model_loads_as_the_plain_class(family, tiny_bases, tmp_path):
    longer = FastGoalModel.from_base(tiny_bases[family])
    assert longer.config.text_config.max_position_embeddings == LENGTHS[family][1]
    longer.save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path)
    assert type(plain).__name__ == PLAIN[family]
    inputs = {**texts(longer, 3, LENGTHS[family][1], 1), "pixel_values": pictures(3, 3)}
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits_per_text, longer(**inputs).logits_per_text)
    again = type(longer).from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in longer.state_dict().items())
    assert again.config.to_json_string() == longer.config.to_json_string()
    again.save_pretrained(tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):
        assert json.loads((folder / "config.json").read_text())["architectures"] == [PLAIN[family]]


@torch.no_grad()
def test_texts_longer_than_the_model_are_cut(model):
    limit = model.config.text_config.max_position_embeddings
    long = texts(model, 2, limit + 10, 1)
    cut = {name: value[:, :limit].clone() for name, value in long.items()}
    cut["input_ids"][:, -1] = long["input_ids"][0, -1]
    torch.testing.assert_close(
        model.get_text_features(**long).pooler_output, model.get_text_features(**cut).pooler_output
    )


def test_short_captions_share_a_forward_where_padding_does_not_count(model, batch):
    with torch.no_grad():
        for tokens in (6, 9):  # as long as the sentences, and shorter
            short = {f"short_{name}": value for name, value in texts(model, 3, tokens, 5).items()}
            got = model(**batch, **short)
            alone = texts(model, 3, tokens, 5)
            expected = normalize(model.get_text_features(**alone).pooler_output, dim=-1)
            torch.testing.assert_close(got.short_text_embeds, expected)


def test_the_contrastive_loss_follows_the_configuration(model, batch):
    is_siglip = isinstance(model, FastGoalSiglipModel)
    own = model(**batch, return_loss=True).loss_local
    model.config.contrastive = "sigmoid" if is_siglip else "softmax"
    assert torch.equal(model(**batch, return_loss=True).loss_local, own)
    if is_siglip:
        model.config.contrastive = "softmax"
        assert not torch.isclose(model(**batch, return_loss=True).loss_local, own)
    else:
        model.config.contrastive = "sigmoid"
        with pytest.raises(ValueError, match="`contrastive` must be softmax"):
            model(**batch, return_loss=True)
    model.config.contrastive = "hinge"
    with pytest.raises(ValueError, match="softmax or sigmoid, got 'hinge'"):
        model(**batch, return_loss=True)


def test_other_families_and_lengths_are_refused(tiny_bases):
    with pytest.raises(ValueError, match="siglip' is a SigLIP: use FastGoalSiglipModel"):
        FastGoalCLIPModel.from_base(tiny_bases["siglip"])
    with pytest.raises(ValueError, match="from 64, the text length of this SigLIP, to 1024, got 63"):
        FastGoalModel.from_base(tiny_bases["siglip"], 63)
    with pytest.raises(ValueError, match="from 77, the text length of this MetaCLIP 2, to 1024, got 1025"):
        FastGoalModel.from_base(tiny_bases["metaclip2"], 1025)
    headless = SiglipConfig(vision_config={"vision_use_head": False})
    headless.vision_config.num_hidden_layers = headless.text_config.num_hidden_layers = 1
    with pytest.raises(ValueError, match="without its pooling head"):
        FastGoalSiglipModel.from_base(SiglipModel(headless))
    assert FastGoalSiglipConfig(tsl_weight=0.5).to_dict()["tsl_weight"] == 0.5
