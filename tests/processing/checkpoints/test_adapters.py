"""Adapters against peft itself: the same weights after training, the same outputs, and the base that they belong to."""

import json
import logging
import shutil
from dataclasses import asdict

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, CLIPModel, set_seed

from fastgoal import FastGoalCLIPModel, FastGoalModel, FastGoalProcessor, FastGoalTrainingArguments
from fastgoal.cli import main
from fastgoal.export.merge import merge
from fastgoal.hub_cards.push import push
from fastgoal.hub_cards.repository import choose_files
from fastgoal.modeling_fastgoal.towers_fastgoal import text_positions
from fastgoal.processing.checkpoints.adapters import (
    BASE_FILE,
    add_adapter,
    base_fingerprint,
    frozen_parameters,
    is_adapter,
    lora_config,
)
from fastgoal.processing.checkpoints.load import check_model, load_model
from fastgoal.trainer.card import CardOptions
from tests.squares import image_of, rows_of_squares, write_pairs
from tests.tiny_trainers import make_trainer

CAPTIONS = ["On the left it is red. On the right it is blue.", "x y z " * 60]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(rows_of_squares(), tmp_path_factory.mktemp("squares"))


def trained(clip, folder, rows=None, **changes):
    """Return a trainer after three steps."""
    settings = {"max_steps": 3, "learning_rate": 0.01, "card": CardOptions(str(clip), images=False)}
    trainer = make_trainer(clip, folder, rows or rows_of_squares(), **{**settings, **changes})
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def made(tiny_clip, tmp_path_factory):
    """The folder of an adapter, in the folder of the merged model, and the trained model."""
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    trainer = trained(tiny_clip, folder, lora_r=3, lora_alpha=5.0)
    trainer.save_model()
    return folder / "adapter", trainer.model


@pytest.fixture
def adapter(made, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(made[0], tmp_path / "lora")


def adapted_layers(model):
    return [name for name, module in model.named_modules() if hasattr(module, "lora_A")]


def logits(model, processor):
    with torch.no_grad():
        inputs = processor(images=[image_of("red", "blue"), image_of("green", "red")], text=CAPTIONS)
        return model.eval()(**{name: inputs[name] for name in inputs}).logits_per_image


def test_training_is_pefts(made, tiny_clip, tmp_path):
    base = FastGoalCLIPModel.from_base(str(tiny_clip))
    set_seed(42)
    names = ["q_proj", "k_proj", "v_proj", "out_proj"]
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=5.0, target_modules=names))
    theirs = trained(tiny_clip, tmp_path, model=model).model.state_dict()
    ours = made[1].state_dict()
    assert theirs.keys() == ours.keys()
    for name in theirs:
        assert torch.equal(theirs[name], ours[name]), name
    assert sum("lora_B" in name and bool(value.any()) for name, value in ours.items()) == 16


def test_an_adapter_loads_as_peft_loads_it(made, tiny_clip):
    folder, model = made
    assert is_adapter(folder)
    assert not is_adapter(tiny_clip)
    processor = FastGoalProcessor.from_pretrained(folder)
    expected = logits(model, processor)
    by_peft = PeftModel.from_pretrained(FastGoalCLIPModel.from_base(str(tiny_clip)), str(folder))
    torch.testing.assert_close(logits(by_peft, processor), expected)
    ours, ours_processor = load_model(str(folder), "cpu")
    assert type(ours) is FastGoalCLIPModel
    assert all(weight.requires_grad for weight in ours.parameters())  # a training may start from it
    torch.testing.assert_close(logits(ours, ours_processor), expected)
    longer, longer_processor = load_model(str(folder), "cpu", stretch=True, max_text_length=512)
    assert (ours.stretched_from, longer.stretched_from) == (None, 248)
    assert (text_positions(longer), longer_processor.tokenizer.model_max_length) == (512, 512)
    assert text_positions(load_model(str(folder), "cpu", stretch=True)[0]) == 248
    with pytest.raises(ValueError, match=r"from 248.* got 77"):
        load_model(str(folder), "cpu", stretch=True, max_text_length=77)
    before = FastGoalCLIPModel.from_base(str(tiny_clip))
    assert not torch.allclose(logits(before, processor), expected, atol=1e-3)


