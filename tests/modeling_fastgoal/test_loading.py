"""Which class a checkpoint is loaded as, and checkpoints that transformers would load wrongly."""

import json

import pytest
from transformers import CLIPConfig, CLIPModel

from fastgoal import FastGoalCLIPModel, FastGoalModel
from fastgoal.modeling_fastgoal.loading_fastgoal import load_whole

CLASSES = {
    "clip": "FastGoalCLIPModel",
    "metaclip2": "FastGoalMetaClip2Model",
    "siglip": "FastGoalSiglipModel",
    "siglip2": "FastGoalSiglipModel",
}


@pytest.mark.parametrize("family", CLASSES)
def test_the_configuration_chooses_the_class(tiny_bases, tmp_path, family):
    model = FastGoalModel.from_base(tiny_bases[family])
    assert type(model).__name__ == CLASSES[family]
    model.save_pretrained(tmp_path)
    assert type(FastGoalModel.from_pretrained(tmp_path)) is type(model)
    assert type(type(model).from_pretrained(tmp_path)) is type(model)


def test_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for load in (FastGoalModel.from_pretrained, FastGoalModel.from_base, FastGoalCLIPModel.from_base):
        with pytest.raises(ValueError, match=r"type 'bert'.*Supported are CLIP"):
            load(tmp_path)


def test_adapters_are_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "nowhere"}')
    for model_class in (FastGoalModel, FastGoalCLIPModel):
        for load in (model_class.from_pretrained, model_class.from_base):
            with pytest.raises(ValueError, match=r"is an adapter.*fastgoal merge"):
                load(tmp_path)


def test_arguments_of_loading_need_a_name(tiny_bases):
    model = FastGoalModel.from_base(tiny_bases["clip"])
    with pytest.raises(ValueError, match=r"`name_or_model` .*revision"):
        FastGoalModel.from_base(model, revision="main")


def test_a_model_without_all_weights_is_refused(tmp_path):
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(text_config=size, vision_config={**size, "image_size": 16, "patch_size": 8}))
    state = model.state_dict()
    del state["logit_scale"], state["text_projection.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"CLIPModel: logit_scale is missing, and 1 more"):
        load_whole(CLIPModel, tmp_path)
