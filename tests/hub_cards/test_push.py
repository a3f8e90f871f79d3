"""Pushing with the Hub's own client to a server on this machine: what arrives loads, and no secret is sent."""

import io
import json
import shutil

import pyarrow.parquet
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file

from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.cli import main
from fastgoal.hub_cards.push import Pushed, describe_push, push
from fastgoal.processing.checkpoints.adapters import add_adapter, describe_base, lora_config, write_base
from fastgoal.processing.checkpoints.fingerprints import checkpoint_fingerprint
from fastgoal.processing.checkpoints.load import check_model, load_model
from fastgoal.trainer.run import main as train
from tests.squares import write_pairs

from .conftest import TOKEN

PUSH_AND_LOAD = """
import os, sys
from fastgoal.cli import main
folder, repo = sys.argv[1:]
assert main(["push", folder, repo, "--private"]) == 0
for name in [name for name in sys.modules if name.partition(".")[0] == "fastgoal"]:
    sys.modules[name] = None
del os.environ["HF_TOKEN"]
import json, torch
from transformers import AutoModel, AutoProcessor
for trust in (None, True):
    model = AutoModel.from_pretrained(repo, trust_remote_code=trust)
    processor = AutoProcessor.from_pretrained(repo, trust_remote_code=trust)
    inputs = processor(text=["a red cup"], return_tensors="pt")
    print(json.dumps([
        type(model).__name__, type(processor).__name__, model.config.text_config.max_position_embeddings,
        model.get_text_features(**inputs).pooler_output[0].tolist(),
    ]))
"""


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "my-model")


@pytest.fixture
def run(capsys):
    """Run a command; return its status and what it printed, in which the token never is."""

    def start(*arguments):
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert TOKEN not in printed.out + printed.err
        return status, printed.out + printed.err

    return start


@pytest.mark.slow
def test_a_pushed_model_loads_without_this_package(hub, outside, folder, trained):
    done = outside("-c", PUSH_AND_LOAD, folder, "me/squares")
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert "/me/squares: " in done.stdout
    assert "published 4 image files: examples/1.jpg, examples/2.jpg, examples/3.jpg, examples/pairs.jpg" in done.stdout
    assert "not sent: all_results.json, checkpoint-2/, checkpoint-4/, eval_results.json" in done.stdout
    repo = hub.repos["me/squares"]
    assert repo.private
    assert len(repo.commits) == 1
    expected = {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "processor_config.json", "handler.py", "modeling_fastgoal.py", "processing_fastgoal.py", "examples/pairs.jpg",
    }  # fmt: skip
    assert expected <= repo.files.keys()
    check_files(repo.files, trained.parent)
    assert b'name = "me/squares"' in repo.files["README.md"]

    model, processor = FastGoalCLIPModel.from_pretrained(trained), FastGoalProcessor.from_pretrained(trained)
    embeds = model.get_text_features(**processor(text=["a red cup"])).pooler_output[0].tolist()
    loaded = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [names for *names, _, _ in loaded] == [
        ["CLIPModel", "CLIPProcessor"],
        ["FastGoalCLIPModel", "FastGoalProcessor"],
    ]
    for *_, positions, values in loaded:
        assert positions == 248
        assert values == pytest.approx(embeds, abs=1e-5)


def check_files(files, *secrets):
    """No file on the Hub is a pickle, or holds the token or the name of a folder of this machine."""
    for name, content in files.items():
        assert not name.endswith((".bin", ".pt", ".pth")), name
        for secret in (TOKEN, *secrets):
            assert str(secret).encode() not in content, name


