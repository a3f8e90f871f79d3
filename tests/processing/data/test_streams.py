"""Streams from folders of shards: parquet and tar files."""

import io
import json
import tarfile

import datasets
import pytest
from PIL import Image

from fastgoal.processing.data.streams import open_stream
from fastgoal.processing.images import load_image
from tests.squares import write_pairs


def write_tars(folder, entries, per_file=2):
    """Tar files of the webdataset kind: `entries` are dicts of contents by suffix."""
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
    found = rows_of(source)
    assert [row.caption for row in found] == [row["caption"] for row in rows]
    assert isinstance(found[0].image, dict)  # not decoded
    assert found[0].columns["pairs"]
    with pytest.raises(TypeError, match="a stream has no length"):
        len(source)


def test_tar_files_with_a_text_beside_each_picture(tmp_path):
    entries = [{"jpg": jpeg(40 * number), "txt": f"Picture {number}.".encode()} for number in range(5)]
    source = open_stream(write_tars(tmp_path / "tars", entries))
    assert (source.rows, source.dataset.num_shards) == (None, 3)
    for number, row in enumerate(rows_of(source)):
        assert (row.caption, row.name) == (f"Picture {number}.", f"{number:05d}")
        assert load_image(row.image).getpixel((4, 4))[0] == pytest.approx(40 * number, abs=4)


def test_tar_files_with_a_table_beside_each_picture(tmp_path):
    entries = [
        {
            "jpg": jpeg(0),
            "json": json.dumps({"captions": [f"Picture {number}", "It is black."], "pairs": [{"score": 0.5}]}).encode(),
            "txt": b"Not this.",
        }
        for number in range(3)
    ]
    source = open_stream(write_tars(tmp_path / "tars", entries))
    assert "pairs" in source.columns
    for number, row in enumerate(rows_of(source)):
        assert row.caption == f"Picture {number}. It is black."
        assert row.columns["pairs"] == [{"score": 0.5}]


def test_a_row_without_a_caption_is_named(tmp_path):
    data = datasets.Dataset.from_dict({"image": [{"bytes": jpeg(0), "path": "a.jpg"}], "caption": [" "]})
    (tmp_path / "data").mkdir()
    data.cast_column("image", datasets.Image()).to_parquet(tmp_path / "data/train.parquet")
    source = open_stream(tmp_path)
    with pytest.raises(ValueError, match=r"\(a.jpg\): 'caption' is an empty caption"):
        rows_of(source)


def test_a_data_set_of_the_hub(rows, tmp_path, monkeypatch):
    file = str(next(write_pairs(rows, tmp_path / "data").glob("*.parquet")))
    load, asked = datasets.load_dataset, []

    def of_the_hub(name, split, streaming):
        asked.append((name, split, streaming))
        return load("parquet", data_files={"train": [file]}, split=split, streaming=streaming)

    monkeypatch.setattr("datasets.load_dataset", of_the_hub)
    source = open_stream("owner/name")
    assert asked == [("owner/name", None, True)]
    assert source.name == "owner/name"
    assert [row.caption for row in rows_of(source)] == [row["caption"] for row in rows]


def test_what_is_no_stream(tmp_path, rows):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/metadata.jsonl").write_text("{}")
    write_pairs(rows, tmp_path / "holes", shards=3)
    (tmp_path / "holes/train-00001-of-00003.parquet").unlink()
    for name, words in (
        ("empty", r"has no .parquet and no .tar file"),
        ("folder", r"are trained on without --streaming"),
        ("file", r"is a file; pass its folder"),
        ("absent", r"does not exist"),
        ("holes", r"lacks 1 of its shards"),
    ):
        with pytest.raises(ValueError, match=words):
            open_stream(tmp_path / name)