def test_merged_it_is_a_clip_for_everybody(made, tmp_path, capsys, recwarn):
    folder, model = made
    output = tmp_path / "merged"
    assert main(["merge", str(folder), "--output", str(output)]) == 0
    assert not [warning for warning in recwarn if "is_gradient_checkpointing" in str(warning.message)]
    assert "248 tokens" in capsys.readouterr().out
    plain = AutoModel.from_pretrained(output)
    assert type(plain) is CLIPModel
    processor = FastGoalProcessor.from_pretrained(output)
    torch.testing.assert_close(logits(plain, processor), logits(model, processor))
    assert "adapter `adapter` is merged into it" in (output / "README.md").read_text()
    assert (output / "handler.py").is_file()
    assert main(["merge", str(folder), "--output", str(output)]) == 2
    assert "new or empty folder" in capsys.readouterr().err
    assert main(["merge", str(output), "--output", str(tmp_path / "again")]) == 2
    assert "is not an adapter" in capsys.readouterr().err
    assert main(["merge", "owner/adapter", "--output", str(tmp_path / "again")]) == 2  # the tests have no network
    error = capsys.readouterr().err
    assert "ADAPTER owner/adapter cannot be loaded" in error
    assert "huggingface.co" in error


def test_a_training_ends_with_the_merged_model(made, tiny_clip, tmp_path):
    folder, model = made
    plain = AutoModel.from_pretrained(folder.parent)
    assert (type(plain), is_adapter(folder), is_adapter(folder.parent)) == (CLIPModel, True, False)
    processor = AutoProcessor.from_pretrained(folder.parent)
    inputs = processor(images=image_of("red", "blue"), text=CAPTIONS, padding=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 182)
    torch.testing.assert_close(plain(**inputs).logits_per_image, model(**inputs).logits_per_image)
    merge(str(folder), tmp_path / "merged")
    expected, saved = (load_file(path / "model.safetensors") for path in (tmp_path / "merged", folder.parent))
    assert expected.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in expected.items())
    card = (folder.parent / "README.md").read_text()
    assert "LoRA adapter (rank 3, alpha 5), which is merged into the weights" in card
    assert "library_name: transformers" in card
    assert (folder.parent / "handler.py").is_file()
    assert not (folder.parent / BASE_FILE).exists()


def test_checkpoints_and_the_small_form_are_adapters(tiny_clip, tmp_path):
    settings = {"lora_r": 2, "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = trained(tiny_clip, tmp_path / "lora", **settings, save_adapter_only=True)
    trainer.save_model()
    for folder in (tmp_path / "lora", tmp_path / "lora" / "checkpoint-1"):
        assert is_adapter(folder)
        assert "fastgoal merge lora --output MODEL" in (folder / "README.md").read_text()
    assert not (tmp_path / "lora" / "adapter").exists()
    with pytest.raises(ValueError, match=r"`save_adapter_only`.*`lora_r`"):
        make_trainer(tiny_clip, tmp_path, rows_of_squares(), save_adapter_only=True)


def test_a_later_training_deletes_the_adapter_of_an_earlier_one(tiny_clip, tmp_path):
    trained(tiny_clip, tmp_path, lora_r=2, max_steps=1).save_model()
    assert is_adapter(tmp_path / "adapter")
    trained(tiny_clip, tmp_path, max_steps=1).save_model()
    assert not (tmp_path / "adapter").exists()
    assert (tmp_path / "model.safetensors").is_file()


def test_the_card_says_what_transformers_does_with_the_folder(made, tiny_clip):
    """It loads the base of 77 text positions without an error, next to a processor of 248."""
    card = (made[0] / "README.md").read_text()
    assert "Do not load this folder with `AutoModel.from_pretrained`" in card
    assert "without the text positions for 248 tokens" in card
    assert AutoModel.from_pretrained(made[0]).config.text_config.max_position_embeddings == 77


@pytest.fixture(params=[77, 248, 512])
def plain_adapter(request, tiny_clip, tmp_path):
    """An adapter as peft itself saves it, of a base of 77 tokens as published or stretched, and the model."""
    length = request.param
    model = (
        CLIPModel.from_pretrained(tiny_clip) if length == 77 else FastGoalCLIPModel.from_base(str(tiny_clip), length)
    )
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain", model, length


@pytest.mark.parametrize("has_processor", [True, False])
def test_an_adapter_of_peft_loads(plain_adapter, has_processor, tiny_clip, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fastgoal"), "propagate", True)
    folder, model, length = plain_adapter
    if has_processor:
        FastGoalProcessor.from_base(str(tiny_clip), length).save_pretrained(folder)
    loaded, processor = load_model(str(folder), "cpu")
    # Without a processor nothing says that the base was stretched.
    expected = length if has_processor else 77
    assert (text_positions(loaded), processor.tokenizer.model_max_length) == (expected, expected)
    (warning,) = [record.getMessage() for record in caplog.records if BASE_FILE in record.getMessage()]
    assert all(fact in warning for fact in (str(folder), str(tiny_clip), f"{expected} tokens"))
    images, texts = [image_of("red", "blue")], ["a red square", "x y z"]
    inputs = processor(images=images, text=texts)
    if expected == length:
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs).logits_per_image, model.eval()(**inputs).logits_per_image)
    assert check_model(str(folder)).model_type == "clip"
    assert main(["merge", str(folder), "--output", str(tmp_path / "merged")]) == 0
    merged = AutoModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(**inputs).logits_per_image, loaded(**inputs).logits_per_image)
    assert AutoProcessor.from_pretrained(tmp_path / "merged").tokenizer.model_max_length == expected


