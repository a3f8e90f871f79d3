"""Sources: the same rows from every form of data, and errors that name the file and the line."""

import json

import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.sources import DatasetSource, SourceRow


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_folder(folder, rows, images=("a.png", "b.png")):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(images):
        (folder / name).parent.mkdir(exist_ok=True)
        PILImage.new("RGB", (8 + number, 6), (200, number, 0)).save(folder / name)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


ROWS = [
    {"file_name": "b.png", "caption": " A red wall. ", "boxes": [[0, 0, 4, 4]]},
    {"file_name": "a.png", "caption": "B."},
]


def test_a_folder_keeps_the_order_of_lines_and_other_columns(tmp_path):
    source = load_source(write_folder(tmp_path / "data", ROWS))
    assert len(source) == 2
    assert [row.name for row in source] == ["b.png", "a.png"]
    assert source[0] == SourceRow("b.png", str(tmp_path / "data/b.png"), ["A red wall."], {"boxes": [[0, 0, 4, 4]]})


def test_blank_lines_and_a_byte_order_mark(tmp_path):
    folder = write_folder(
        tmp_path / "data", ["\ufeff" + json.dumps(ROWS[0]), "", json.dumps({**ROWS[1], "caption": " "})]
    )
    source = load_source(folder)
    assert len(source) == 2
    with pytest.raises(ValueError, match=r"metadata.jsonl line 3 \(a.png\): 'caption' is an empty caption"):
        source[1]


def test_captions_are_joined_as_separate_sentences(tmp_path):
    row = {"file_name": "a.png", "captions": ["A dog", "It runs.", 'A sign says "Stop!"']}
    source = load_source(write_folder(tmp_path / "data", [row]))
    assert source[0].captions == row["captions"]
    assert source[0].caption == 'A dog. It runs. A sign says "Stop!"'


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"file_name": "a.png", "caption": "x"}', "{broken"], r"metadata.jsonl line 2 is not JSON"),
        (["[1, 2]"], r"line 1 must be a JSON object, got a list"),
        (
            [{"file_name": "a.png", "story": "x"}],
            r"no column 'caption' or 'captions' or .*, only \['file_name', 'story'\]",
        ),
        ([{"image": "a.png", "caption": "x"}], r"no column 'file_name', only \['image', 'caption'\]"),
        ([], "has no rows"),
    ],
)
def test_a_folder_that_cannot_be_read_names_file_and_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_source(write_folder(tmp_path / "data", rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "x"}, r"line 2: the column 'file_name' has no image"),
        ({"file_name": "a.png"}, r"line 2 \(a.png\): there is no 'caption'"),
        ({"file_name": "a.png", "caption": None}, "'caption' must be a text, got None"),
        ({"file_name": "a.png", "caption": []}, "got an empty list"),
        ({"file_name": "a.png", "caption": ["x", " \n"]}, r"'caption'\[1\] is an empty caption"),
        ({"file_name": "../a.png", "caption": "x"}, "is outside the folder"),
        ({"file_name": "/etc/a.png", "caption": "x"}, "is outside the folder"),
        ({"file_name": 7, "caption": "x"}, "must be a file name, got 7"),
    ],
)
def test_a_bad_row_only_fails_when_it_is_read(tmp_path, row, message):
    source = load_source(write_folder(tmp_path / "data", [ROWS[0], row]))
    assert source[0].caption == "A red wall."
    with pytest.raises(ValueError, match=message):
        source[1]


def test_columns_can_be_named(tmp_path):
    folder = write_folder(tmp_path / "data", [{"file_name": "a.png", "caption": "short", "story": "long"}])
    assert load_source(folder, caption_column="story")[0].caption == "long"
    with pytest.raises(ValueError, match=r"`caption_column` .*'tale'.*'file_name', 'caption', 'story'"):
        load_source(folder, caption_column="tale")


def test_other_paths_are_refused(tmp_path):
    file = write_folder(tmp_path / "data", ROWS) / "metadata.jsonl"
    for path, message in (
        (tmp_path, r"no captions itself\. Name a folder in it .*data\.$"),
        (tmp_path / "absent", "absent' does not exist"),
        (file, "not in a known form"),
    ):
        with pytest.raises(ValueError, match=message):
            load_source(path)
    with pytest.raises(ValueError, match=r"`split` .*'test'"):
        load_source(tmp_path / "data", split="test")


def test_datasets_of_the_hub(monkeypatch):
    made = DatasetDict(train=make_dataset(), test=make_dataset())
    monkeypatch.setattr("datasets.load_dataset", lambda name, split, streaming: made[split] if split else made)
    assert load_source("owner/name", split="test")[0].caption == "One."
    with pytest.raises(ValueError, match=r"^`split` must be one of 'train', 'test' for owner/name, .*several"):
        load_source("owner/name")

    def fail(name, split, streaming):
        raise ConnectionError("no way there")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(ValueError, match=r"no way there.*no such folder"):
        load_source("owner/name")
    with pytest.raises(ValueError, match="'pandas' does not exist"):
        load_source("pandas")


