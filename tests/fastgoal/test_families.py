"""Every command with a checkpoint of each family, and other programs with the results: the plain classes, a pipeline in
another process, the handler of an endpoint, adapters."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from fastgoal import FastGoalModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments, evaluate
from fastgoal.cli import main
from fastgoal.processing.checkpoints.adapters import load_adapter
from fastgoal.processing.checkpoints.load import load_model
from tests.squares import rows_of_squares

FAMILIES = ("siglip", *(pytest.param(family, marks=pytest.mark.slow) for family in ("metaclip2", "siglip2")))
LABELS = ["A red dog stands.", "Two birds fly over the wide lawn. A cat sits near the house."]
TRUSTED = """
import sys
sys.modules["fastgoal"] = None
import json
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
folder, labels = sys.argv[1], json.loads(sys.argv[2])
image = Image.radial_gradient("L").convert("RGB").resize((60, 40))
results = {}
for trust in (None, True):
    classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=trust)
    answer = classify(image, candidate_labels=labels, hypothesis_template="{}")
    results[type(classify.model).__name__] = {entry["label"]: entry["score"] for entry in answer}
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
mask = processor.sentence_mask(labels[1], 0, 20)
results["tokens"], results["processor"] = int(mask.sum()), type(processor).__name__
print(json.dumps(results))
"""


@pytest.fixture(params=FAMILIES, scope="module")
def family(request):
    return request.param


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with images of squares and captions."""
    folder = tmp_path_factory.mktemp("source")
    lines = []
    for row in rows_of_squares():
        (folder / row["file_name"]).write_bytes(row["image"]["bytes"])
        lines.append(json.dumps({"file_name": row["file_name"], "caption": row["caption"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def work(family, source, tiny_bases, tmp_path_factory):
    """A folder with pairs, and the model of the family that was trained on them."""
    folder = tmp_path_factory.mktemp(f"work-{family}")
    base = str(tiny_bases[family])
    pairs = ["pairs", str(source), "--output", str(folder / "pairs"), "--model", base, "--detector", "none"]
    assert main([*pairs, "--language", "de"]) == 0
    train = ["train", "--model", base, "--train_data", str(folder / "pairs"), "--eval_data", str(folder / "pairs")]
    train += ["--output_dir", str(folder / "model"), "--num_train_epochs", "2", "--per_device_train_batch_size", "6"]
    train += ["--learning_rate", "1e-3", "--dataloader_num_workers", "0", "--use_cpu", "--report_to", "none"]
    assert main([*train, "--sparc_weight", "0.1", "--hard_negatives"]) == 0
    return folder


def test_the_card_names_the_family(family, work):
    card = (work / "model" / "README.md").read_text()
    is_siglip = family != "metaclip2"
    assert f"This {'SigLIP' if is_siglip else 'MetaCLIP 2'} model reads captions" in card
    assert f"stretched to {256 if is_siglip else 248}; the family was published with {64 if is_siglip else 77}" in card
    assert (".sigmoid()" in card) == ('padding="max_length"' in card) == is_siglip
    assert f"The global loss is {'SigLIP' if is_siglip else 'CLIP'}'s" in card
    config = json.loads((work / "model" / "config.json").read_text())
    assert config["model_type"] == ("siglip" if is_siglip else "metaclip_2")
    assert json.loads((work / "model" / "processor_config.json").read_text())["language"] == "de"


def test_pairs_of_another_language_are_not_mixed_in(family, work, source, tiny_bases, capsys):
    command = ["pairs", str(source), "--output", str(work / "pairs"), "--model", str(tiny_bases[family])]
    assert main([*command, "--detector", "none", "--language", "fr"]) == 2
    assert "language" in capsys.readouterr().err
    assert main([*command, "--detector", "none", "--language", "french"]) == 2
    assert "must be a language code" in capsys.readouterr().err


def test_every_command_takes_it(family, work, source, capsys):
    model, data = str(work / "model"), str(work / "pairs")
    image = str(source / "red-green.png")
    assert main(["evaluate", "--model", model, "--data", data, "--localization", "--robustness"]) == 0
    assert "text to image" in capsys.readouterr().out
    for page in (
        ["explain", "--model", model, "--image", image, "--caption", LABELS[1], "--output", str(work / "one.png")],
        ["gallery", "--model", model, "--data", data, "--html", str(work / "gallery.html")],
        ["inspect", data, "--model", model, "--output", str(work / "inspect.html")],
        ["search", str(shutil.copytree(source, work / "images")), "--model", model, "red dog"],
        ["push", model, "owner/name", "--dry-run"],
    ):
        assert main(page) == 0, page[0]
        out = capsys.readouterr().out
    assert "base_fastgoal.py" in out
    if family == "siglip":
        assert "spiece.model" in out


def test_evaluations_of_the_trainer_and_of_the_command_are_one(work):
    report = evaluate(str(work / "model"), str(work / "pairs"))
    state = json.loads((work / "model" / "all_results.json").read_text())
    assert 100 * report.metrics["text_to_image_R@1"] == pytest.approx(state["eval_text_to_image_R@1"], abs=6e-3)


@pytest.mark.slow
def test_other_programs_load_the_plain_class(family, work):
    folder = work / "model"
    model, processor = load_model(str(folder), "cpu")
    image = Image.radial_gradient("L").convert("RGB").resize((60, 40))
    cut = {} if family == "metaclip2" else {"max_length": 64}  # as pipelines do with SigLIP
    with torch.no_grad():
        logits = model(**processor(images=image, text=LABELS, **cut)).logits_per_image[0]
    scores = logits.softmax(dim=0) if family == "metaclip2" else logits.sigmoid()
    command = [sys.executable, "-c", TRUSTED, str(folder), json.dumps(LABELS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    expected = dict(zip(LABELS, scores.tolist(), strict=True))
    plain = "MetaClip2Model" if family == "metaclip2" else "SiglipModel"
    assert results[plain] == pytest.approx(expected, abs=1e-4)  # pipelines round
    assert results[f"FastGoal{plain}"] == pytest.approx(expected, abs=1e-4)
    assert results["tokens"] == processor.sentence_mask(LABELS[1], 0, 20).sum()
    assert results["processor"] == "FastGoalProcessor"


def test_sentence_transformers_agree(family, work):
    """Where the package is installed."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = str(work / "model")
    model, processor = load_model(folder, "cpu")
    image, texts = Image.radial_gradient("L").convert("RGB").resize((60, 40)), LABELS
    # As the card says: it would pad the texts of a SigLIP to the longest one.
    padded = {} if family == "metaclip2" else {"processing_kwargs": {"text": {"padding": "max_length"}}}
    assert ("processing_kwargs=" in (work / "model" / "README.md").read_text()) == bool(padded)
    other = sentence_transformers.SentenceTransformer(folder)
    with torch.no_grad():
        got = model(**processor(images=image, text=texts))
    expected = torch.from_numpy(other.encode(texts, normalize_embeddings=True, **padded))
    torch.testing.assert_close(got.text_embeds, expected, atol=1e-5, rtol=0)
    expected = torch.from_numpy(other.encode([image], normalize_embeddings=True))
    torch.testing.assert_close(got.image_embeds, expected, atol=1e-5, rtol=0)


def test_the_handler_agrees(family, work):
    spec = importlib.util.spec_from_file_location("handler", work / "model" / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(str(work / "model"))
    image = Image.radial_gradient("L").convert("RGB").resize((60, 40))
    answer = {entry["label"]: entry["score"] for entry in handler({"inputs": {"image": image, "text": LABELS}})}
    model, processor = load_model(str(work / "model"), "cpu")
    with torch.no_grad():
        logits = model(**processor(images=image, text=LABELS)).logits_per_image[0]
    scores = logits.softmax(dim=0) if family == "metaclip2" else logits.sigmoid()
    assert answer == pytest.approx(dict(zip(LABELS, scores.tolist(), strict=True)), abs=1e-5)
    with pytest.raises(ValueError, match=r"longer than the 2\d\d tokens"):
        handler({"inputs": {"text": "a red dog " * 300}, "parameters": {"truncate": False}})


def test_the_code_of_the_card_runs(family, work, monkeypatch):
    """The first block of the card, word for word."""
    card = (work / "model" / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace("owner/name", "model")
    monkeypatch.chdir(work)
    Image.radial_gradient("L").convert("RGB").save(work / "photo.jpg")
    scope: dict = {}
    exec(code, scope)
    model, processor = load_model(str(work / "model"), "cpu")
    with torch.no_grad():
        logits = model(**processor(images=str(work / "photo.jpg"), text=scope["captions"])).logits_per_image
    expected = logits.softmax(dim=-1) if family == "metaclip2" else logits.sigmoid()
    torch.testing.assert_close(scope["probabilities"], expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_is_merged_into_its_own_base(family, tiny_bases, pairs_folder, tmp_path):
    pytest.importorskip("peft")
    base = str(tiny_bases[family])
    command = ["train", "--model", base, "--train_data", str(pairs_folder), "--output_dir", str(tmp_path / "adapter")]
    command += ["--lora_r", "2", "--learning_rate", "1e-2", "--dataloader_num_workers", "0", "--use_cpu"]
    assert main([*command, "--num_train_epochs", "1", "--per_device_train_batch_size", "6"]) == 0
    merged = load_adapter(str(tmp_path / "adapter" / "adapter"))
    saved = AutoModel.from_pretrained(tmp_path / "adapter").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in merged.state_dict().items())
    start = FastGoalModel.from_base(base).state_dict()
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, start[name])}
    assert changed
    assert all("_proj" in name and "vision_model.head" not in name for name in changed)
    assert type(merged) is type(FastGoalModel.from_base(base))


@pytest.mark.parametrize("contrastive", ["softmax", "sigmoid"])
def test_the_bias_is_trained_only_with_sigmoid_losses(tiny_bases, rows, tmp_path, contrastive):
    model = FastGoalModel.from_base(tiny_bases["siglip"])
    args = FastGoalTrainingArguments(
        output_dir=str(tmp_path),
        contrastive=contrastive,
        per_device_train_batch_size=4,
        max_steps=2,
        learning_rate=1e-2,
        dataloader_num_workers=0,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        mini_batch_size=3,
    )
    processor = FastGoalProcessor.from_base(str(tiny_bases["siglip"]))
    before = model.logit_bias.item()
    trainer = FastGoalTrainer(model=model, args=args, processing_class=processor, train_dataset=rows)
    trainer.train()
    assert (model.logit_bias.item() != before) == (contrastive == "sigmoid")
    assert trainer.max_logit_scale == (0 if contrastive == "sigmoid" else 100)


def test_a_processor_of_another_family_is_refused(tiny_bases, tmp_path):
    AutoModel.from_pretrained(tiny_bases["siglip"]).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(tiny_bases["clip"]).save_pretrained(tmp_path)
    for stretch in (True, False):
        with pytest.raises(ValueError, match="a SigLIP, and its image processor is a CLIPImageProcessor"):
            load_model(str(tmp_path), "cpu", stretch=stretch)


@pytest.mark.slow
def test_a_tokenizer_without_its_package_names_it(tiny_bases):
    code = (
        "import sys; sys.modules['sentencepiece'] = None\n"
        "import transformers.utils.import_utils as u\n"
        "from fastgoal.processing.checkpoints.load import load_model\n"
        f"load_model({str(tiny_bases['siglip'])!r}, 'cpu')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "ValueError" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("pip install sentencepiece.")