def test_an_adapter_of_peft_without_a_base_names_the_way_out(plain_adapter, tiny_clip, tmp_path):
    folder = plain_adapter[0]
    other_config(folder, base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"base_model_name_or_path.*None.*fastgoal merge .* --base"):
        load_model(str(folder), "cpu")
    merged = ["merge", str(folder), "--base", str(tiny_clip), "--output", str(tmp_path / "merged")]
    assert main(merged) == 0


def other_config(adapter, **changes):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_adapter_of_an_adapter_is_refused(made, pairs, tmp_path, capsys):
    command = ["train", "--model", made[0], "--train_data", pairs, "--output_dir", tmp_path / "two", "--lora_r", "2"]
    assert main([*map(str, command)]) == 2
    assert "is an adapter" in capsys.readouterr().err


def test_its_folder_and_card(made):
    folder, model = made
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        BASE_FILE,
        "README.md",
        "tokenizer.json",
    } <= sizes.keys()
    assert not {"config.json", "model.safetensors", "handler.py"} & sizes.keys()
    card = (folder / "README.md").read_text()
    assert "LoRA adapter (rank 3, alpha 5)" in card
    assert "PeftModel.from_pretrained" in card
    assert "library_name: peft" in card
    assert json.loads((folder / BASE_FILE).read_text())["fingerprint"] == base_fingerprint(model.get_base_model())


LOSSES = {
    "sparc": {"objective": "sparc"},
    "weights": {"global_weight": 0.25, "tsl_weight": 2},
    "siglip, softmax": {"base": "siglip2", "contrastive": "softmax"},
}


@pytest.mark.parametrize("case", LOSSES)
def test_its_losses_are_those_of_the_merged_model(case, tiny_bases, tmp_path):
    changes = dict(LOSSES[case])
    base = tiny_bases[changes.pop("base", "clip")]
    trainer = trained(base, tmp_path / "lora", max_steps=1, lora_r=2, save_adapter_only=True, **changes)
    trainer.save_model()
    others = {"contrastive": changes.get("contrastive"), "matryoshka_dims": None, "crop_size": None}
    expected = {**asdict(trainer.objective.weights), **others}
    assert json.loads((tmp_path / "lora" / BASE_FILE).read_text())["losses"] == expected
    merge(str(tmp_path / "lora"), tmp_path / "merged")
    merged = FastGoalModel.from_pretrained(tmp_path / "merged")
    assert {name: getattr(merged.config, name) for name in expected} == expected
    batch = trainer.data_collator(rows_of_squares()[:5])
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), dict(batch))
        torch.testing.assert_close(merged(**batch, return_loss=True).loss, loss)