def make_dataset(captions=("One.", "Two."), names=None):
    images = [PILImage.new("RGB", (5 + number, 4)) for number in range(len(captions))]
    columns = {"image": images, "caption": list(captions)}
    features = {"image": Image(), "caption": Value("string")}
    if names:
        columns["file_name"], features["file_name"] = list(names), Value("string")
    return Dataset.from_dict(columns, features=Features(features))


def test_the_label_of_a_row_needs_no_image(monkeypatch):
    source = DatasetSource(make_dataset(names=["a.png", ""]), "data")
    read, values = [], source._values
    monkeypatch.setattr(source, "_values", lambda index: read.append(index) or values(index))
    assert source.label(0) == "data row 0 (a.png)"
    assert read == []
    assert source.label(1) == "data row 1 (row-00000001)"
    assert read == [1]


def test_saved_dataset(tmp_path):
    make_dataset().save_to_disk(tmp_path / "one")
    source = load_source(tmp_path / "one")
    assert [row.caption for row in source] == ["One.", "Two."]
    assert isinstance(source[1].image["bytes"], bytes)
    assert source[1].name == "row-00000001"
    with pytest.raises(ValueError, match=r"`split` .*'test'"):
        load_source(tmp_path / "one", split="test")
    DatasetDict(train=make_dataset(), test=make_dataset(["Three."])).save_to_disk(tmp_path / "two")
    assert load_source(tmp_path / "two", split="test")[0].caption == "Three."
    with pytest.raises(ValueError, match="`split` must be one of"):
        load_source(tmp_path / "two")


def test_parquet_folder_and_its_missing_shards(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(2):
        shard = make_dataset([f"Caption {number}."], names=[f"x{number}.png"])
        shard.to_parquet(tmp_path / f"data/train-{number:05d}-of-00002.parquet")
    source = load_source(tmp_path)
    assert [(row.name, row.caption) for row in source] == [("x0.png", "Caption 0."), ("x1.png", "Caption 1.")]
    assert "row 1 (x1.png)" in source.label(1)
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of its shards.* train-00001-of-00002\.parquet"):
        load_source(tmp_path)


def test_a_broken_image_only_fails_when_it_is_loaded(tmp_path):
    folder = write_folder(tmp_path / "data", ROWS)
    (folder / "b.png").write_bytes(b"no picture")
    assert load_source(folder)[0].name == "b.png"
    features = Features({"image": Image(decode=False), "caption": Value("string")})
    rows = {"image": [{"bytes": b"no picture", "path": "b.png"}], "caption": ["x"]}
    Dataset.from_dict(rows, features=features).cast_column("image", Image()).save_to_disk(tmp_path / "saved")
    assert load_source(tmp_path / "saved")[0].name == "b.png"


def test_fingerprint_follows_captions_image_files_and_nothing_else(tmp_path):
    folder = write_folder(tmp_path / "data", ROWS)
    first = load_source(folder).fingerprint
    assert load_source(folder).fingerprint == first
    assert load_source(write_folder(tmp_path / "copy", ROWS)).fingerprint == first
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes() + b"more")
    second = load_source(folder).fingerprint
    (folder / "a.png").unlink()
    third = load_source(folder).fingerprint
    write_folder(tmp_path / "copy", [ROWS[1], ROWS[0]])
    assert len({first, second, third, load_source(tmp_path / "copy").fingerprint}) == 4


def test_fingerprint_of_parquet_and_saved_data(tmp_path):
    marks: dict[str, list[str]] = {"parquet": [], "saved": []}
    for number, caption in enumerate(("One.", "Two.", "One.")):
        folder = tmp_path / f"parquet{number}"
        folder.mkdir()
        make_dataset([caption]).to_parquet(folder / "data.parquet")
        make_dataset([caption]).save_to_disk(tmp_path / f"saved{number}")
        for kind, found in marks.items():
            found.append(load_source(tmp_path / f"{kind}{number}").fingerprint)
    for first, other, again in marks.values():
        assert first == again
        assert first != other


@pytest.mark.parametrize("kind", ["folder", "saved"])
def test_a_row_is_read_once_and_captions_by_column(tmp_path, monkeypatch, kind):
    if kind == "saved":
        make_dataset().save_to_disk(tmp_path / "data")
    else:
        write_folder(tmp_path / "data", ROWS)
    source = load_source(tmp_path / "data")
    read, values = [], source._values
    monkeypatch.setattr(source, "_values", lambda index: read.append(index) or values(index))
    captions = [source[index].caption for index in range(2)]
    assert read == [0, 1]
    assert captions == source.captions(range(2)) == [source.captions([index])[0] for index in range(2)]
    assert source.captions([0]) == captions[:1]
    # A dataset's captions leave its images alone.
    assert read == ([0, 1] if kind == "saved" else [0, 1, 0, 1, 0, 1, 0])


def test_a_caption_that_is_none_is_named_by_its_row(tmp_path):
    make_dataset(["One.", None]).save_to_disk(tmp_path / "data")
    source = load_source(tmp_path / "data")
    for read in (lambda: source.captions(range(2)), lambda: source.captions([1]), lambda: source[1]):
        with pytest.raises(ValueError, match=r"data row 1.*: 'caption' must be a text, got None"):
            read()
