"""The model against CLIP, against a slow loop, and through save and load."""

import pytest
import torch
from transformers import AutoModel, CLIPConfig, CLIPModel

from fastgoal import FastGoalCLIPConfig, FastGoalCLIPModel
from tests.modeling_fastgoal.norms import shake_norms

EOS = 99
PATCHES = 16


def tiny_config(**text) -> CLIPConfig:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return CLIPConfig(
        text_config={**tower, "vocab_size": 100, "bos_token_id": 98, "eos_token_id": EOS, "projection_dim": 16, **text},
        vision_config={**tower, "image_size": 32, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    )


@pytest.fixture
def clip():
    torch.manual_seed(0)
    model = CLIPModel(tiny_config()).eval()
    shake_norms(model)
    return model


@pytest.fixture
def model(clip):
    return FastGoalCLIPModel.from_base(clip)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    ids = torch.randint(3, 97, (4, 20))
    ids[:, -1] = EOS
    ids[1, 12:] = EOS
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(4, 3, 32, 32)}


@pytest.fixture
def local():
    torch.manual_seed(2)
    ids = torch.randint(3, 97, (4, 7))
    ids[:, -1] = EOS
    region = torch.zeros(4, PATCHES, dtype=torch.bool)
    region[0, :5] = True
    region[1, 3] = True
    region[2] = True  # row 3 has no patch
    sentence = torch.zeros(4, 20, dtype=torch.bool)
    sentence[0, 1:6] = True
    sentence[2, 4:9] = True
    sentence[3, 10:19] = True  # row 1 has no token
    return {
        "local_input_ids": ids,
        "local_attention_mask": torch.ones_like(ids),
        "local_pixel_values": torch.randn(4, 3, 32, 32),
        "region_mask": region,
        "sentence_mask": sentence,
    }


def test_the_arguments_of_clip_give_the_outputs_of_clip(clip, batch):
    ours = FastGoalCLIPModel.from_base(clip, max_text_length=77)
    expected, got = clip(**batch, return_loss=True), ours(**batch, return_loss=True)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        assert torch.equal(getattr(expected, name), getattr(got, name)), name
    torch.testing.assert_close(got.loss, expected.loss)
    assert torch.equal(expected.vision_model_output[0], got.vision_model_output[0])
    assert torch.equal(got.loss, got.loss_global)
    assert next(iter(got)) == "loss"
    legacy = ours(**batch, return_dict=False)
    assert isinstance(legacy, tuple)
    assert torch.equal(legacy[0], got.logits_per_image)


def test_local_inputs_do_not_change_the_global_embeddings(clip, model, batch, local):
    expected, got = clip(**batch), model(**batch, **local)
    torch.testing.assert_close(got.image_embeds, expected.image_embeds)
    torch.testing.assert_close(got.text_embeds, expected.text_embeds)
    torch.testing.assert_close(got.logits_per_text, expected.logits_per_text, rtol=1e-4, atol=1e-4)
    alone = clip(input_ids=local["local_input_ids"], pixel_values=local["local_pixel_values"])
    torch.testing.assert_close(got.local_image_embeds, alone.image_embeds)
    torch.testing.assert_close(got.local_text_embeds, alone.text_embeds)
    assert got.loss is None


def test_tower_outputs_hold_only_captions_and_images(clip, model, batch, local):
    short = FastGoalCLIPModel.from_base(clip, max_text_length=77)
    expected = clip(**batch, output_hidden_states=True, output_attentions=True)
    got = short(**batch, **local, output_hidden_states=True, output_attentions=True)
    for name in ("text_model_output", "vision_model_output"):
        theirs, ours = getattr(expected, name), getattr(got, name)
        assert theirs.keys() == ours.keys()
        for part, value in theirs.items():
            torch.testing.assert_close(ours[part], value, msg=part)
    del local["sentence_mask"], local["region_mask"]
    assert model(**local).vision_model_output is None


def test_chosen_hidden_states_are_kept(model, batch, local):
    every = model(**batch, **local, output_hidden_states=True)
    for asked in ([0], [1, -1], 1):
        try:
            got = model(**batch, **local, output_hidden_states=asked)
            plain = model(**batch, output_hidden_states=asked)
        except (TypeError, AttributeError):  # transformers before 5.20
            pytest.skip("this transformers knows no choice of hidden states")
        assert torch.equal(got.sentence_embeds, every.sentence_embeds)
        torch.testing.assert_close(got.vision_model_output.hidden_states, plain.vision_model_output.hidden_states)
        torch.testing.assert_close(got.text_model_output.hidden_states, plain.text_model_output.hidden_states)
    assert model(**batch, **local).text_model_output.hidden_states is None