def test_an_adapter_finds_its_base_on_the_hub(online, run, trained, tmp_path):
    model = FastGoalCLIPModel.from_base(str(trained))
    model = add_adapter(model, lora_config(model, 2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    processor = FastGoalProcessor.from_pretrained(trained)
    folder = tmp_path / "lora"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_base(folder, describe_base(model, "me/squares"))
    assert (run("push", trained, "me/squares")[0], run("push", folder, "me/lora")[0]) == (0, 0)
    files = online.repos["me/lora"].files
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= files.keys()
    assert "handler.py" not in files
    assert checkpoint_fingerprint("me/lora") == f"me/lora@{online.repos['me/lora'].revision}"
    assert check_model("me/lora").model_type == "clip"
    loaded, _ = load_model("me/lora", "cpu")
    inputs = processor(text=["a red cup"])
    expected = model.eval().get_text_features(**inputs).pooler_output
    torch.testing.assert_close(loaded.get_text_features(**inputs).pooler_output, expected)
    status, printed = run("merge", "me/lora", "--output", tmp_path / "merged")
    assert status == 0
    assert "248 tokens" in printed


def test_a_dry_run_says_what_would_be_sent(online, run, folder, monkeypatch):
    for name in ("README.md", "handler.py"):  # which are made
        (folder / name).unlink()
    (folder / "examples" / "pairs.jpg").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with monkeypatch.context() as without_token:
        without_token.delenv("HF_TOKEN")
        dry = push(folder, "me/squares", dry_run=True)
    assert (dry.repo_type, dry.repo, dry.url, dry.commit) == ("model", "me/squares", None, None)
    assert {"README.md", "handler.py", "model.safetensors", "tokenizer.json"} <= dry.files.keys()
    assert {"eval_results.json", "training_args.bin", "checkpoint-2/config.json"} <= set(dry.left_out)
    assert online.repos == {}
    # What was said is what is sent.
    assert run("push", folder, "me/squares")[0] == 0
    sent = {name: len(content) for name, content in online.repos["me/squares"].files.items()}
    assert sent == dry.files
    assert b'name = "me/squares"' in online.repos["me/squares"].files["README.md"]
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "token": TOKEN}))
    with pytest.raises(ValueError, match=r"config\.json, line 1: .*access key"):
        push(folder, "me/squares", dry_run=True)


def test_a_push_that_fails_halfway_is_repeated(online, run, folder):
    online.broken = "POST .*/commit/main"
    status, printed = run("push", folder, "squares")
    assert status == 2
    assert "'squares'" in printed
    assert "403" in printed
    assert not online.repos["somebody/squares"].files
    assert online.uploads

    online.broken = "PUT /storage/"
    online.stored.clear()
    status, printed = run("push", folder, "squares")
    assert status == 2
    assert "Repeat the push" in printed
    assert not online.repos["somebody/squares"].files

    online.broken = None
    assert run("push", folder, "squares")[0] == 0
    assert len(online.repos["somebody/squares"].commits) == 1
    uploads = len(online.uploads)
    # A second push of the same files uploads none of the large ones.
    assert run("push", folder, "squares", "--message", "again")[0] == 0
    assert len(online.uploads) == uploads
    assert online.repos["somebody/squares"].commits[-1][0] == "again"