@pytest.mark.parametrize(
    ("config", "targets"),
    [
        ({"r": 2}, {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ({"r": 2, "target_modules": "all-linear"}, {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "head"}),
        ({"r": 2, "target_modules": r".*vision.*\.fc[12]"}, {"fc1", "fc2"}),
        ({"r": 2, "target_modules": ["out_proj", "fc1"], "exclude_modules": r".*\.fc1"}, {"out_proj"}),
        (
            {"r": 2, "use_dora": True, "use_rslora": True, "exclude_modules": ["q_proj"]},
            {"k_proj", "v_proj", "out_proj"},
        ),
    ],
)
def test_a_config_of_peft_adapts_what_it_names(config, targets, tiny_bases, tmp_path):
    """All but the layers of `nn.MultiheadAttention`, in SigLIP's pooling head, which are never called."""
    peft_config = LoraConfig(**config)
    trainer = trained(tiny_bases["siglip2"], tmp_path, max_steps=1, peft_config=peft_config, save_adapter_only=True)
    layers = adapted_layers(trainer.model)
    assert {name.rpartition(".")[2] for name in layers} == targets
    assert not [name for name in layers if "head.attention" in name]
    trainer.save_model()
    again, processor = load_model(str(tmp_path), "cpu")
    torch.testing.assert_close(logits(again, processor), logits(trainer.model, processor), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias", "all"),
        ("bias", "lora_only"),
        ("modules_to_save", ["text_projection"]),
        ("trainable_token_indices", [1]),
        ("layer_replication", [(0, 1)]),
        ("task_type", "FEATURE_EXTRACTION"),
        ("inference_mode", True),
        ("lora_bias", True),
        ("init_lora_weights", "pissa"),
    ],
)
def test_a_config_that_trains_more_is_refused(name, value, tiny_clip):
    with pytest.raises(ValueError, match=f"`peft_config` .*{name}.*, got "):
        add_adapter(FastGoalModel.from_base(str(tiny_clip)), LoraConfig(**{name: value}))


def test_commands_take_it(made, pairs, tmp_path, capsys):
    report = tmp_path / "report.json"
    assert main(["evaluate", "--model", str(made[0]), "--data", str(pairs), "--output", str(report)]) == 0
    assert json.loads(report.read_text())
    capsys.readouterr()
    assert check_model(str(made[0])).model_type == "clip"


def weights_of(adapter, change):
    path = adapter / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def other_base(adapter, clip, **changes):
    path = adapter / BASE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / BASE_FILE).write_text("{"), f"{BASE_FILE} is not JSON"),
        (lambda folder: (folder / BASE_FILE).write_text("[]"), rf"{BASE_FILE} must be an object .*got \[\]"),
        (lambda folder: other_base(folder, None, base=5), f"{BASE_FILE}: base must be of type str, got 5"),
        (lambda folder: other_base(folder, None, max_text_length="a"), f"{BASE_FILE}: max_text_length .*'a'"),
        (lambda folder: other_base(folder, None, format=2), f"{BASE_FILE}: `format` must be 1, got 2"),
        (lambda folder: other_base(folder, None, losses={}), rf"{BASE_FILE}: losses .*got \{{\}}"),
        (lambda folder: other_config(folder, target_modules="(([a-z_.0-9]+)+)+!"), r"target_modules .*\(\(\[a-z_"),
        (lambda folder: other_config(folder, rank_pattern={"(.*)*!": 3}), r"rank_pattern .*\(\.\*\)\*!"),
        (lambda folder: other_config(folder, exclude_modules=["(.*)*!"]), r"exclude_modules .*\(\.\*\)\*!"),
        (lambda folder: other_base(folder, None, fingerprint="0"), "not the model .*fastgoal merge .* --base"),
        (lambda folder: other_base(folder, None, base="/nowhere"), "/nowhere, the base of `model=.*--base"),
        (lambda folder: weights_of(folder, lambda state: state.pop(min(state))), "is missing"),
        (lambda folder: weights_of(folder, lambda s: s[min(s)].fill_(float("nan"))), "NaNs detected"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 30), "cannot be loaded"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "cannot be loaded"),
        (lambda folder: (folder / "processor_config.json").write_text("{"), "the tokenizer and image processor"),
    ],
)
def test_damaged_ones_and_those_of_another_base_are_refused(adapter, spoil, words):
    spoil(adapter)
    with pytest.raises(ValueError, match=words):
        load_model(str(adapter), "cpu")


