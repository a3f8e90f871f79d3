"""Averages of two models against plain loops over the safetensors files of both, and loaded by plain transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, CLIPModel

import fastgoal
from fastgoal import FastGoalModel, FastGoalProcessor
from fastgoal.cli import main
from fastgoal.export.average import average_weights
from fastgoal.export.merge import merge
from fastgoal.modeling_fastgoal.positions_fastgoal import stretch_positions
from fastgoal.modeling_fastgoal.towers_fastgoal import TEXT_POSITIONS
from tests.squares import image_of, rows_of_squares
from tests.tiny_trainers import make_trainer

CAPTIONS = ["On the left it is red.", "On the right it is blue. " * 20]


def make_tuned(base, folder, length=248, dtype=torch.float32, **settings):
    """Save a model as a training from the base might, with a zero of each sign in its weights."""
    model, processor = FastGoalModel.from_base(str(base), length), FastGoalProcessor.from_base(str(base), length)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
        model.visual_projection.weight[0, :2] = torch.tensor([0.0, -0.0])
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def bits(tensor):
    """The bits of a tensor, which tell 0 from -0."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def tuned(tiny_clip, tmp_path_factory):
    return make_tuned(tiny_clip, tmp_path_factory.mktemp("tuned") / "m", tsl_weight=0.25, matryoshka_dims=[4, 16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0, 0.6, 1.0])
