"""Pushing through the real client of the Hub to a server on this machine: what arrives loads, and nothing leaks."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.hub_cards.push import Pushed, choose_files, describe_push, kind_of, push, refuse_secrets
from fastgoal.processing.checkpoints.adapters import add_adapter, describe_base, write_base

from .conftest import TOKEN

LOAD = """
import sys
sys.modules["fastgoal"] = None
import json, torch
from transformers import AutoModel, AutoProcessor
for trust in (None, True):
    model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=trust)
    processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=trust)
    inputs = processor(text=["a red cup"], return_tensors="pt")
    print(json.dumps([
        type(model).__name__, type(processor).__name__, model.config.text_config.max_position_embeddings,
        model.get_text_features(**inputs).pooler_output[0].tolist(),
    ]))
"""


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "my-model")


def push_outside(outside, *arguments, **options):
    done = outside("-m", "fastgoal", "push", *arguments, **options)
    assert TOKEN not in done.stdout + done.stderr
    return done


def test_what_arrives_loads(hub, outside, folder, trained):
    done = push_outside(outside, folder, "me/squares", "--private")
    assert done.returncode == 0, done.stderr
    assert "/me/squares: " in done.stdout
    assert "not sent: all_results.json, checkpoint-2/, checkpoint-4/, eval_results.json" in done.stdout
    repo = hub.repos["me/squares"]
    assert repo.private
    assert len(repo.commits) == 1
    expected = {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "processor_config.json", "handler.py", "modeling_fastgoal.py", "processing_fastgoal.py", "examples/pairs.jpg",
    }  # fmt: skip
    assert expected <= repo.files.keys()
    for name, content in repo.files.items():
        assert not name.endswith((".bin", ".pt", ".pth")), name
        assert TOKEN.encode() not in content, name
        assert str(trained.parent).encode() not in content, name
    assert b'name = "me/squares"' in repo.files["README.md"]

    model, processor = FastGoalCLIPModel.from_pretrained(trained), FastGoalProcessor.from_pretrained(trained)
    embeds = model.get_text_features(**processor(text=["a red cup"])).pooler_output[0].tolist()
    loaded = outside("-c", LOAD, "me/squares", token=None)
    assert loaded.returncode == 0, loaded.stderr
    found = [json.loads(line) for line in loaded.stdout.splitlines()]
    assert [names for *names, _, _ in found] == [
        ["CLIPModel", "CLIPProcessor"],
        ["FastGoalCLIPModel", "FastGoalProcessor"],
    ]
    for *_, positions, values in found:
        assert positions == 248
        assert values == pytest.approx(embeds, abs=1e-5)


ADAPTED = """
import sys
from PIL import Image
from fastgoal.cli import main
from fastgoal.processing.checkpoints.load import check_model, load_model
from fastgoal.processing.checkpoints.fingerprints import mark_weights
merged, trained, adapter = sys.argv[1:]
assert main(["push", trained, "me/squares"]) == main(["push", adapter, "me/lora"]) == 0
print(mark_weights("me/lora"), check_model("me/lora").model_type)
model, processor = load_model("me/lora", "cpu")
print(model.get_text_features(**processor(text=["a red cup"])).pooler_output[0].tolist())
sys.exit(main(["merge", "me/lora", "--output", merged]))
"""


def test_an_adapter_finds_its_base_on_the_hub(hub, outside, trained, tmp_path):
    model = add_adapter(FastGoalCLIPModel.from_base(str(trained)), rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    processor = FastGoalProcessor.from_pretrained(trained)
    folder = tmp_path / "lora"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_base(folder, describe_base(model, "me/squares"))
    done = outside("-c", ADAPTED, tmp_path / "merged", trained, folder)
    assert done.returncode == 0, done.stderr
    mark, values, merged = done.stdout.splitlines()[-3:]
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= hub.repos["me/lora"].files.keys()
    assert "handler.py" not in hub.repos["me/lora"].files
    assert mark == f"me/lora@{hub.repos['me/lora'].revision} clip"
    expected = model.eval().get_text_features(**processor(text=["a red cup"])).pooler_output[0].tolist()
    assert json.loads(values) == pytest.approx(expected, abs=1e-5)
    assert "reads 248 tokens" in merged


def test_a_dry_run_says_what_would_be_sent(hub, outside, folder, monkeypatch):
    for name in ("README.md", "handler.py"):
        (folder / name).unlink()
    monkeypatch.setattr("fastgoal.hub_cards.push.get_token", lambda: None)
    dry = push(folder, "me/squares", dry_run=True)
    assert (dry.kind, dry.repo, dry.url, dry.commit) == ("model", "me/squares", None, None)
    assert {"README.md", "handler.py", "model.safetensors", "tokenizer.json"} <= set(dry.sent)
    assert {"eval_results.json", "training_args.bin", "checkpoint-2/config.json"} <= set(dry.left_out)
    assert 'name = "me/squares"' in (folder / "README.md").read_text()
    assert hub.repos == {}
    # What was said is what is sent.
    assert push_outside(outside, folder, "me/squares").returncode == 0
    assert set(hub.repos["me/squares"].files) == set(dry.sent)
    (folder / "config.json").write_text(f'{{"token": "{TOKEN}"}}')
    with pytest.raises(ValueError, match="holds an access token"):
        push(folder, "me/squares", dry_run=True)


@pytest.mark.slow
def test_a_push_that_fails_half_way_is_repeated(hub, outside, folder):
    hub.broken = "POST .*/commit/main"
    done = push_outside(outside, folder, "squares")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("fastgoal push: error: The Hub refused 'squares' (403)")
    assert not hub.repos["somebody/squares"].files
    sent = len(hub.uploads)
    assert sent > 0

    hub.broken = "PUT /storage/"
    hub.stored.clear()
    done = push_outside(outside, folder, "squares")
    assert done.returncode == 2
    assert "Repeat the command" in done.stderr
    assert not hub.repos["somebody/squares"].files

    hub.broken = None
    assert push_outside(outside, folder, "squares").returncode == 0
    assert len(hub.repos["somebody/squares"].commits) == 1
    uploads = len(hub.uploads)
    # Again, changed in one small file: what is there is not uploaded a second time.
    assert push_outside(outside, folder, "squares", "--message", "again").returncode == 0
    assert len(hub.uploads) == uploads
    assert hub.repos["somebody/squares"].commits[-1][0] == "again"


def test_a_folder_without_a_card_gets_one(hub, outside, folder):
    (folder / "README.md").unlink()
    (folder / "handler.py").unlink()
    done = push_outside(outside, folder, "me/squares")
    assert done.returncode == 0, done.stderr
    assert b'name = "me/squares"' in hub.repos["me/squares"].files["README.md"]
    assert "handler.py" in hub.repos["me/squares"].files


def test_a_hub_out_of_reach(hub, outside, folder):
    hub.url = "http://127.0.0.1:1"
    done = push_outside(outside, folder, "me/squares")
    assert done.returncode == 2
    assert "'me/squares' could not be sent: " in done.stderr.splitlines()[-1]


def test_without_a_token_it_says_so(hub, outside, folder):
    done = push_outside(outside, folder, "me/squares", token=None)
    assert done.returncode == 2
    assert done.stderr.startswith("fastgoal push: error: There is no access token for the Hub.")
    assert "hf auth login" in done.stderr
    done = push_outside(outside, folder, "me/squares", token="hf_wrong")
    assert done.returncode == 2
    assert "the token is not valid" in done.stderr
    assert hub.repos == {}


TRAIN = """
import sys
from fastgoal.trainer.run import main
folder, data, base, token = sys.argv[1:]
main([
    "--model", base, "--train_data", data, "--output_dir", folder, "--max_steps", "2", "--use_cpu", "true",
    "--per_device_train_batch_size", "3", "--dataloader_num_workers", "0", "--save_strategy", "steps",
    "--save_steps", "1", "--hub_strategy", "every_save", "--push_to_hub", "true", "--hub_token", token,
])
"""


def test_training_pushes_our_card_and_no_token(hub, outside, trained, tiny_clip, tmp_path):
    squares = trained.parent / "squares"
    done = outside("-c", TRAIN, tmp_path / "run", squares, tiny_clip, TOKEN, token=None)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    repo = hub.repos["somebody/run"]
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
    for name, content in repo.files.items():
        assert not name.endswith((".bin", ".pt", ".pth")), name
        assert TOKEN.encode() not in content, name
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_training_without_a_token_stops_before_it_starts(trained, tiny_clip, tmp_path):
    from fastgoal.trainer.run import main

    data, run = str(trained.parent / "squares"), str(tmp_path / "run")
    with pytest.raises(ValueError, match="no access token for the Hub"):
        main(["--model", str(tiny_clip), "--train_data", data, "--output_dir", run, "--push_to_hub", "true"])


def test_a_data_set(hub, outside, trained, tmp_path):
    folder = tmp_path / "pairs"
    (folder / "data").mkdir(parents=True)
    shutil.copy(trained.parent / "squares" / "train-00000-of-00001.parquet", folder / "data")
    manifest = {
        "source": str(tmp_path / "photographs"),
        "settings": {"model": "clip#00", "detector": "none"},
        "versions": {"fastgoal": "0.1.0"},
        "summary": {"images": 6, "sentences": 12, "pairs": 12, "skipped": [], "regions": {}, "best_regions": {}},
    }
    (folder / "fastgoal_pairs.json").write_text(json.dumps(manifest))
    done = push_outside(outside, folder, "me/pairs")
    assert done.returncode == 0, done.stderr
    repo = hub.repos["datasets/me/pairs"]
    assert repo.files.keys() == {"README.md", "data/train-00000-of-00001.parquet"}
    assert b'name = "me/pairs"' in repo.files["README.md"]


def test_a_secret_in_a_file_is_not_sent(tmp_path):
    (tmp_path / "notes.md").write_text(f"my token is {TOKEN}")
    with pytest.raises(ValueError, match=r"notes\.md' holds an access token") as caught:
        refuse_secrets(tmp_path, ["notes.md"], "another")
    assert TOKEN not in str(caught.value)
    (tmp_path / "notes.md").write_text("the password is swordfish")
    with pytest.raises(ValueError, match="holds an access token"):
        refuse_secrets(tmp_path, ["notes.md"], "swordfish")


def test_only_models_and_data_sets_of_ours_are_sent(tmp_path):
    with pytest.raises(ValueError, match="neither a saved model"):
        kind_of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match="no weights in safetensors"):
        kind_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "config.json").write_text("{}")
    (tmp_path / ".env").write_text("SECRET=1")
    assert kind_of(tmp_path) == "model"
    sent, left_out = choose_files(tmp_path, "model")
    assert sent == ["config.json", "model.safetensors"]
    assert left_out == [".env", "checkpoint-1/config.json", "pytorch_model.bin"]


def test_files_that_nobody_wrote_here_are_not_sent(trained, tmp_path):
    folder, outside = shutil.copytree(trained, tmp_path / "model"), tmp_path / "outside"
    outside.write_text("{}")
    before, _ = choose_files(folder, "model")
    others = {
        *("credentials.json", "secrets.py", "client_secret.json", "settings.local.json", "LICENSE-private-key"),
        *(
            "LICENSE.pem",
            "model.safetensors.bak",
            "optimizer.safetensors",
            "notes.md",
            "weights.py",
            "examples/me.jpg",
            "x\n.json",
        ),
        *("data/train-00000-of-00001.parquet", "onnx/other.onnx", "examples/pairs.jpg/config.json"),
    }
    (folder / "examples/pairs.jpg").unlink()
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    (folder / "vocab.json").symlink_to(outside)
    (folder / "merges.txt").symlink_to(folder / "README.md")
    sent, left_out = choose_files(folder, "model")
    assert sorted([*sent, "examples/pairs.jpg"]) == sorted([*before, "merges.txt"])
    assert others | {"vocab.json"} <= {*left_out}
    # All that saving wrote and the model needs is among them.
    unsent = {path.name for path in trained.rglob("*") if path.is_file()} - {Path(name).name for name in before}
    assert {name for name in unsent if not name.startswith(("run.", "rng_", "stream_"))} <= {
        *("all_results.json", "eval_results.json", "train_results.json", "trainer_state.json", "training_args.bin"),
        *("optimizer.pt", "scheduler.pt", "fastgoal_training.json"),
    }


def test_weights_that_are_no_numbers_are_not_sent(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors' has weights that are .*visual_projection.weight"):
        push(folder, "me/squares", dry_run=True)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors' is cut off or damaged .*; it is not sent"):
        push(folder, "me/squares", dry_run=True)


def test_a_single_file_is_not_called_files(tmp_path):
    pushed = Pushed("model", "me/clip", ["config.json"], [], "https://hub/me/clip")
    assert describe_push(pushed, tmp_path) == "https://hub/me/clip: 1 file"
    left_out = ["old/a.bin", "old/b.bin", "run.log"]
    pushed = Pushed("model", "me/clip", ["config.json", "README.md"], left_out, "https://hub/me/clip")
    assert describe_push(pushed, tmp_path) == "https://hub/me/clip: 2 files\nnot sent: old/, run.log"