def test_without_a_valid_token_or_a_hub_nothing_is_sent(online, run, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    status, printed = run("push", folder, "me/squares")
    assert status == 2
    assert "refused the access token (401)" in printed
    monkeypatch.delenv("HF_TOKEN")
    status, printed = run("push", folder, "me/squares")
    assert status == 2
    assert "There is no access token" in printed
    assert "hf auth login" in printed
    assert online.repos == {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    status, printed = run("push", folder, "me/squares")
    assert status == 2
    assert "'me/squares'" in printed


def test_training_pushes_our_card_and_no_token(online, capsys, trained, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    settings = {
        "model": tiny_clip, "train_data": trained.parent / "squares", "output_dir": tmp_path / "run", "max_steps": 2,
        "use_cpu": True, "per_device_train_batch_size": 3, "dataloader_num_workers": 0, "save_strategy": "steps",
        "save_steps": 1, "hub_strategy": "every_save", "push_to_hub": True, "hub_token": TOKEN,
    }  # fmt: skip
    assert train([word for name, value in settings.items() for word in (f"--{name}", str(value))]) == 0
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err
    repo = online.repos["somebody/run"]
    assert [message for message, _ in repo.commits][:2] == [
        "Training in progress, step 1",
        "Training in progress, step 2",
    ]
    assert repo.commits[-1][0] == "End of training"
    card = repo.files["README.md"].decode()
    assert 'name = "somebody/run"' in card
    assert "| steps | 2 " in card
    assert "Generated from Trainer" not in card
    assert {"model.safetensors", "processor_config.json", "handler.py", "modeling_fastgoal.py"} <= repo.files.keys()
    check_files(repo.files)
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_training_without_a_token_stops_before_it_starts(trained, tiny_clip, tmp_path):
    data, run = str(trained.parent / "squares"), str(tmp_path / "run")
    with pytest.raises(ValueError, match="no access token"):
        train(["--model", str(tiny_clip), "--train_data", data, "--output_dir", run, "--push_to_hub", "true"])


def test_a_dataset_gets_a_card(online, run, trained, tmp_path):
    folder = tmp_path / "pairs"
    (folder / "data").mkdir(parents=True)
    shutil.copy(trained.parent / "squares" / "train-00000-of-00001.parquet", folder / "data")
    manifest = {
        "source": str(tmp_path / "photographs"),
        "settings": {"model": "clip#00", "detector": {"kind": "none"}},
        "versions": {"fastgoal": "0.1.0"},
        "summary": {"images": 6, "sentences": 12, "pairs": 12, "skipped": [], "regions": {}, "best_regions": {}},
    }
    (folder / "fastgoal_pairs.json").write_text(json.dumps(manifest))
    assert run("push", folder, "me/pairs")[0] == 0
    repo = online.repos["datasets/me/pairs"]
    assert repo.files.keys() == {"README.md", "data/train-00000-of-00001.parquet"}
    assert b'name = "me/pairs"' in repo.files["README.md"]


def test_images_are_sent_without_metadata(online, run, trained, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "A camera of mine"
    rows = pyarrow.parquet.read_table(trained.parent / "squares" / "train-00000-of-00001.parquet").to_pylist()
    for row, suffix in zip(rows, ("jpeg", "tiff"), strict=False):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 32)).save(buffer, suffix, exif=exif)
        row["image"]["bytes"] = buffer.getvalue()
    write_pairs(rows, tmp_path / "data")
    (tmp_path / "fastgoal_pairs.json").write_text(json.dumps({"summary": {"images": len(rows)}}))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    for options in ((), ("--dry-run",)):
        status, printed = run("push", tmp_path, "me/pairs", *options)
        assert status == 2
        assert "00001.parquet, row 1 (" in printed
        assert "TIFF" in printed
        assert "--recode" in printed
        assert not online.repos  # an empty one
    assert run("push", tmp_path, "me/pairs", "--recode", "--dry-run")[1].count("metadata removed from 2 images") == 1
    status, printed = run("push", tmp_path, "me/pairs", "--recode")
    assert status == 0
    assert "metadata removed from 2 images" in printed
    sent = online.repos["datasets/me/pairs"].files["data/train-00000-of-00001.parquet"]
    images = pyarrow.parquet.read_table(io.BytesIO(sent))["image"].to_pylist()
    assert not any(b"A camera of mine" in image["bytes"] for image in images)
    assert Image.open(io.BytesIO(images[1]["bytes"])).format == "PNG"
    assert [image["bytes"] for image in images[2:]] == [row["image"]["bytes"] for row in rows[2:]]


def test_weights_that_are_nan_or_damaged_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors.*visual_projection.weight"):
        push(folder, "me/squares", dry_run=True)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors: .*damaged"):
        push(folder, "me/squares", dry_run=True)


def test_a_push_in_words():
    files = {"config.json": 1500}
    assert describe_push(Pushed("model", "me/clip", files, [], "https://hub/me/clip")) == (
        "https://hub/me/clip: 1 file, 1.5 kB"
    )
    files = {"app.py": 10, "fastgoal/__init__.py": 500, "fastgoal/pages/a.py": 700, "fastgoal/pages/b.css": 800}
    assert describe_push(Pushed("space", "me/demo", files, ["old/a.bin", "old/b.bin", "run.log"], cleaned=1)) == (
        "would be sent to me/demo as a space, 4 files, 2.0 kB:\n"
        "  app.py  10 B\n  fastgoal/  500 B\n  fastgoal/pages/  1.5 kB\n"
        "metadata removed from 1 image; your own files keep theirs\nnot sent: old/, run.log"
    )
    files = {"README.md": 1, **{f"images/{number:04d}.jpg": 1 for number in range(10)}}
    names = ", ".join(f"images/000{number}.jpg" for number in range(8))
    assert describe_push(Pushed("space", "me/demo", files, [], "https://hub/me/demo")) == (
        f"https://hub/me/demo: 11 files, 11 B\npublished 10 image files: {names} and 2 more"
    )
