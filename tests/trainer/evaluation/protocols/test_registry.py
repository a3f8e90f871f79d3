"""Protocols are found by name, and take their data in every form."""

import json
import re

import pytest

from fastgoal.cli import main
from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS, open_protocol
from tests.published_files import rows_of, write


def test_the_help_lists_all_protocols(capsys):
    assert {*PROTOCOLS} == {
        *(
            "docci",
            "docci-5100",
            "dci-7805",
            "dci-7602",
            "dci-2k",
            "urban1k",
            "sharegpt4v-1k",
            "coco-5k",
            "flickr30k-1k",
            "folder",
        )
    }
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in PROTOCOLS)


def test_a_protocol_as_parquet_uses_its_split_column_and_caption_column(tmp_path):
    import datasets

    splits = ("train", "test", "qual_dev", "qual_test")
    rows = [{"image": None, "split": split, "description": f"{split}."} for split in splits]
    features = datasets.Features(
        {"image": datasets.Image(), "split": datasets.Value("string"), "description": datasets.Value("string")}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    source = open_protocol("docci", str(tmp_path))
    assert len(source) == 1
    assert "row 1" in source.label(0)
    both = open_protocol("docci-5100", str(tmp_path))
    assert [re.search(r"row \d", both.label(row))[0] for row in range(len(both))] == ["row 1", "row 3"]


def test_own_data(tmp_path):
    write(tmp_path / "metadata.jsonl", json.dumps({"file_name": "a.jpg", "captions": ["One.", "Two."]}))
    assert PROTOCOLS["folder"].remark(1) == ""
    assert rows_of("folder", tmp_path) == [("a.jpg", ["One.", "Two."])]


def test_rows_from_python_and_a_limit():
    rows = [{"image": f"{number}.jpg", "captions": [f"{number}.", "Two.", "Three."]} for number in range(4)]
    source = open_protocol("folder", rows, limit=2)
    assert [row.captions for row in source] == [["0.", "Two.", "Three."], ["1.", "Two.", "Three."]]
    assert source[1].image == "1.jpg"
    one_caption = open_protocol("urban1k", source)
    assert [row.captions for row in one_caption] == [["0."], ["1."]]


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"`protocol` must be one of .*docci.*, got 'dci'"):
        open_protocol("dci", str(tmp_path))
    for name, message in [
        ("docci", "docci_descriptions.jsonlines"),
        ("dci-7805", "'annotations'"),
        ("urban1k", "'caption'"),
        ("coco-5k", "dataset_coco.json"),
        ("dci-2k", "DCI_test.json"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_protocol(name, str(tmp_path))
    for line, message in [
        ("{}\n", "line 1: 'split' must be a text, got None"),
        ('{"split": "test", "image_file": "../../x", "description": "A."}', "outside"),
        ("[]", "line 1 must be a JSON object, got a list"),
        ("", "no rows"),
        ('{"split": "train", "image_file": "a.jpg", "description": "A."}', "`split` must be one of 'train'"),
    ]:
        write(tmp_path / "docci_descriptions.jsonlines", line)
        with pytest.raises(ValueError, match=message):
            list(open_protocol("docci", str(tmp_path)))
    write(tmp_path / "DCI_test.json", "[")
    with pytest.raises(ValueError, match=r"DCI_test\.json is not JSON"):
        open_protocol("dci-2k", str(tmp_path))


def test_files_outside_are_allowed_for_tables_of_a_protocol_too(tmp_path):
    folder = tmp_path / "data"
    write(folder / "metadata.jsonl", '{"file_name": "../outside.png", "caption": "A cup."}\n')
    write(tmp_path / "outside.png", "")
    for name in ("urban1k", "folder"):
        with pytest.raises(ValueError, match=r"\.\./outside\.png"):
            open_protocol(name, str(folder))[0]
        assert open_protocol(name, str(folder), allow_outside_files=True)[0].captions == ["A cup."]
