"""Files that are damaged, missing or belong to two datasets are named by all readers."""

import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastgoal.processing.data.forms.registry import load_source, open_stream
from fastgoal.processing.data.locations import missing_shards, parquet_of_split
from fastgoal.processing.data.pairs_dataset import PairsFolder

IMAGE = pa.array([{"bytes": b"x", "path": "a.png"}])
TABLE = pa.table({"image": IMAGE, "caption": ["a"]})


def write(folder, *names, table=TABLE):
    folder.mkdir(exist_ok=True)
    for name in names:
        pq.write_table(table, folder / name)
    return folder


def refused(folder, words, openers=(load_source, open_stream, PairsFolder)):
    for opener in openers:
        with pytest.raises(ValueError, match=words) as error:
            opener(folder)
        assert "\n" not in str(error.value)


def test_files_of_parquet_that_cannot_be_read(tmp_path):
    whole = write(tmp_path / "a", "train.parquet") / "train.parquet"
    content = whole.read_bytes()
    for damaged in (b"", content[:200], b"version https://git-lfs.github.com/spec/v1\n"):
        whole.write_bytes(damaged)
        refused(whole.parent, r"train.parquet cannot be read \(.*\): it is truncated or not a parquet file")
    whole.unlink()
    os.mkfifo(whole)
    refused(whole.parent, r"train.parquet cannot be read \(it is not a regular file\)")
    refused(write(tmp_path / "none", "train.parquet", table=TABLE[:0]), "no rows in|lacks", [load_source])
    refused(tmp_path / "none", "no rows in", [open_stream])


def test_shards_of_two_datasets(tmp_path):
    names = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet")
    folder = write(tmp_path / "a", *names)
    assert [path.name for path in parquet_of_split(folder, None)] == [*names]
    write(folder, "test-00000-of-00001.parquet")  # another split is no other dataset
    assert [path.name for path in parquet_of_split(folder, "train")] == [*names]
    (folder / "test-00000-of-00001.parquet").unlink()
    write(folder, "train-00000-of-00001.parquet")
    words = r"train-00000-of-00001.parquet and \S*train-00000-of-00002.parquet are shards of two datasets, of 1 "
    refused(folder, words)
    (folder / "train-00000-of-00001.parquet").unlink()
    write(folder, names[1], table=pa.table({"image": IMAGE, "caption": [3]}))
    refused(folder, r"00001-of-00002.parquet and \S*00000-\S* have different columns \(caption\)", [load_source])
    write(folder, names[1], table=pa.table({"image": IMAGE, "caption": pa.array(["a"], pa.large_string())}))
    assert len(parquet_of_split(folder, "train")) == 2
    (folder / names[0]).unlink()
    assert missing_shards(folder.glob("train*")) == [names[0]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: os.truncate(next(folder.glob("*.arrow")), 200),
        lambda folder: next(folder.glob("*.arrow")).unlink(),
        lambda folder: (folder / "state.json").write_text("{"),
        lambda folder: (folder / "state.json").write_text("[]"),
        lambda folder: (folder / "dataset_info.json").write_text("x"),
        lambda folder: (folder / "dataset_info.json").unlink(),
    ],
)
def test_saved_datasets_that_are_damaged(tmp_path, spoil):
    datasets.Dataset.from_list([{"image": "a.png", "caption": "a"}]).save_to_disk(str(tmp_path / "saved"))
    spoil(tmp_path / "saved")
    refused(tmp_path / "saved", r"`source=\S*saved` cannot be loaded: .* Its files are damaged", [load_source])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            '{"file_name": "a.png", "caption": "half \\ud800"}',
            r"line 1 \(a.png\): 'caption' contains an unpaired surrogate",
        ),
        ('{"file_name": "a.png", "caption": "' + "\ud800" + '"}', "'caption' contains an unpaired surrogate"),
        ('{"file_name": "a\\ud800.png", "caption": "a"}', "is not a file name"),
        ('{"file_name": "a\\u0000.png", "caption": "a"}', "is not a file name .*null"),
        ('{"file_name": "a.png", "caption": ' + "[" * 10**5 + "]" * 10**5 + "}", "line 1 is JSON with too many nested"),
        ('{"file_name": "a.png", "caption": "a", "x": ' + "9" * 5000 + "}", "line 1 is not JSON: Exceeds the limit"),
        ('{"file_name": "a.png", "caption": [["a"]]}', r"'caption'\[0\] must be a text, got \['a'\]"),
        ('{"file_name": ["a.png"], "caption": "a"}', r"'file_name' must be a file name, got \['a.png'\]"),
    ],
)
def test_lines_of_metadata(tmp_path, line, words):
    (tmp_path / "metadata.jsonl").write_bytes(line.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=words):
        load_source(tmp_path)[0]


def test_metadata_in_another_encoding(tmp_path):
    text = (json.dumps({"file_name": "a.png", "caption": "a"}) + "\n") * 2
    (tmp_path / "metadata.jsonl").write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match=r"metadata.jsonl line 2 is not"):
        load_source(tmp_path)
