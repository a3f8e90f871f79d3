"""Image folders of `datasets`: metadata in three forms of file."""

import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from fastgoal.processing.data.forms.registry import load_source


def write(folder, suffix, column, rows):
    folder.mkdir(exist_ok=True)
    for name, _ in rows:
        Image.new("RGB", (8, 6), (len(name), 0, 0)).save(folder / name)
    path = folder / f"metadata.{suffix}"
    table = [{"file_name": name, column: text} for name, text in rows]
    if suffix == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(table), path)
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["file_name", column], *rows])
    else:
        path.write_text("\n".join(map(json.dumps, table)))
    return folder


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("column", ["caption", "text", "prompt"])
def test_datasets_reads_the_same_rows(tmp_path, monkeypatch, suffix, column):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [("b.png", 'One, "two",\nthree.'), ("aa.png", "Four.")]
    folder = write(tmp_path / "data", suffix, column, rows)
    source = load_source(folder)
    assert [(row.name, row.caption) for row in source] == rows
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    theirs = theirs.cast_column("image", datasets.Image(decode=False))
    assert sorted((str(row.image), row.caption) for row in source) == sorted(
        (row["image"]["path"], row[column]) for row in theirs
    )


def test_lists_of_captions_in_parquet(tmp_path):
    folder = write(tmp_path / "data", "parquet", "captions", [("a.png", ["One", "Two."])])
    assert load_source(folder)[0].captions == ["One", "Two."]


def test_two_files_of_metadata(tmp_path):
    for suffix in ("csv", "jsonl"):
        write(tmp_path / "data", suffix, "text", [("a.png", "One.")])
    with pytest.raises(ValueError, match=r"2 files of metadata, metadata.jsonl and metadata.csv"):
        load_source(tmp_path / "data")
