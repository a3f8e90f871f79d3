"""Rows in memory that name image files."""

import pytest
from PIL import Image

from fastgoal.processing.data.forms.form import SourceOptions
from fastgoal.processing.data.forms.rows import RowsSource

ROWS = [("file entry 0", {"image": "a.png", "caption": "A.", "id": 7}), ("file entry 1", {"image": "../b.png"})]


def test_rows_their_labels_and_the_folder_of_images(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    source = RowsSource(tmp_path / "file", ROWS, tmp_path, SourceOptions())
    assert (source[0].image, source[0].captions, source[0].columns) == (str(tmp_path / "a.png"), ["A."], {"id": 7})
    assert source.label(0) == "file entry 0 (a.png)"
    with pytest.raises(ValueError, match=r"file entry 1 \(../b.png\): there is no 'caption'"):
        source[1]
    with pytest.raises(ValueError, match=r"file entry 1 .*outside the folder"):
        RowsSource(tmp_path / "file", ROWS, tmp_path, SourceOptions(with_captions=False))[1]
    with pytest.raises(ValueError, match="file has no rows"):
        RowsSource(tmp_path / "file", [], tmp_path, SourceOptions())


def test_the_fingerprint_follows_rows_and_image_files(tmp_path):
    marks = set()
    for width in (8, 800):
        Image.new("RGB", (width, 6)).save(tmp_path / "a.png")
        for rows in (ROWS, ROWS[:1], ROWS):
            marks.add(RowsSource(tmp_path / "file", rows, tmp_path, SourceOptions()).fingerprint)
    assert len(marks) == 4