def test_a_base_that_differs_in_the_last_bit_is_refused(adapter, tiny_clip, tmp_path):
    """Of a single weight, which half precision would round to the same value."""
    base = shutil.copytree(tiny_clip, tmp_path / "base")
    state = load_file(base / "model.safetensors")
    weight = state["text_model.encoder.layers.0.mlp.fc1.weight"]
    weight[7, 3] = torch.nextafter(weight[7, 3], torch.tensor(10.0))
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    other_base(adapter, None, base=str(base))
    with pytest.raises(ValueError, match="its weights differ"):
        load_model(str(adapter), "cpu")
    shutil.copy(tiny_clip / "model.safetensors", base)
    load_model(str(adapter), "cpu")


def test_a_base_that_moved_is_named_for_the_merge(adapter, tiny_clip, tmp_path):
    other_base(adapter, None, base="/nowhere")
    assert main(["merge", str(adapter), "--base", str(tiny_clip), "--output", str(tmp_path / "merged")]) == 0


def test_only_one_of_a_base_on_the_hub_is_sent(adapter):
    with pytest.raises(ValueError, match=r"adapter.*folder on this machine.*fastgoal merge"):
        push(adapter, "me/lora", dry_run=True)
    other_base(adapter, None, base="openai/clip-vit-base-patch16")
    sent = push(adapter, "me/lora", dry_run=True).files
    assert {"adapter_config.json", "adapter_model.safetensors", BASE_FILE} <= {*sent}
    assert "training_args.bin" not in sent
    assert {*sent} == {*choose_files(adapter, "model")[0]}


def test_a_frozen_tower_and_frozen_layers_stay(tiny_clip, tmp_path):
    before = FastGoalCLIPModel.from_base(str(tiny_clip)).state_dict()
    after = trained(tiny_clip, tmp_path, freeze="vision", freeze_layers=1).model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("vision_model.", "visual_projection."))} <= same
    assert {
        name for name in before if name.startswith(("text_model.embeddings.", "text_model.encoder.layers.0."))
    } <= same
    assert not {name for name in same if name.startswith(("text_model.encoder.layers.1.", "text_projection."))} - {
        name
        for name in same
        if name.endswith("k_proj.bias")  # whose gradient is 0
    }


def test_frozen_parts_get_no_adapter(tiny_clip):
    model = FastGoalCLIPModel.from_base(str(tiny_clip))
    model = add_adapter(model, lora_config(model, 2, freeze="text", freeze_layers=1))
    assert {name.split("encoder.")[1].rpartition(".")[0] for name in adapted_layers(model)} == {"layers.1.self_attn"}
    assert all("vision_model" in name for name in adapted_layers(model))


def test_what_cannot_be_frozen_or_adapted(tiny_clip, made, tmp_path):
    model = FastGoalCLIPModel.from_base(str(tiny_clip))
    with pytest.raises(ValueError, match="`freeze_layers` must be at most 2"):
        frozen_parameters(model, None, 3)
    with pytest.raises(ValueError, match=r"`lora_target_modules`: nothing .*fc1"):
        lora_config(model, 2, targets=["q_proj", "nothing"])
    with pytest.raises(ValueError, match=r"`lora_target_modules`: no layer that is trained"):
        lora_config(model, 2, targets=["visual_projection"], freeze="vision")
    with pytest.raises(ValueError, match=r"already has an adapter.*`lora_r`"):
        trained(tiny_clip, tmp_path, model=made[1], lora_r=2)
    for wrong, words in (
        ({"lora_r": 0}, "`lora_r` must be at least 1"),
        ({"lora_alpha": 2.0}, "`lora_alpha` .*need `lora_r`"),
        ({"lora_r": 2, "lora_alpha": 0.0}, "`lora_alpha` must be above 0"),
        ({"freeze": "both"}, "`freeze` must be one of vision, text"),
        ({"freeze_layers": -1}, "`freeze_layers` must not be negative"),
    ):
        with pytest.raises(ValueError, match=words):
            FastGoalTrainingArguments(output_dir=str(tmp_path), **wrong)
