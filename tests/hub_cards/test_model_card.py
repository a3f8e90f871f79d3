"""A model card says what was trained and measured, without secrets and paths, and its code runs unchanged."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import CLIPModel, Trainer

from fastgoal import FastGoalSiglipModel
from fastgoal.hub_cards.model_card import ModelFacts, TrainingFacts, write_model_card

from .conftest import TOKEN


@pytest.fixture(scope="module")
def card(trained):
    return ModelCard.load(trained / "README.md")


def code_blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_card_shows_the_training(trained, card):
    text = card.text
    state = json.loads((trained / "trainer_state.json").read_text())
    first, last = [line for line in state["log_history"] if "loss" in line][:: state["global_step"] - 1]
    for line in (first, last):
        parts = [line[name] for name in ("loss", "loss_global", "loss_local", "loss_tsl_image", "loss_tsl_text")]
        assert f"| {line['step']} | " + " | ".join(f"{part:.5g}" for part in parts) in text
    assert "`fast_goal`: 1.0 x global + 0.5 x local + 1.0 x TSL" in text
    assert "`squares`, 6 images" in text
    assert "| steps | 4 (2 epochs) |" in text
    assert re.search(r"\| hardware \| CPU \(.+ threads?\) \|", text)
    assert re.search(r"\| time \| \d+ s \|", text)
    for setting in ("learning_rate | 0.00123", "adam_beta2 | 0.98", "optim | adamw_torch", "seed | 42"):
        assert setting in text
    assert "| total_train_batch_size | 3 |" in text
    assert "transformers " in text
    assert "up to 248 tokens" in text
    assert "arxiv.org/abs/2605.26615" in text
    assert "{{FAST-GOAL}: Fast" in text
    assert (trained / "examples" / "pairs.jpg").is_file()
    assert "](examples/pairs.jpg)" in text


def test_the_metadata_have_the_evaluation_with_its_protocol(trained, card):
    measured = json.loads((trained / "eval_results.json").read_text())
    (model,) = card.data.to_dict()["model-index"]
    (result,) = model["results"]
    assert result["dataset"]["name"] == "squares"
    assert "all 6 images against all 6 captions" in result["dataset"]["args"]["protocol"]
    assert "cut at 248 tokens" in result["dataset"]["args"]["protocol"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    names = {f"{way} R@{k} (%)" for way in ("text to image", "image to text") for k in (1, 5)}
    assert values.keys() == names
    for name, value in values.items():
        key = "eval_" + name.removesuffix(" (%)").replace(" ", "_")
        assert value == pytest.approx(measured[key], abs=0.01)
    assert f"{measured['eval_text_to_image_R@1']:.2f} |" in card.text


def test_metadata(trained, card):
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    # A folder of this machine is not a model of the Hub.
    assert card.data.base_model is None
    assert card.data.datasets is None
    for example in card.data.to_dict()["widget"]:
        assert (trained / example["src"]).is_file()
        scores = {entry["label"]: entry["score"] for entry in example["output"]}
        assert sum(scores.values()) == pytest.approx(1, abs=1e-3)
        assert {label.strip() for label in example["candidate_labels"].split(",")} == set(scores)
        assert "On the left it is red." in scores


def test_no_file_has_a_secret_or_a_path(trained):
    for path in trained.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert TOKEN.encode() not in content, path
            if path.name != "training_args.bin" and path.suffix != ".pt" and path.name != "trainer_state.json":
                assert str(trained.parent).encode() not in content, path


def test_nothing_is_written_outside_the_output_folder(trained):
    assert sorted(path.name for path in trained.parent.iterdir()) == ["my-model", "squares"]


def test_by_default_no_data_is_copied(trained, tiny_clip, tmp_path):
    from fastgoal.trainer.run import main

    settings = {
        "model": tiny_clip,
        "train_data": trained.parent / "squares",
        "output_dir": tmp_path / "run",
        "objective": "global",
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 0,
        "use_cpu": True,
    }
    assert main([word for name, value in settings.items() for word in (f"--{name}", str(value))]) == 0
    assert not (tmp_path / "run" / "examples").exists()
    text = (tmp_path / "run" / "README.md").read_text()
    assert "examples/" not in text
    assert "`global`: 1.0 x global |" in text


def test_checkpoints_have_cards_too(trained):
    card = ModelCard.load(trained / "checkpoint-2" / "README.md")
    assert "| steps | 2 " in card.text
    assert "| time |" not in card.text
    assert 'name = "my-model"' in card.text
    assert (trained / "checkpoint-2" / "handler.py").is_file()


def test_the_card_of_transformers_does_not_replace_it(trained):
    from fastgoal import FastGoalTrainer

    assert FastGoalTrainer.create_model_card is not Trainer.create_model_card
    assert "Generated from Trainer" not in (trained / "README.md").read_text()


def test_the_code_runs_unchanged(trained, card, tmp_path):
    blocks = code_blocks(card.text)
    assert len(blocks) == 5
    blocks = [block for block in blocks if "InferenceClient" not in block]  # test_handler runs this one
    (tmp_path / "my-model").symlink_to(trained)
    Image.radial_gradient("L").convert("RGB").resize((60, 40)).save(tmp_path / "photo.jpg")
    if find_spec("sentence_transformers") is None:
        blocks = [block for block in blocks if "sentence_transformers" not in block]
    # Each block runs in a namespace of its own and without this package.
    script = "import sys\nsys.modules['fastgoal'] = None\n"
    script += "".join(f"exec({block!r}, {{}})\n" for block in blocks)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'score': " in done.stdout


def test_a_model_that_was_not_trained_here(trained, tmp_path):
    shutil.copy(trained / "config.json", tmp_path)
    shutil.copy(trained / "model.safetensors", tmp_path)
    facts = ModelFacts.of_folder(tmp_path, base_model="openai/clip-vit-base-patch16", converted_from="longclip.pt")
    text = write_model_card(tmp_path, facts).read_text()
    data = yaml.safe_load(text.split("---")[1])
    assert data["base_model"] == "openai/clip-vit-base-patch16"
    assert "model-index" not in data
    assert "widget" not in data
    assert "## Training" not in text
    assert "has not been evaluated" in text
    assert "Not stated." in text
    assert f"{facts.parameters:,}" in text
    assert facts.parameters == sum(p.numel() for p in CLIPModel.from_pretrained(tmp_path).parameters())


@pytest.mark.parametrize(("contrastive", "scores"), [("softmax", "softmax(dim=-1)"), (None, "sigmoid()")])
def test_the_example_of_a_siglip_scores_as_it_was_trained(tiny_bases, contrastive, scores, tmp_path):
    model = FastGoalSiglipModel.from_base(tiny_bases["siglip"])
    model.config.contrastive = contrastive
    model.save_pretrained(tmp_path)
    card = write_model_card(tmp_path, ModelFacts.of_folder(tmp_path)).read_text()
    assert f"probabilities = model(**inputs).logits_per_image.{scores}\n" in card


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, None), (7, "7 s"), (119.6, "120 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations(seconds, words):
    assert TrainingFacts("squares", 6, "global", {}, {}, 29, 1.0, [], "CPU", seconds, {}).duration == words


def test_singular(tmp_path):
    training = TrainingFacts("squares", 1, "global", {}, {}, 1, 1.0, [], "CPU", None, {})
    text = write_model_card(tmp_path, ModelFacts("mine", 77, 32, 8, 16, 1000, training=training)).read_text()
    assert "| `squares`, 1 image |" in text
    assert "| steps | 1 (1 epoch) |" in text


def test_the_card_explains_the_losses_of_the_training(tmp_path):
    def text(is_sigmoid=False, **weights):
        training = TrainingFacts(
            "squares",
            6,
            "fast_goal",
            {"global": 1.0, **weights},
            {},
            1,
            1.0,
            [],
            "CPU",
            None,
            {},
            is_sigmoid=is_sigmoid,
        )
        card = write_model_card(tmp_path, ModelFacts("mine", 77, 32, 8, 16, 1000, training=training)).read_text()
        return " ".join(card.partition("The global loss is ")[2].partition("###")[0].split())

    assert text().startswith("CLIP's")
    assert text(is_sigmoid=True).startswith("SigLIP's sigmoid loss")
    words = {
        "local": "The local loss",
        "TSL": "Token similarity learning",
        "token contrast": "The token contrast",
        "short captions": "Short captions",
    }
    for label in words:
        found = text(**{label: 0.1})
        assert [other for other in words if words[other] in found] == [label]
