"""Streams from folders of shards: parquet and tar files."""

import io
import json
import tarfile
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import HfApi
from PIL import Image

from fastgoal.processing.data.forms.registry import open_stream
from fastgoal.processing.images import load_image
from tests.squares import write_pairs


def write_tars(folder, entries, per_file=2):
    """Write tar files in webdataset format; `entries` are dicts of contents by suffix."""
    folder.mkdir()
    for start in range(0, len(entries), per_file):
        with tarfile.open(folder / f"shard-{start:03d}.tar", "w") as file:
            for number, entry in enumerate(entries[start : start + per_file], start):
                for suffix, content in entry.items():
                    info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
    return folder


def jpeg(level):
    file = io.BytesIO()
    Image.new("RGB", (16, 8), (level, level, level)).save(file, "JPEG")
    return file.getvalue()


def rows_of(source):
    return [source.row(0, dict(values)) for values in source.dataset]


def test_shards_of_parquet(rows, tmp_path):
    source = open_stream(write_pairs(rows, tmp_path / "data", shards=3).parent)
    assert (source.rows, source.dataset.num_shards) == (len(rows), 3)
    streamed = rows_of(source)
    assert [row.caption for row in streamed] == [row["caption"] for row in rows]
    assert isinstance(streamed[0].image, dict)  # not decoded
    assert streamed[0].columns["pairs"]
    with pytest.raises(TypeError, match="no length"):
        len(source)


def test_tar_files_with_a_text_for_each_image(tmp_path):
    entries = [{"jpg": jpeg(40 * number), "txt": f"Image {number}.".encode()} for number in range(5)]
    source = open_stream(write_tars(tmp_path / "tars", entries))
    assert (source.rows, source.dataset.num_shards) == (None, 3)
    for number, row in enumerate(rows_of(source)):
        assert (row.caption, row.name) == (f"Image {number}.", f"{number:05d}.jpg")
        assert load_image(row.image).getpixel((4, 4))[0] == pytest.approx(40 * number, abs=4)


def test_tar_files_with_a_table_for_each_image(tmp_path):
    entries = [
        {
            "jpg": jpeg(0),
            "json": json.dumps({"captions": [f"Image {number}", "It is black."], "pairs": [{"score": 0.5}]}).encode(),
            "txt": b"Not this.",
        }
        for number in range(3)
    ]
    source = open_stream(write_tars(tmp_path / "tars", entries))
    assert "pairs" in source.columns
    for number, row in enumerate(rows_of(source)):
        assert row.caption == f"Image {number}. It is black."
        assert row.columns["pairs"] == [{"score": 0.5}]


def test_a_row_without_a_caption_is_named(tmp_path):
    data = datasets.Dataset.from_dict({"image": [{"bytes": jpeg(0), "path": "a.jpg"}], "caption": [" "]})
    (tmp_path / "data").mkdir()
    data.cast_column("image", datasets.Image()).to_parquet(tmp_path / "data/train.parquet")
    source = open_stream(tmp_path)
    with pytest.raises(ValueError, match=r"\(a.jpg\).*'caption'"):
        rows_of(source)


def test_a_dataset_on_the_hub(rows, tmp_path, monkeypatch):
    file = str(next(write_pairs(rows, tmp_path / "data").glob("*.parquet")))
    load, asked = datasets.load_dataset, []

    def from_hub(name, split, streaming):
        asked.append((name, split, streaming))
        return load("parquet", data_files={"train": [file]}, split=split, streaming=streaming)

    monkeypatch.setattr("datasets.load_dataset", from_hub)
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha=f"commit of {name}"))
    source = open_stream("owner/name")
    assert source.fingerprint == "owner/name@commit of owner/name train"
    assert asked == [("owner/name", None, True)]
    assert source.name == "owner/name"
    assert [row.caption for row in rows_of(source)] == [row["caption"] for row in rows]


def test_data_without_shards_are_refused(tmp_path, rows):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/metadata.jsonl").write_text("{}")
    write_pairs(rows, tmp_path / "holes", shards=3)
    (tmp_path / "holes/train-00001-of-00003.parquet").unlink()
    for name, words in (
        ("empty", "empty is not in a known form"),
        ("folder", r"`train_data`.*folder.* metadata, which cannot be streamed, .*parquet.*`streaming=False`"),
        ("file", "file is not in a known form"),
        ("absent", r"does not exist"),
        ("holes", r"lacks 1 of its shards"),
    ):
        with pytest.raises(ValueError, match=words):
            open_stream(tmp_path / name)
