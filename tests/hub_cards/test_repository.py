"""Which files go to the Hub: those of a complete model or dataset, from the folder itself or the Hub's cache."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from fastgoal import FastGoalCLIPModel
from fastgoal.cli import main
from fastgoal.hub_cards.push import push
from fastgoal.hub_cards.repository import choose_files, find_repo_type
from tests.squares import rows_of_squares, write_pairs


def state_of(folder):
    """Names, content, and times of all files and links below a folder."""
    return {
        path: (path.is_symlink(), path.is_file() and path.read_bytes(), path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "inside" / "my-model", ignore=shutil.ignore_patterns("checkpoint-*"))


@pytest.fixture
def data(tmp_path):
    """A dataset of three shards with two rows each, and its manifest."""
    write_pairs(rows_of_squares()[:6], tmp_path / "pairs" / "data", 3)
    (tmp_path / "pairs" / "fastgoal_pairs.json").write_text(json.dumps({"summary": {"images": 6}}))
    (tmp_path / "pairs" / "README.md").write_text("---\nlicense: mit\n---\n\n# pairs\n")
    return tmp_path / "pairs"


def refused(folder, online, *words):
    """Both a dry run and a push are refused with these words, and change nothing here or on the Hub."""
    before = state_of(folder.parent)
    messages = []
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=r"not sent|link") as caught:
            push(folder, "me/name", dry_run=dry_run)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert state_of(folder.parent) == before
    assert not online.repos
    for word in words:
        assert word in messages[0], messages[0]


def test_only_models_and_datasets_are_sent(tmp_path):
    with pytest.raises(ValueError, match="neither a saved model"):
        find_repo_type(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match="no weights in safetensors"):
        find_repo_type(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "config.json").write_text("{}")
    (tmp_path / ".env").write_text("SECRET=1")
    assert find_repo_type(tmp_path) == "model"
    sent, left_out = choose_files(tmp_path, "model")
    assert sent == ["config.json", "model.safetensors"]
    assert left_out == [".env", "checkpoint-1/config.json", "pytorch_model.bin"]


def test_files_with_other_names_are_left_out(trained, tmp_path):
    folder, outside = shutil.copytree(trained, tmp_path / "model"), tmp_path / "outside"
    outside.write_text("{}")
    before, _ = choose_files(folder, "model")
    others = {
        *("credentials.json", "secrets.py", "client_secret.json", "settings.local.json", "LICENSE-private-key"),
        *("LICENSE.pem", "model.safetensors.bak", "optimizer.safetensors", "notes.md", "weights.py", "x\n.json"),
        *("examples/me.jpg", "data/train-00000-of-00001.parquet", "onnx/other.onnx", "examples/pairs.jpg/config.json"),
    }
    (folder / "examples/pairs.jpg").unlink()
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    (folder / "notes.txt").symlink_to(outside)
    (folder / "added_tokens.json").symlink_to(folder / "README.md")
    sent, left_out = choose_files(folder, "model")
    assert sorted([*sent, "examples/pairs.jpg"]) == sorted([*before, "added_tokens.json"])
    assert others | {"notes.txt"} <= {*left_out}
    # Everything that the model needs, of what saving wrote, is sent.
    unsent = {path.name for path in trained.rglob("*") if path.is_file()} - {Path(name).name for name in before}
    assert {name for name in unsent if not name.startswith(("run.", "rng_", "stream_"))} <= {
        *("all_results.json", "eval_results.json", "train_results.json", "trainer_state.json", "training_args.bin"),
        *("optimizer.pt", "scheduler.pt", "fastgoal_training.json"),
    }


OUTSIDE = ("model.safetensors", "config.json", "tokenizer.json", "README.md", "LICENSE", "vocab.json", "handler.py")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_link_out_of_the_folder_is_refused(online, folder, tmp_path, name):
    outside = tmp_path / "elsewhere"
    shutil.move(folder / name, outside) if (folder / name).exists() else outside.write_text("private")
    (folder / name).symlink_to(outside)
    content = outside.read_bytes()
    refused(folder, online, name, "link leads out of the folder", "Replace the link")
    assert outside.read_bytes() == content
    (folder / name).unlink()
    (folder / name).symlink_to("nothing")
    refused(folder, online, name, "no file", "Replace the link")


def test_a_linked_folder_is_refused(online, folder, data, tmp_path):
    for path in (folder / "examples", data / "data"):
        path.rename(tmp_path / "elsewhere" / path.name if (tmp_path / "elsewhere").exists() else tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
        refused(path.parent, online, str(path), "folder", "Replace the link")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"]
)
def test_a_model_without_a_file_is_refused(online, folder, name):
    if name == "model.safetensors":
        shutil.copy(folder / name, folder / "other.safetensors")
    if name == "config.json":
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/base"}))
        name, missing = "config.json", "adapter_model.safetensors"
    else:
        missing = name
    if name == "tokenizer.json":
        (folder / "merges.txt").unlink()  # with vocab.json it would be enough
    (folder / name).unlink()
    refused(folder, online, str(folder), missing, "incomplete")


def test_weights_that_are_missing_are_refused(online, folder):
    weights = load_file(folder / "model.safetensors")
    removed = weights.pop("visual_projection.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"visual_projection\.weight is missing"):
        push(folder, "me/name")
    save_file({**weights, "visual_projection.weight": removed[:1]}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"visual_projection\.weight has the shape"):
        push(folder, "me/name")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"my-model.*cannot be loaded"):
        push(folder, "me/name")
    assert not online.repos


def test_part_of_a_sharded_model_is_refused(online, folder):
    model = FastGoalCLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {path.name for path in shards} | {"model.safetensors.index.json"} <= push(
        folder, "me/name", dry_run=True
    ).files.keys()
    index = folder / "model.safetensors.index.json"
    content = index.read_bytes()
    index.unlink()
    refused(folder, online, index.name, "incomplete")
    index.write_text("{}")
    refused(folder, online, index.name, "damaged")
    index.write_bytes(content)
    weights = load_file(shards[0])
    name = sorted(weights)[0]
    whole = shards[0].read_bytes()
    save_file({other: weights[other] for other in weights if other != name}, shards[0], {"format": "pt"})
    refused(folder, online, shards[0].name, name)
    shards[0].write_bytes(whole)
    shards[1].unlink()
    refused(folder, online, shards[1].name, "incomplete")


def test_part_of_a_dataset_is_refused(online, data, tmp_path):
    assert len(push(data, "me/name", dry_run=True).files) == 4
    shards = sorted((data / "data").iterdir())
    content = shards[1].read_bytes()
    shards[1].rename(tmp_path / "elsewhere")
    refused(data, online, "data/train-00001-of-00003.parquet", "incomplete")
    shards[1].symlink_to(tmp_path / "elsewhere")
    refused(data, online, shards[1].name, "link leads out")
    shards[1].unlink()
    shards[1].write_bytes(content)
    # The manifest counts more rows than the shards have.
    (data / "fastgoal_pairs.json").write_text(json.dumps({"summary": {"images": 7}}))
    with pytest.raises(ValueError, match=r"6 rows.* 7"):
        push(data, "me/name")
    # A run that was interrupted wrote no summary.
    (data / "fastgoal_pairs.json").write_text("{}")
    with pytest.raises(ValueError, match="finished output folder"):
        push(data, "me/name")
    (data / "fastgoal_pairs.json").write_text(json.dumps({"summary": {"images": 8}}))
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(shards[0]), data / "more.parquet")
    refused(data, online, "more.parquet")
    (data / "more.parquet").unlink()
    for path in shards:
        path.unlink()
    refused(data, online, "train-*.parquet", "incomplete")


def test_a_snapshot_in_the_cache_of_the_hub_is_sent(online, folder, data, tmp_path):
    """The Hub's own client makes snapshots, in which all files are links to the blobs of the repository."""
    for source, repo_type in ((folder, "model"), (data, "dataset")):
        push(source, "me/first")
        copy = Path(snapshot_download("me/first", repo_type=repo_type, cache_dir=tmp_path / "cache"))
        assert all(path.is_symlink() for path in copy.rglob("*") if not path.is_dir())
        before = state_of(copy)
        planned = push(copy, "me/second", dry_run=True)
        assert main(["push", str(copy), "me/second"]) == 0
        assert state_of(copy) == before
        prefix = "" if repo_type == "model" else "datasets/"
        first, second = (online.repos[f"{prefix}me/{name}"].files for name in ("first", "second"))
        assert planned.files.keys() == second.keys() == first.keys()
        different = {name for name in first if first[name] != second[name]}
        assert different <= {"README.md"}
        assert {name: len(content) for name, content in second.items()} == planned.files
        # A blob that is itself a link leads out of the cache.
        large = "model.safetensors" if repo_type == "model" else "data/train-00000-of-00003.parquet"
        blob = (copy / large).resolve()
        blob.rename(tmp_path / "private")
        blob.symlink_to(tmp_path / "private")
        with pytest.raises(ValueError, match=f"{Path(large).name}: the link leads out"):
            push(copy, "me/third", dry_run=True)
        (tmp_path / "private").unlink()