def test_every_weight_of_the_folder(tiny_clip, tmp_path, alpha, dtype):
    tuned = make_tuned(tiny_clip, tmp_path / "tuned", dtype=dtype)
    assert fastgoal.average(tuned, tiny_clip, alpha, tmp_path / "out") == 248
    base, end, written = (weights_of(folder) for folder in (tiny_clip, tuned, tmp_path / "out"))
    base[TEXT_POSITIONS] = stretch_positions(base[TEXT_POSITIONS], 248)
    assert written.keys() == end.keys() == base.keys()
    for name, weight in written.items():
        assert weight.dtype == end[name].dtype == dtype
        if alpha in (0, 1):
            assert torch.equal(bits(weight), bits(end[name] if alpha else base[name].to(dtype))), name
        else:  # the formula of WiSE-FT's code, in float64
            expected = (1 - alpha) * base[name].double() + alpha * end[name].double()
            torch.testing.assert_close(weight, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_weights_that_were_not_trained_stay_and_low_precision_is_averaged_in_float32():
    frozen = torch.tensor([0.1, 1e-30, -7.3])
    assert torch.equal(average_weights({"w": frozen}, {"w": frozen.clone()}, 0.3)["w"], frozen)
    # In bfloat16 the base would be 1 and the average too.
    start, end = torch.tensor([1 + 2**-8]), torch.tensor([1 + 2**-7], dtype=torch.bfloat16)
    assert torch.equal(average_weights({"w": start}, {"w": end}, 0.5)["w"], end)
    double = torch.tensor([1.0, 1 + 2**-40], dtype=torch.float64)
    assert torch.equal(average_weights({"w": double[:1]}, {"w": double[1:]}, 0.5)["w"], 1 + double[:1] * 2**-41)


def test_the_ends_keep_every_bit():
    base, tuned = {"w": torch.tensor([-0.0, torch.inf])}, {"w": torch.tensor([1.0, -0.0])}
    for alpha, end in ((0, base), (1, tuned)):
        assert torch.equal(bits(average_weights(base, tuned, alpha)["w"]), bits(end["w"]))


def test_the_base_is_stretched_to_the_length_of_the_tuned_model(tiny_clip, tmp_path):
    tuned = make_tuned(tiny_clip, tmp_path / "tuned", length=300)
    assert fastgoal.average(tuned, tiny_clip, 0, tmp_path / "out") == 300
    stretched = stretch_positions(weights_of(tiny_clip)[TEXT_POSITIONS], 300)
    assert torch.equal(weights_of(tmp_path / "out")[TEXT_POSITIONS], stretched)


def test_plain_transformers_reads_the_folder(tiny_clip, tuned, tmp_path, monkeypatch):
    output = tmp_path / "out"
    command = ["average", str(tuned), "--base", str(tiny_clip), "--alpha", "0.6", "--output", str(output)]
    assert main(command) == 0
    plain, ours = AutoModel.from_pretrained(output), FastGoalModel.from_pretrained(output)
    assert type(plain) is CLIPModel
    processor = AutoProcessor.from_pretrained(output)
    images = [image_of("red", "blue"), image_of("green", "red")]
    inputs = processor(images=images, text=CAPTIONS, padding=True, truncation=True, return_tensors="pt")
    own = FastGoalProcessor.from_pretrained(output)(images=images, text=CAPTIONS)
    with torch.no_grad():
        theirs, outputs = plain(**inputs), ours(**own)
    torch.testing.assert_close(outputs.image_embeds, theirs.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs.text_embeds, theirs.text_embeds, rtol=0, atol=1e-6)
    # The losses are those of the tuned model, and the card says what the weights are.
    assert (ours.config.tsl_weight, ours.config.matryoshka_dims) == (0.25, [4, 16])
    card = (output / "README.md").read_text()
    assert "0.4 of the base model and 0.6 of `m`" in card
    assert str(tmp_path) not in card
    assert (output / "handler.py").is_file()


def test_an_adapter_is_merged_first(tiny_clip, tmp_path):
    trainer = make_trainer(tiny_clip, tmp_path / "lora", rows_of_squares(), max_steps=1, lora_r=2, learning_rate=0.01)
    trainer.train()
    trainer.save_model()
    adapter = tmp_path / "lora" / "adapter"
    merge(str(adapter), tmp_path / "merged", str(tiny_clip))
    fastgoal.average(adapter, tiny_clip, 1, tmp_path / "one")
    fastgoal.average(adapter, None, 0.5, tmp_path / "half")
    merged, one, half = (weights_of(tmp_path / name) for name in ("merged", "one", "half"))
    base = FastGoalModel.from_base(str(tiny_clip)).state_dict()
    for name, weight in merged.items():
        assert torch.equal(one[name], weight)
        assert torch.equal(half[name], torch.lerp(base[name], weight, 0.5))


def test_models_that_do_not_belong_together(tiny_clip, tiny_bases, tuned, tmp_path, capsys):
    def refused(*words, tuned=tuned, base=tiny_clip, alpha="0.5"):
        command = ["average", str(tuned), "--base", str(base), "--alpha", alpha, "--output", str(tmp_path / "out")]
        assert main(command) == 2
        error = capsys.readouterr().err.splitlines()[-1]  # after the progress bars of transformers
        assert all(word in error for word in words), error
        assert not (tmp_path / "out").exists()

    refused("--base", "family", "SigLIP", base=tiny_bases["siglip"])
    refused("--base", "text length", "77", "248", tuned=tiny_clip, base=tuned)
    refused("--base", "does-not-exist", base=tmp_path / "does-not-exist")
    refused("--alpha", "from 0", "1.5", alpha="1.5")
    refused("--alpha", "nan", alpha="nan")
    # A base of another activation, whose shapes are the same, and one with a wider projection.
    for part, name, value in (("text_config", "hidden_act", "gelu"), ("vision_config", "num_attention_heads", 4)):
        other = FastGoalModel.from_base(str(tiny_clip), 77)
        setattr(getattr(other.config, part), name, value)
        other.save_pretrained(tmp_path / name)
        refused("--base", f"{part}.{name}", str(value), base=tmp_path / name)
    config = json.loads((tiny_clip / "config.json").read_text())
    wide = tmp_path / "wide"
    wide.mkdir()
    for path in tiny_clip.iterdir():
        (wide / path.name).write_bytes(path.read_bytes())
    (wide / "config.json").write_text(json.dumps({**config, "projection_dim": 24}))
    weights = weights_of(tiny_clip)
    for name in ("text_projection.weight", "visual_projection.weight"):
        weights[name] = torch.zeros(24, 32)
    save_file(weights, wide / "model.safetensors", {"format": "pt"})
    refused("--base", "text_projection.weight", "(24, 32)", "(16, 32)", base=wide)
    for alpha in (-0.1, float("nan"), "0.5", True):
        with pytest.raises(ValueError, match="`alpha` must be from 0"):
            fastgoal.average(tuned, tiny_clip, alpha, tmp_path / "out")
    with pytest.raises(ValueError, match="`base` must be"):
        fastgoal.average(tuned, None, 0.5, tmp_path / "out")
