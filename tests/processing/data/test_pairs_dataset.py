"""The dataset of pairs: its columns, single rows, and folders in any state."""

import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fastgoal.processing.data.pairs_dataset import COLUMNS, PairsFolder, features


def row(number):
    return {
        "image": {"bytes": bytes([number]), "path": f"{number}.png"},
        "file_name": f"{number}.png",
        "caption": "A. B.",
        "width": 8,
        "height": 6,
        "regions": [{"box": [0.0, 0.0, 4.0, 3.0], "score": 0.5, "label": "x", "source": "default"}],
        "sentences": [{"start": 0, "end": 2}, {"start": 3, "end": 5}],
        "pairs": [
            {"sentence": 0, "region": 0, "score": 0.25, "best": False},
            {"sentence": 1, "region": 0, "score": 0.5, "best": True},
        ],
    }


def write(folder, counts, row_group=3):
    """Shards of some rows each, numbered through."""
    (folder / "data").mkdir(parents=True)
    start = 0
    for number, count in enumerate(counts):
        rows = [row(start + place) for place in range(count)]
        start += count
        table = pyarrow.Table.from_pylist(rows, schema=features().arrow_schema)
        path = folder / f"data/train-{number:05d}-of-{len(counts):05d}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=row_group)
    return folder


def test_columns_have_these_types():
    schema = features().arrow_schema
    assert schema.names == list(COLUMNS)
    assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"
    assert schema.field("width").type == schema.field("height").type == pyarrow.int32()
    regions = schema.field("regions").type.value_type
    assert regions.field("box").type == pyarrow.list_(pyarrow.float32(), 4)
    assert (str(regions.field("score").type), str(regions.field("source").type)) == ("float", "string")
    assert schema.field("sentences").type.value_type.field("end").type == pyarrow.int32()
    assert schema.field("pairs").type.value_type.field("best").type == pyarrow.bool_()


def test_rows_are_read_by_number_and_in_batches(tmp_path):
    folder = PairsFolder(write(tmp_path / "pairs", [7, 0, 4]))
    assert (len(folder), folder.rows, folder.missing, folder.manifest, folder.skipped) == (11, [7, 0, 4], [], {}, [])
    assert [batch.num_rows for batch in folder.batches(["caption"], 5)] == [5, 2, 4]
    found = list(folder.read([10, 0, 6, 7, 2, 0]))
    assert [number for number, _ in found] == [0, 0, 2, 6, 7, 10]
    assert all(read == row(number) for number, read in found)


def test_an_unfinished_folder_can_be_read(tmp_path):
    path = write(tmp_path / "pairs", [2, 2, 2])
    (path / "data/train-00001-of-00003.parquet").unlink()
    (path / ".fastgoal").mkdir()
    skipped = [{"row": 5, "reason": "5.png is broken."}]
    for number, entries in ((0, []), (2, skipped)):
        record = path / f".fastgoal/train-0000{number}-of-00003.json"
        record.write_text(json.dumps({"rows": 2, "skipped": entries}))
    (path / ".fastgoal/run.json").write_text(json.dumps({"pid": 1, "host": "x"}))
    folder = PairsFolder(path)
    assert folder.missing == ["train-00001-of-00003.parquet"]
    assert folder.skipped == skipped
    manifest = {"settings": {}, "summary": {"skipped": []}}
    (path / "fastgoal_pairs.json").write_text(json.dumps(manifest))
    assert (PairsFolder(path).manifest, PairsFolder(path).skipped) == (manifest, [])


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a folder.*fastgoal pairs"):
        PairsFolder(tmp_path / "absent")
    with pytest.raises(ValueError, match="is empty"):
        PairsFolder(tmp_path)
    (tmp_path / "fastgoal_pairs.json").write_text("{}")
    with pytest.raises(ValueError, match="has not finished a shard yet"):
        PairsFolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"make pairs first with `fastgoal pairs"):
        PairsFolder(tmp_path)
    path = write(tmp_path / "pairs", [2])
    shard = path / "data/train-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(shard)
    pyarrow.parquet.write_table(table.drop_columns(["width", "pairs"]), shard)
    with pytest.raises(ValueError, match=r"00001.parquet lacks the columns width, pairs; it has image, file_name"):
        PairsFolder(path)
    sentences = table["sentences"].to_pylist()
    place = table.schema.names.index("sentences")
    ends = pyarrow.array([[{"start": entry["start"]} for entry in entries] for entries in sentences])
    pyarrow.parquet.write_table(table.set_column(place, "sentences", ends), shard)
    with pytest.raises(ValueError, match=r"lacks the columns sentences\.end"):
        PairsFolder(path)
    pyarrow.parquet.write_table(table, shard)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"00001.parquet cannot be read .*delete it and run that command again"):
        PairsFolder(path)
    empty = Path(shutil.copytree(write(tmp_path / "none", [0]), tmp_path / "copy"))
    with pytest.raises(ValueError, match="no rows in its 1 parquet files"):
        PairsFolder(empty)