def test_a_part_of_a_snapshot_is_refused(online, folder, tmp_path):
    push(folder, "me/first")
    patterns = ["*.json", "README.md"]
    copy = Path(snapshot_download("me/first", cache_dir=tmp_path / "cache", allow_patterns=patterns))
    with pytest.raises(ValueError, match="no weights"):
        push(copy, "me/second")
    patterns = ["config.json", "model.safetensors", "README.md"]
    copy = Path(snapshot_download("me/first", cache_dir=tmp_path / "other", allow_patterns=patterns))
    with pytest.raises(ValueError, match=r"incomplete without tokenizer\.json, tokenizer_config\.json, "):
        push(copy, "me/second")
    assert online.repos.keys() == {"me/first"}


def test_images_that_the_card_does_not_show_are_not_sent(folder):
    """Left by an earlier training whose card showed its images."""
    card = folder / "README.md"
    shown = {"examples/pairs.jpg", "examples/1.jpg", "examples/2.jpg", "examples/3.jpg"}
    assert {*push(folder, "me/name", dry_run=True).images} == shown
    card.write_text(card.read_text().replace("examples/2.jpg", "examples/none.jpg"))
    planned = push(folder, "me/name", dry_run=True)
    assert {*planned.images} == shown - {"examples/2.jpg"}
    assert "examples/2.jpg" in planned.left_out