def test_captions_longer_than_the_model_are_cut_with_their_masks(model, batch, local):
    model.config.sparc_weight = 0.5
    ids = torch.randint(3, 97, (4, 300))
    ids[:, -1] = EOS
    sentence = torch.zeros(4, 300, dtype=torch.bool)
    sentence[0, 3:50], sentence[1, 240:270], sentence[2, 260:290] = True, True, True
    cut = ids[:, :248].clone()
    cut[:, -1] = EOS
    inside = sentence[:, :248].clone()
    inside[:, -1] = False
    batch |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    local["sentence_mask"] = sentence
    whole = model(**batch, **local, return_loss=True)
    batch |= {"input_ids": cut, "attention_mask": torch.ones_like(cut)}
    expected = model(**batch, **{**local, "sentence_mask": inside}, return_loss=True)
    for name in ("loss", "sentence_embeds", "text_embeds", "word_mask", "token_embeds"):
        torch.testing.assert_close(whole[name], expected[name])
    assert whole.sentence_embeds.norm(dim=-1).tolist() == pytest.approx([1, 1, 0, 0], abs=1e-5)


def test_auto_model_makes_it_from_its_configuration(model, tmp_path):
    made = AutoModel.from_config(model.config)
    assert type(made) is FastGoalCLIPModel
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path, config=model.config)) is FastGoalCLIPModel
    assert type(AutoModel.from_pretrained(tmp_path)) is CLIPModel


def test_token_similarity_equals_a_slow_loop(clip, model, batch, local):
    got = model(**batch, **local, return_loss=True)
    patches = clip.vision_model(batch["pixel_values"]).last_hidden_state[:, 1:]
    caught = []
    hook = clip.text_model.final_layer_norm.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    clip.text_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    hook.remove()
    sides = {
        "region": (patches, local["region_mask"], clip.vision_model.post_layernorm, clip.visual_projection),
        "sentence": (caught[0], local["sentence_mask"], clip.text_model.final_layer_norm, clip.text_projection),
    }
    targets = {"region": got.local_image_embeds, "sentence": got.local_text_embeds}
    for side, (tokens, mask, norm, projection) in sides.items():
        errors = []
        for row in range(4):
            chosen = [tokens[row, i] for i in range(mask.shape[1]) if mask[row, i]]
            if not chosen:
                assert torch.equal(got[f"{side}_embeds"][row], torch.zeros(16))
                continue
            pooled = projection(norm(sum(chosen) / len(chosen)))
            cosine = torch.cosine_similarity(pooled, targets[side][row], dim=0)
            errors.append((cosine - 1) ** 2)
        assert len(errors) == 3
        loss = got.loss_tsl_image if side == "region" else got.loss_tsl_text
        torch.testing.assert_close(loss, sum(errors) / 3)


def test_loss_is_the_sum_weighted_by_the_configuration(clip, batch, local):
    model = FastGoalCLIPModel.from_base(clip)
    model.config.global_weight, model.config.local_weight, model.config.tsl_weight = 2.0, 3.0, 5.0
    got = model(**batch, **local, return_loss=True)
    expected = 2 * got.loss_global + 3 * got.loss_local + 5 * (got.loss_tsl_image + got.loss_tsl_text)
    torch.testing.assert_close(got.loss, expected)


def test_gradients_reach_every_weight_and_are_finite_with_empty_masks(model, batch, local):
    local["region_mask"][:] = False
    local["sentence_mask"][:] = False
    got = model.train()(**batch, **local, return_loss=True)
    got.loss.backward()
    assert got.loss_tsl_image == 0
    assert got.loss_tsl_text == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_integer_masks_work_like_bool_masks(model, batch, local):
    expected = model(**batch, **local, return_loss=True)
    as_ints = {**local, "region_mask": local["region_mask"].long(), "sentence_mask": local["sentence_mask"].float()}
    torch.testing.assert_close(model(**batch, **as_ints, return_loss=True).loss, expected.loss)


def test_region_embeds_need_no_crop(model, batch, local):
    got = model(**batch, region_mask=local["region_mask"], return_loss=True)
    torch.testing.assert_close(got.region_embeds, model(**batch, **local).region_embeds)
    assert got.loss_tsl_image is None
    assert torch.equal(got.loss, got.loss_global)


