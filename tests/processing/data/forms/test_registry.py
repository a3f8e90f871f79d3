"""The registry of forms: each is recognized, can be named, and is never mistaken for another."""

import json

import pytest
from datasets import Dataset

from fastgoal.processing.data.forms.registry import FORMS, load_source, recognize

ROW = {"file_name": "a.png", "caption": "A red wall."}


def write_metadata(folder):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text(json.dumps(ROW))
    return folder


def test_a_folder_in_two_forms_must_name_one(tmp_path):
    folder = write_metadata(tmp_path / "data")
    assert recognize(folder) is FORMS["metadata"]
    Dataset.from_dict({"image": ["b.png"], "caption": ["A blue wall."]}).to_parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match=r"data fits 2 forms: metadata .*; parquet .*`form`"):
        load_source(folder)
    assert load_source(folder, form="metadata")[0].caption == "A red wall."
    assert load_source(folder, form="parquet", image_column="image")[0].caption == "A blue wall."


def test_options_that_a_form_does_not_have(tmp_path):
    folder = write_metadata(tmp_path / "data")
    with pytest.raises(ValueError, match=r"`split` must be left out for .*data.* metadata .*'test'"):
        load_source(folder, split="test")
    with pytest.raises(ValueError, match=r"`image_folder` must be left out for .*data.* metadata .*'there'"):
        load_source(folder, image_folder="there")
    with pytest.raises(ValueError, match=r"`form` must be one of .*metadata.*, got 'excel'"):
        load_source(folder, form="excel")


def test_a_folder_in_no_form_says_what_is_missing(tmp_path):
    images = tmp_path / "photographs" / "images"
    images.mkdir(parents=True)
    (images / "a.PNG").touch()
    for folder in (images, images.parent):
        with pytest.raises(
            ValueError, match=rf"{folder.name} contains images but no captions\..*metadata\.jsonl.*fastgoal caption"
        ):
            recognize(folder)
    write_metadata(images.parent)
    with pytest.raises(ValueError, match=r"no captions\. Name the folder above it, .*photographs, which"):
        recognize(images)
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "fastgoal_pairs.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pairs has no finished shards .*same command again"):
        recognize(pairs)
