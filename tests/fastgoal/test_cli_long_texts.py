"""Every command with a model of 512 tokens: texts that differ after 300 tokens differ, as in plain transformers."""

import importlib.util
import json

import pytest
import torch
from datasets import load_dataset
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor, CLIPTextModelWithProjection, CLIPTokenizer

from fastgoal import FastGoalModel, FastGoalProcessor
from fastgoal.cli import main
from fastgoal.export import export_diffusion

pytestmark = pytest.mark.slow

# Each letter is a token.
TEXTS = [f"A dog {'a' * 290}. It sees {thing}." for thing in ("red cups", "two birds")]


@pytest.fixture(scope="module")
def model(tiny_clip, tmp_path_factory):
    """The base of 77 tokens, trained for two steps at 512."""
    folder = tmp_path_factory.mktemp("long")
    data = folder / "data"
    data.mkdir()
    lines = []
    for number, text in enumerate(TEXTS):
        Image.effect_noise((48, 36), 80 + number).convert("RGB").save(data / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": text}))
    (data / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    pairs = ["pairs", str(data), "--output", str(folder / "pairs"), "--model", str(tiny_clip), "--detector", "none"]
    assert main([*pairs, "--max-text-length", "512"]) == 0
    train = ["train", "--model", str(tiny_clip), "--train_data", str(folder / "pairs"), "--max_text_length", "512"]
    train += ["--eval_data", str(folder / "pairs"), "--max_steps", "2", "--learning_rate", "1e-3", "--use_cpu", "true"]
    assert main([*train, "--dataloader_num_workers", "0", "--output_dir", str(folder / "model")]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def data(model):
    return model.parent / "data"


@pytest.fixture(scope="module")
def inputs(model):
    processor = AutoProcessor.from_pretrained(model)
    assert type(processor) is not FastGoalProcessor
    inputs = processor(text=TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] > 300
    return inputs


@pytest.fixture(scope="module")
def expected(model, inputs):
    """The embeddings of the texts by the plain class."""
    plain = AutoModel.from_pretrained(model)
    assert type(plain).__name__ == "CLIPModel"
    with torch.no_grad():
        embeds = normalize(plain.get_text_features(**inputs).pooler_output, dim=-1)
    assert (embeds[0] - embeds[1]).abs().max() > 1e-3
    return embeds


def test_embed_and_search(model, data, expected, tmp_path, capsys):
    options = ["embed", str(data), "--model", str(model), "--texts", "--vector-type", "float32"]
    assert main([*options, "--output", str(tmp_path / "vectors")]) == 0
    rows = load_dataset(str(tmp_path / "vectors"), split="train", cache_dir=str(tmp_path / "cache"))
    torch.testing.assert_close(torch.tensor(rows["vector"]), expected, atol=1e-5, rtol=0)
    capsys.readouterr()
    for text, note in ((TEXTS[0], False), ("a" * 600, True)):
        assert main(["search", str(data), text, "--model", str(model), "--index", str(tmp_path / "index")]) == 0
        assert ("512 tokens" in capsys.readouterr().out) is note


def test_evaluate_explain_and_the_card(model, data, tmp_path, capsys):
    command = ["evaluate", "--model", str(model), "--data", str(data.parent / "pairs"), "--robustness"]
    assert main([*command, "--output", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["max_text_length"], report["truncated_captions"]) == (512, 0)
    capsys.readouterr()
    explain = ["explain", "--model", str(model), "--image", str(data / "0.png"), "--output", str(tmp_path / "o.png")]
    assert main([*explain, "--caption", TEXTS[0]]) == 0
    assert "past" not in capsys.readouterr().out
    card = (model / "README.md").read_text()
    assert "up to 512 tokens" in card
    assert "Captions are truncated to 512 tokens" in card
    assert "stretched to 512" in card


def test_the_endpoint(model, expected):
    spec = importlib.util.spec_from_file_location("handler", model / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    answer = module.EndpointHandler(str(model))({"inputs": TEXTS})
    torch.testing.assert_close(torch.tensor(answer), expected, atol=1e-5, rtol=0)


def test_onnx(model, inputs, expected, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert main(["export", str(model), "--to", "onnx", "--output", str(tmp_path / "web")]) == 0
    session = runtime.InferenceSession(tmp_path / "web" / "onnx" / "text_model.onnx")
    feed = {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()}
    embeds = torch.from_numpy(session.run(None, feed)[0])
    torch.testing.assert_close(normalize(embeds, dim=-1), expected, atol=2e-5, rtol=2e-5)
    assert json.loads((tmp_path / "web" / "tokenizer_config.json").read_text())["model_max_length"] == 512


def test_the_text_encoder_of_a_diffusion_model(model, expected, tiny_clip, tmp_path, monkeypatch):
    slot = export_diffusion.Slot("clip_l", "a tiny pipeline", "quick_gelu", False)
    monkeypatch.setitem(export_diffusion.SLOTS, (32, 2), slot)
    output = tmp_path / "encoder"
    assert main(["export", str(model), "--to", "diffusion", "--base", str(tiny_clip), "--output", str(output)]) == 0
    tokenizer = CLIPTokenizer.from_pretrained(output / "tokenizer")
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 512)
    encoder = CLIPTextModelWithProjection.from_pretrained(output / "text_encoder_with_projection")
    with torch.no_grad():
        embeds = normalize(encoder(**inputs).text_embeds, dim=-1)
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)


def test_open_clip_there_and_back(model, tmp_path):
    weights = AutoModel.from_pretrained(model).state_dict()
    there, back = tmp_path / "there", tmp_path / "back"
    assert main(["convert", str(model), "--to", "open_clip", "--output", str(there)]) == 0
    config = json.loads((there / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["context_length"] == 512
    file = str(there / "open_clip_model.safetensors")
    assert main(["convert", file, "--base", str(model), "--output", str(back)]) == 0
    returned = AutoModel.from_pretrained(back).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in returned.items())
    assert AutoProcessor.from_pretrained(back).tokenizer.model_max_length == 512


def test_a_training_starts_from_it(model, tmp_path, capfd):
    command = ["train", "--model", str(model), "--train_data", str(model.parent / "pairs"), "--use_cpu", "true"]
    command += ["--dataloader_num_workers", "0", "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
    assert main([*command, "--lora_r", "2", "--save_adapter_only", "true"]) == 0
    assert "reads 512 tokens\n" in capfd.readouterr().out
    adapter = str(tmp_path / "out")
    longer = [*command, "--model", adapter, "--max_text_length"]
    assert main([*longer, "1024", "--output_dir", str(tmp_path / "longer")]) == 0
    assert "reads 1024 tokens (stretched from 512" in capfd.readouterr().out
    table = AutoModel.from_pretrained(tmp_path / "longer").text_model.embeddings.position_embedding.weight
    assert len(table) == 1024
    assert main([*longer, "248", "--output_dir", str(tmp_path / "shorter")]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "--max_text_length must be from 512, the text length of this CLIP, to 1024, got 248." in error


def test_a_loaded_model_is_stretched_again(model):
    longer = FastGoalModel.from_base(str(model), 1024)
    assert FastGoalProcessor.from_base(str(model), 1024).tokenizer.model_max_length == 1024
    assert longer.stretched_from == 512