def test_exported_files_are_sent(online, folder):
    """In the layout of `fastgoal export`; test_export_onnx compares this layout with real files."""
    graphs = [
        f"onnx/{name}{suffix}.onnx" for name in ("model", "text_model", "vision_model") for suffix in ("", "_fp16")
    ]
    (folder / "onnx").mkdir()
    for name in (*graphs, "onnx/model.onnx_data", "onnx/other.onnx", "onnx/model.onnx.bak"):
        (folder / name).write_bytes(b"a graph")
    planned = push(folder, "me/name", dry_run=True)
    assert {*graphs, "onnx/model.onnx_data", "model.safetensors"} <= planned.files.keys()
    assert {"onnx/other.onnx", "onnx/model.onnx.bak"} <= {*planned.left_out}

    # The folder of an export has no weights in safetensors, and no handler, which needs them.
    for name in ("model.safetensors", "handler.py"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["transformers.js_config"] = {"use_external_data_format": {"model.onnx": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    planned = push(folder, "me/name", dry_run=True)
    assert {*graphs, "onnx/model.onnx_data"} <= planned.files.keys()
    assert "handler.py" not in planned.files
    (folder / "onnx/model.onnx_data").unlink()
    refused(folder, online, "incomplete", "onnx/model.onnx_data")
    (folder / "onnx/model.onnx_data").write_bytes(b"weights")
    (folder / "onnx/text_model.onnx").unlink()
    push(folder, "me/name", dry_run=True)  # all of fp16 are there
    (folder / "onnx/text_model_fp16.onnx").unlink()
    refused(folder, online, "incomplete", "onnx/text_model.onnx")
    (folder / "README.md").unlink()
    refused(folder, online, "no card", "README.md")
