"""Convert models to other layouts and back, and run the results with open_clip and Long-CLIP."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from fastgoal import FastGoalModel, FastGoalProcessor
from fastgoal.cli import main
from fastgoal.export.convert import convert
from fastgoal.export.convert_back import convert_back
from tests.fastgoal.export.test_convert import openai_layout

ROOT = Path(__file__).parents[3]
OUTSIDERS = ROOT / "tests" / "outsiders"
needs_open_clip = pytest.mark.skipif(
    not (ROOT / ".outsiders" / "open_clip").is_dir(), reason="open_clip is missing: make outsiders"
)
needs_long_clip = pytest.mark.skipif(
    not (ROOT / ".outsiders" / "longclip").is_dir(), reason="Long-CLIP is missing: make outsiders"
)


def save(folder, tiny_clip, positions, **changes):
    """Save a model of one head of 64 per tower, which the code of OpenAI assumes, with distinct weights."""
    config = CLIPModel.from_pretrained(tiny_clip).config
    for tower in (config.text_config, config.vision_config):
        tower.update({"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        clip = CLIPModel(config)
        for parameter in clip.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        clip.logit_scale.data.fill_(2.0)
    FastGoalModel.from_base(clip, max_text_length=positions).save_pretrained(folder)
    FastGoalProcessor.from_base(str(tiny_clip), max_text_length=positions).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[77, 248, pytest.param(512, marks=pytest.mark.slow)])
def model(request, tiny_clip, tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), tiny_clip, request.param)


@pytest.mark.parametrize("to", ["open_clip", "original"])
def test_round_trips_are_exact(model, to, tmp_path, capsys):
    state = CLIPModel.from_pretrained(model).state_dict()
    positions = len(state["text_model.embeddings.position_embedding.weight"])
    assert main(["convert", str(model), "--to", to, "--output", str(tmp_path / "there")]) == 0
    name = "open_clip_model.safetensors" if to == "open_clip" else "longclip.pt" if positions == 248 else "clip.pt"
    assert name in capsys.readouterr().out
    file = tmp_path / "there" / name
    written = load_file(file) if to == "open_clip" else torch.load(file)
    expected = openai_layout(state)
    if name == "longclip.pt":
        expected["positional_embedding_res"] = expected["positional_embedding"]
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in expected.items())
    convert(file, str(model), tmp_path / "back", max_text_length=positions)
    again = CLIPModel.from_pretrained(tmp_path / "back").state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


def test_the_configuration_of_open_clip(model, tmp_path):
    assert convert_back(str(model), tmp_path / "new", "open_clip") == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    config = json.loads((tmp_path / "new" / "open_clip_config.json").read_text())
    positions = CLIPModel.from_pretrained(model).config.text_config.max_position_embeddings
    assert config["model_cfg"]["quick_gelu"] is True
    assert config["model_cfg"]["embed_dim"] == 16
    text = {"width": 64, "layers": 2, "mlp_ratio": 4.0, "heads": 1, "vocab_size": 514, "context_length": positions}
    assert config["model_cfg"]["text_cfg"] == {**text, "norm_kwargs": {"eps": 1e-5}}
    vision = {"width": 64, "layers": 2, "mlp_ratio": 4.0, "head_width": 64, "image_size": 32, "patch_size": 8}
    assert config["model_cfg"]["vision_cfg"] == {**vision, "norm_kwargs": {"eps": 1e-5}}


def inputs_and_embeds(model, folder):
    """Save inputs for another program, and return our embeddings of them, not normalized."""
    ours, processor = CLIPModel.from_pretrained(model), FastGoalProcessor.from_pretrained(model)
    length = ours.config.text_config.max_position_embeddings
    texts = processor(text=["a dog", "A long caption with words. " * 30], padding="max_length")
    assert texts["input_ids"].shape == (2, length)
    values = {"pixel_values": torch.randn(2, 3, 32, 32), "input_ids": texts["input_ids"]}
    torch.save(values, folder / "inputs.pt")
    with torch.no_grad():
        return {
            "image_embeds": ours.get_image_features(values["pixel_values"]).pooler_output,
            "text_embeds": ours.get_text_features(**texts).pooler_output,
        }


@needs_open_clip
@pytest.mark.outsider
@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "changes"),
    [(512, {}), (248, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}), (248, {"intermediate_size": 96})],
)
def test_open_clip_gives_our_embeddings(tiny_clip, length, changes, tmp_path):
    model = save(tmp_path / "model", tiny_clip, length, **changes)
    convert_back(str(model), tmp_path / "new", "open_clip")
    expected = inputs_and_embeds(model, tmp_path)
    python = ROOT / ".outsiders" / "open_clip" / "bin" / "python"
    script = OUTSIDERS / "open_clip" / "run.py"
    subprocess.run(
        [python, script, tmp_path / "new", tmp_path / "inputs.pt", tmp_path / "out.pt"], check=True, timeout=300
    )
    got = torch.load(tmp_path / "out.pt")
    assert got["context_length"] == length
    for name, embeds in expected.items():
        torch.testing.assert_close(got[name], torch.nn.functional.normalize(embeds, dim=-1), atol=3e-6, rtol=0)


@needs_long_clip
@pytest.mark.outsider
@pytest.mark.slow
def test_long_clip_gives_our_embeddings(tiny_clip, tmp_path):
    model = save(tmp_path / "model", tiny_clip, 248)
    convert_back(str(model), tmp_path / "new", "original")
    expected = inputs_and_embeds(model, tmp_path)
    script, source = OUTSIDERS / "longclip" / "run.py", ROOT / ".outsiders" / "longclip"
    files = [tmp_path / "new" / "longclip.pt", tmp_path / "inputs.pt", tmp_path / "out.pt"]
    subprocess.run([sys.executable, script, source, *files], check=True, timeout=300)
    got = torch.load(tmp_path / "out.pt")
    # Its loader rounds the weights to float16.
    for name, embeds in expected.items():
        assert torch.cosine_similarity(got[name], embeds).min() > 0.9999, name


def test_bad_input(tiny_bases, tmp_path, capsys):
    def refused(*options):
        assert main(["convert", *map(str, options), "--output", str(tmp_path / "new")]) == 2
        assert not (tmp_path / "new").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    clip = tiny_bases["clip"]
    assert "SigLIP" in refused(tiny_bases["siglip"], "--to", "open_clip")
    assert "MetaCLIP 2" in refused(tiny_bases["metaclip2"], "--to", "original")
    assert "--base" in refused(clip, "--to", "open_clip", "--base", clip)
    assert "--base" in refused(clip / "model.safetensors")
    # Two heads of 16, where OpenAI's code has heads of 64.
    assert "num_attention_heads=2" in refused(clip, "--to", "original")
    relu = save(tmp_path / "relu", clip, 77, hidden_act="relu")
    assert "hidden_act=relu" in refused(relu, "--to", "open_clip")
    broken = FastGoalModel.from_pretrained(relu)
    broken.config.text_config.hidden_act = "gelu"
    broken.save_pretrained(relu)
    assert "gelu and relu" in (error := refused(relu, "--to", "open_clip")) or "relu and gelu" in error
