"""Every way of loading a saved folder without this package, also with very long labels."""

import ast
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

from fastgoal import FastGoalCLIPModel, FastGoalProcessor

IMAGE = Image.radial_gradient("L").convert("RGB").resize((60, 40))
# A token for each byte, with BOS and EOS: exactly as long as the model reads, and longer.
LONGEST = "a" * 246
LONGER = "a" * 246 + "b" * 80

ELSEWHERE = """
import sys
sys.modules["fastgoal"] = None
import json
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, pipeline
folder, longest, longer = sys.argv[1:]
image = Image.radial_gradient("L").convert("RGB").resize((60, 40))
plain = AutoModelForZeroShotImageClassification.from_pretrained(folder)
trusted = AutoModelForZeroShotImageClassification.from_pretrained(folder, trust_remote_code=True)
base = next(parent for parent in type(trusted).__mro__ if parent.__name__ == "FastGoalModel")
made = [base.from_pretrained(folder), base.from_base(folder), type(trusted).from_pretrained(folder)]
found = {"classes": [type(plain).__name__, type(trusted).__name__], "scores": [], "models": []}
found["chosen"] = [type(model) is type(trusted) for model in made]
for trust in (None, True):
    classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=trust)
    found["models"].append(type(classify.model).__name__)
    answer = classify(image, candidate_labels=["a cup", longest], hypothesis_template="{}")
    found["scores"].append({entry["label"]: entry["score"] for entry in answer})
    try:
        answer = classify(image, candidate_labels=["a cup", longer], hypothesis_template="{}")
        found["scores"].append({entry["label"]: entry["score"] for entry in answer})
    except ValueError as error:
        found["error"] = str(error)
try:
    from sentence_transformers import SentenceTransformer
except ImportError:
    pass
else:
    found["sentence_transformers"] = []
    for trust in (False, True):
        model = SentenceTransformer(folder, trust_remote_code=trust)
        found["sentence_transformers"].append({
            "class": type(model[0].auto_model if hasattr(model[0], "auto_model") else model[0].model).__name__,
            "length": model.max_seq_length,
            "texts": model.encode(["a cup", longer]).tolist(),
            "images": model.encode([image]).tolist(),
        })
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    FastGoalCLIPModel.from_base(str(tiny_clip)).save_pretrained(folder)
    FastGoalProcessor.from_base(str(tiny_clip)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """Results of a process without this package."""
    command = [sys.executable, "-c", ELSEWHERE, str(folder), LONGEST, LONGER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_little_code_travels_with_a_checkpoint(folder):
    """The code of the model and its inputs. Detectors, matching, data and training stay in the package."""
    lines = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.py")}
    assert {name for name in lines if not name.endswith("_fastgoal")} == {"geometry", "images", "texts", "tokens"}


def scores_of(folder, labels):
    model, processor = FastGoalCLIPModel.from_pretrained(folder), FastGoalProcessor.from_pretrained(folder)
    with torch.no_grad():
        scores = model(**processor(images=IMAGE, text=labels)).logits_per_image.softmax(dim=-1)[0]
    return dict(zip(labels, scores.tolist(), strict=True))


def test_the_class_is_chosen_by_the_configuration(found):
    assert found["chosen"] == [True, True, True]


def test_pipelines(folder, found):
    assert found["classes"] == found["models"] == ["CLIPModel", "FastGoalCLIPModel"]
    plain, trusted, cut = found["scores"]
    assert plain == pytest.approx(scores_of(folder, ["a cup", LONGEST]), abs=1e-5)
    assert trusted == pytest.approx(plain, abs=1e-5)
    # Our class truncates what the pipeline did not. A plain CLIP raises an error.
    assert cut == pytest.approx(scores_of(folder, ["a cup", LONGER]), abs=1e-5)
    assert "max_position_embeddings: 248" in found["error"]


def test_sentence_transformers(folder, found):
    if "sentence_transformers" not in found:
        pytest.skip("sentence-transformers is not installed")
    model, processor = FastGoalCLIPModel.from_pretrained(folder), FastGoalProcessor.from_pretrained(folder)
    with torch.no_grad():
        texts = model.get_text_features(**processor(text=["a cup", LONGER])).pooler_output
        images = model.get_image_features(**processor(images=IMAGE)).pooler_output
    assert [made["class"] for made in found["sentence_transformers"]] == ["CLIPModel", "FastGoalCLIPModel"]
    for made in found["sentence_transformers"]:
        assert made["length"] == 248
        torch.testing.assert_close(torch.tensor(made["texts"]), texts)
        torch.testing.assert_close(torch.tensor(made["images"]), images)


@pytest.mark.parametrize("legacy", [False, True])
def test_longer_texts_are_cut_as_the_tokenizer_cuts_them(folder, legacy):
    model, processor = FastGoalCLIPModel.from_pretrained(folder), FastGoalProcessor.from_pretrained(folder)
    if legacy:
        model.text_model.eos_token_id = 2
    texts = ["a cup", LONGEST, LONGER]
    whole = processor.tokenizer(texts, padding=True, return_tensors="pt")
    assert whole["input_ids"].shape[1] > 248
    before = whole["input_ids"].clone()
    cut = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            model.get_text_features(**whole).pooler_output, model.get_text_features(**cut).pooler_output
        )
    assert torch.equal(whole["input_ids"], before)


def test_a_model_that_is_saved_again_names_its_classes(folder, tmp_path):
    FastGoalCLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
    for place in (folder, tmp_path):
        # Servers choose their code by this name.
        assert json.loads((place / "config.json").read_text())["architectures"] == ["CLIPModel"]
        assert json.loads((place / "config.json").read_text())["auto_map"] == {
            "AutoConfig": "configuration_fastgoal.FastGoalCLIPConfig",
            "AutoModel": "modeling_fastgoal.FastGoalCLIPModel",
            "AutoModelForZeroShotImageClassification": "modeling_fastgoal.FastGoalCLIPModel",
        }
        assert (place / "model.safetensors").is_file()
        assert not [*place.glob("*.bin")]


@pytest.mark.parametrize("module", ["configuration_fastgoal", "processing_fastgoal"])
def test_older_versions_of_transformers_are_refused(folder, tmp_path, monkeypatch, module):
    """Version 4.57 copies a file with those that it imports itself, looks for those that they import, and runs it."""
    package = tmp_path / f"old_{module}"
    package.mkdir()
    (package / "__init__.py").touch()
    copies = [module, *get_relative_imports(folder / f"{module}.py")]
    for name in copies:
        shutil.copy(folder / f"{name}.py", package)
    assert {Path(path).stem for path in get_relative_import_files(package / f"{module}.py")} <= {*copies}
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.57.6")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"transformers>=5\.17.*transformers==4\.57\.6[^:]*trust_remote_code"):
        importlib.import_module(f"{package.name}.{module}")


def test_nothing_trusts_remote_code_by_default():
    import fastgoal
    import fastgoal.hub_cards
    import fastgoal.modeling_fastgoal
    import fastgoal.processing
    import fastgoal.trainer

    packages = (fastgoal, fastgoal.hub_cards, fastgoal.modeling_fastgoal, fastgoal.processing, fastgoal.trainer)
    files = [path for package in packages for path in Path(package.__file__).parent.rglob("*.py")]
    assert len(files) > 30
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword)]
        values = [node.value for node in keywords if node.arg == "trust_remote_code"]
        assert all(isinstance(value, ast.Constant) and value.value is False for value in values), path