def test_short_captions_share_a_forward_and_change_nothing(model, batch, local):
    ids = batch["input_ids"][:, :4].clone()
    ids[:, -1] = model.text_model.eos_token_id
    alone = model.get_text_features(ids).pooler_output
    calls = []
    model.text_model.register_forward_hook(lambda *_: calls.append(1))
    before = model(**batch, **local)
    assert len(calls) == 2
    both = model(**batch, **local, short_input_ids=ids)
    assert len(calls) == 4
    torch.testing.assert_close(both.short_text_embeds, torch.nn.functional.normalize(alone, dim=-1))
    torch.testing.assert_close(both.local_text_embeds, before.local_text_embeds)
    only = model(**batch, short_input_ids=ids, short_attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(only.short_text_embeds, both.short_text_embeds)
    assert only.local_text_embeds is None


def test_numbers_of_rows_must_match(model, batch, local):
    local["local_pixel_values"] = local["local_pixel_values"][:3]
    with pytest.raises(ValueError, match="'local_pixel_values': 3"):
        model(**batch, **local)


def test_mask_must_fit_its_tokens(model, batch, local):
    local["region_mask"] = local["region_mask"][:, :9]
    with pytest.raises(ValueError, match=r"\(4, 16\).*got \(4, 9\)"):
        model(**batch, **local)


def test_weights_are_those_of_clip(clip, model):
    assert list(model.state_dict()) == list(clip.state_dict())
    changed = "text_model.embeddings.position_embedding.weight"
    for name, tensor in clip.state_dict().items():
        if name != changed:
            assert torch.equal(tensor, model.state_dict()[name]), name
    assert model.state_dict()[changed].shape == (248, 32)
    assert clip.text_model.embeddings.position_embedding.weight.shape == (77, 32)
    assert clip.config.text_config.max_position_embeddings == 77


def test_from_base_keeps_longer_positions(model):
    again = FastGoalCLIPModel.from_base(model)
    assert torch.equal(
        again.text_model.embeddings.position_embedding.weight, model.text_model.embeddings.position_embedding.weight
    )
    longer = FastGoalCLIPModel.from_base(model, 512)
    assert longer.config.text_config.max_position_embeddings == 512
    assert (model.stretched_from, again.stretched_from, longer.stretched_from) == (77, None, 248)


@pytest.mark.parametrize(
    ("positions", "wanted", "message"), [(77, 1025, "from 77.* to 1024"), (248, 100, "from 248"), (64, 248, "be 64")]
)
def test_from_base_refuses_other_lengths(positions, wanted, message):
    clip = CLIPModel(tiny_config(max_position_embeddings=positions))
    with pytest.raises(ValueError, match=message):
        FastGoalCLIPModel.from_base(clip, wanted)


def test_from_base_keeps_dtype_and_legacy_eos(batch):
    clip = CLIPModel(tiny_config(eos_token_id=2)).eval().to(torch.bfloat16)
    model = FastGoalCLIPModel.from_base(clip, max_text_length=77)
    assert model.dtype == torch.bfloat16
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    assert torch.equal(model(**batch).text_embeds, clip(**batch).text_embeds)


def test_save_and_load(model, batch, tmp_path):
    model.config.local_weight = 0.25
    model.save_pretrained(tmp_path)
    loaded = FastGoalCLIPModel.from_pretrained(tmp_path)
    assert isinstance(loaded.config, FastGoalCLIPConfig)
    assert loaded.config.local_weight == 0.25
    assert torch.equal(loaded(**batch).logits_per_image, model(**batch).logits_per_image)
    assert FastGoalCLIPModel.from_base(str(tmp_path)).config.local_weight == 0.25


def test_a_plain_clip_folder_loads(clip, batch, tmp_path):
    clip.save_pretrained(tmp_path)
    loaded = FastGoalCLIPModel.from_pretrained(tmp_path)
    assert (loaded.config.global_weight, loaded.config.local_weight, loaded.config.tsl_weight) == (1.0, 0.5, 1.0)
    assert torch.equal(loaded(**batch).logits_per_image, clip(**batch).logits_per_image)


def test_half_precision_autocast_runs(model, batch, local):
    expected = model(**batch, **local, return_loss=True).loss
    with torch.autocast("cpu", torch.bfloat16):
        got = model(**batch, **local, return_loss=True).loss
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)


def test_gradient_checkpointing_changes_nothing(model, batch, local):
    model.train()
    model(**batch, **local, return_loss=True).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch, **local, return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
