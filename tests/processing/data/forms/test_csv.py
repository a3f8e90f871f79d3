"""CSV and TSV files that name image files."""

import csv

import pytest
from PIL import Image

from fastgoal.processing.data.forms.registry import load_source, recognize

ROWS = [("a.png", 'A "red" wall,\nnext to a door.'), ("sub/b.png", "5"), ("a.png", "NA")]


def write(path, rows=ROWS, header=("filepath", "title")):
    (path.parent / "images/sub").mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (8, 6)).save(path.parent / "images" / name)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_texts_stay_texts_and_images_may_be_in_another_folder(tmp_path, suffix):
    path = write(tmp_path / f"train.{suffix}")
    for given in (path, tmp_path):
        assert recognize(given).name == "csv"
        source = load_source(given, image_folder=tmp_path / "images")
        assert [(row.name, row.caption) for row in source] == ROWS
        assert source[1].image == str(tmp_path / "images/sub/b.png")
        assert source.captions([2, 0]) == ["NA", ROWS[0][1]]
        assert source.label(1) == f"{path} row 1 (sub/b.png)"


def test_columns_that_are_missing_and_rows_that_are_broken(tmp_path):
    path = write(tmp_path / "train.csv", [("../x.png", "A."), ("a.png", " ")])
    source = load_source(path, image_folder=tmp_path / "images")
    with pytest.raises(ValueError, match=r"train.csv row 0 .*outside the folder"):
        source[0]
    with pytest.raises(ValueError, match=r"train.csv row 1 \(a.png\): 'title' is an empty caption"):
        source[1]
    with pytest.raises(ValueError, match=r"`caption_column` must be a column of .*train.csv.*\['filepath', 'title'\]"):
        load_source(path, caption_column="caption")
    with pytest.raises(ValueError, match=r"`image_column` must be a column of .*train.csv.* 'filepath' or "):
        load_source(write(path, header=("name", "title")))
    with pytest.raises(ValueError, match=r"train.csv has no rows"):
        load_source(write(path, rows=[]))
    with pytest.raises(ValueError, match=r"train.csv cannot be read: .*3"):
        load_source(write(path, rows=[("a.png", "A.", "more")]))
    path.write_bytes(b"filepath,title\na.png,\xff\n")
    with pytest.raises(ValueError, match=r"train.csv cannot be read: .*UTF-?8"):
        load_source(path)


def test_two_tables_in_a_folder(tmp_path):
    write(tmp_path / "train.csv")
    write(tmp_path / "val.csv")
    with pytest.raises(ValueError, match=r"got train.csv, val.csv\. Name a file"):
        load_source(tmp_path)


def test_the_fingerprint_follows_the_table_and_the_images(tmp_path):
    path = write(tmp_path / "train.csv")
    marks = {load_source(path, image_folder=tmp_path / "images").fingerprint for _ in range(2)}
    Image.new("RGB", (800, 6)).save(tmp_path / "images/a.png")
    marks.add(load_source(path, image_folder=tmp_path / "images").fingerprint)
    marks.add(load_source(write(path, ROWS[:1]), image_folder=tmp_path / "images").fingerprint)
    assert len(marks) == 3
