"""Statistics of images with captions of several forms, with known values."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.pairs_dataset import PairsFolder
from fastgoal.processing.data.statistics import inspect_pairs
from fastgoal.processing.data.tokens import TokenCounter
from fastgoal.processing.data.unmatched import UnmatchedRows
from tests.known_pairs import jpeg, rows, write
from tests.processing.data.forms.test_coco import write_coco
from tests.processing.data.forms.written_forms import WRITERS
from tests.published_files import draw


def write_known(folder, **changes):
    """Write the images and captions of `known_pairs` with their boxes, as an image folder; `changes` by file name."""
    folder.mkdir()
    lines = []
    for row in rows():
        name = row["file_name"]
        (folder / name).write_bytes(row["image"]["bytes"])
        boxes = [region["box"] for region in row["regions"] if region["source"] != "default"]
        line = {"file_name": name, "caption": row["caption"], "boxes": boxes, "labels": ["thing"] * len(boxes)}
        lines.append(json.dumps(line | changes.get(name.partition(".")[0], {})))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def inspected(source, count_tokens=None, **options):
    found = UnmatchedRows(load_source(source), **options)
    return found, inspect_pairs(found, count_tokens)


def test_the_same_counts_as_pairs_of_the_same_rows(tmp_path, tiny_clip):
    counter = TokenCounter(str(tiny_clip))
    pairs = inspect_pairs(PairsFolder(write(tmp_path / "pairs", rows())), counter)
    found, facts = inspected(write_known(tmp_path / "data"), counter)
    for name in ("rows", "images", "captions", "duplicate_captions", "near_duplicate_captions", "duplicate_images"):
        assert facts[name] == pairs[name]
    assert (pairs["duplicate_captions"]["rows"], pairs["near_duplicate_captions"]["rows"]) == (2, 2)
    assert (facts["captions"]["sentence_count"], facts["captions"]["sentences"]["max"]) == (14, 5)
    words = [len(row["caption"].split()) for row in rows()]
    assert facts["captions"]["words"]["mean"] == pytest.approx(np.mean(words))
    assert facts["regions"]["by_source"] == {"column": {"candidates": 4, "chosen": 0, "best": 0}}
    assert facts["regions"]["per_image"]["max"] == 2
    assert (facts["no_detection"]["rows"], facts["no_detection"]["files"]) == (2, ["2.jpg", "4.jpg"])
    assert (facts["matched"], facts["pairs"]["count"], facts["problems"]["count"]) == (False, 0, 0)
    assert (facts["skipped"], facts["shown"]) == ([], {"sample": [0, 1, 2, 3, 4], "lowest": []})
    ((index, row),) = found.read([1])
    assert (index, row["row"], row["image"]) == (1, 1, {"bytes": jpeg("red")})


def test_a_tar(tmp_path):
    images = [
        (f"{n}.png", Image.new("RGB", (8 + n, 6)), "A dog runs. It is fast." if n < 2 else f"Cat {n}.")
        for n in (0, 1, 2)
    ]
    _, facts = inspected(WRITERS["webdataset"](tmp_path / "tars", images))
    assert (facts["rows"], facts["captions"]["sentence_count"]) == (3, 5)
    assert facts["captions"]["words"]["mean"] == pytest.approx((6 + 6 + 2) / 3)
    assert (facts["images"]["width"]["min"], facts["images"]["width"]["max"]) == (8, 10)
    assert facts["duplicate_captions"]["rows"] == 2
    assert facts["duplicate_images"]["rows"] == 0
    assert facts["regions"]["count"] == 0


def test_coco_boxes_have_corners(tmp_path):
    found, facts = inspected(write_coco(tmp_path / "coco"))
    assert facts["captions"]["sentence_count"] == 6
    assert facts["regions"]["by_source"]["column"]["candidates"] == 6
    ((_, row),) = found.read([1])
    assert [region["box"] for region in row["regions"]] == [box for _, box in draw(tmp_path / "again.jpg", 1)]
    assert {region["label"] for region in row["regions"]} == {"square"}


def test_box_options(tmp_path):
    boxes = {"things": {"bbox": [[0.5, 0.5, 0.25, 0.5]], "category": ["dog"]}}
    data = write_known(tmp_path / "data", **{str(n): boxes for n in range(5)})
    found, _ = inspected(data, boxes_column="things", box_format="xywh", box_units="fractions")
    ((_, row),) = found.read([3])
    assert row["regions"] == [{"box": [40, 30, 60, 60], "score": 1, "label": "dog", "source": "column"}]
    for options, message in (
        ({"boxes_column": "dogs"}, r"`boxes_column` .*'dogs'.* boxes, labels, things"),
        ({"box_format": "yxyx"}, r"`box_format` .*'yxyx'"),
        ({"box_units": "miles"}, r"`box_units` .*'miles'"),
        ({"limit": 0}, r"`limit`"),
        ({"language": "!"}, r"`language`"),
    ):
        with pytest.raises(ValueError, match=message):
            inspected(data, **options)


def test_broken_rows_are_listed_with_their_numbers(tmp_path):
    data = write_known(
        tmp_path / "data", **{"1": {"caption": 7}, "4": {"boxes": [[0, 0, 500, 9]], "labels": ["thing"]}}
    )
    (data / "0.jpg").unlink()
    (data / "2.jpg").write_bytes(b"no image")
    found, facts = inspected(data)
    assert [entry["row"] for entry in facts["skipped"]] == [0, 1, 2]
    for entry, words in zip(facts["skipped"], ("does not exist", "must be a text, got 7", "not an image"), strict=True):
        assert re.search(rf"line {entry['row'] + 1} .*{entry['row']}\.jpg.*{words}", entry["reason"])
    # A row with a wrong box has a good caption, and counts without boxes.
    assert facts["rows"] == 2
    assert facts["problems"]["count"] == 1
    assert re.search(
        r"line 5 \(4\.jpg\): box 0 .*500.* extends beyond .*`box_format=xywh`", facts["problems"]["first"][0]
    )
    assert facts["regions"]["count"] == 1
    assert [(index, row["row"]) for index, row in found.read([0, 1])] == [(0, 3), (1, 4)]
    assert inspected(data, limit=4)[1]["rows"] == 1
    with pytest.raises(ValueError, match=r"None of the 3 rows of .*line 1 \(0\.jpg\)"):
        inspected(data, limit=3)


def test_sizes_are_upright(tmp_path):
    data = write_known(tmp_path / "data")
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(file, "JPEG", exif=exif)
    (data / "3.jpg").write_bytes(file.getvalue())
    found, _ = inspected(data)
    assert [(row["width"], row["height"]) for _, row in found.read([2, 3])] == [(80, 60), (60, 80)]


def test_many_rows_come_in_batches(tmp_path):
    image = Image.new("RGB", (8, 8))
    (tmp_path / "data").mkdir()
    image.save(tmp_path / "data/a.png")
    lines = [json.dumps({"file_name": "a.png", "caption": f"Number {n}."}) for n in range(1500)]
    (tmp_path / "data/metadata.jsonl").write_text("\n".join(lines))
    found = UnmatchedRows(load_source(tmp_path / "data"))
    texts = [text for batch in found.batches(["caption"], 400) for text in batch.column("caption").to_pylist()]
    assert texts == [f"Number {n}." for n in range(1500)]
    assert [row["caption"] for _, row in found.read([1499, 1024, 1023])] == [
        *("Number 1023.", "Number 1024.", "Number 1499.")
    ]
    assert sum(batch.num_rows for batch in found.batches(["image.bytes"], 64)) == 1500
