"""Images with several captions: joined, the longest, or each in a row of its own."""

import io
import json
import tarfile

import pytest
from PIL import Image

from fastgoal.processing.data.forms.registry import load_source

ROWS = [
    {"file_name": "a.png", "captions": ["A dog", "A brown dog runs.", "It runs."], "short_captions": "dog"},
    {"file_name": "b.png", "captions": ["A wall."]},
    {"file_name": "c.png", "captions": 5},
    {"file_name": "d.png", "captions": ["A cat.", "A cat sits."]},
]


@pytest.fixture
def folder(tmp_path):
    for row in ROWS:
        Image.new("RGB", (8, 6)).save(tmp_path / row["file_name"])
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def test_the_longest_caption_and_the_others_as_short_ones(folder):
    source = load_source(folder, captions="longest")
    assert len(source) == 4
    assert (source[0].captions, source[0].columns) == (
        ["A brown dog runs."],
        {"short_captions": ["dog", "A dog", "It runs."]},
    )
    assert source[1].columns["short_captions"] == []
    assert source.captions([3, 0]) == ["A cat sits.", "A brown dog runs."]


def test_a_row_for_each_caption(folder):
    source = load_source(folder, captions="each")
    assert len(source) == 7
    good = [0, 1, 2, 3, 5, 6]
    rows = [source[index] for index in good]
    assert [(row.name, row.caption, row.columns["image_group"]) for row in rows] == [
        ("a.png", "A dog", 0),
        ("a.png", "A brown dog runs.", 0),
        ("a.png", "It runs.", 0),
        ("b.png", "A wall.", 1),
        ("d.png", "A cat.", 3),
        ("d.png", "A cat sits.", 3),
    ]
    assert source.captions(good) == [row.caption for row in rows]
    for read in (lambda: source[4], lambda: source.captions([4])):
        with pytest.raises(ValueError, match=r"line 3 \(c.png\): 'captions' must be a text, got 5"):
            read()
    assert source.label(5).endswith("line 4 (d.png)")


def test_settings_and_fingerprints(folder):
    assert len({load_source(folder, captions=captions).fingerprint for captions in ("join", "longest", "each")}) == 3
    with pytest.raises(ValueError, match="`captions` must be one of join, longest, each, got 'all'"):
        load_source(folder, captions="all")


def test_problems_keep_their_rows(tmp_path):
    image = io.BytesIO()
    Image.new("RGB", (8, 6)).save(image, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (
            ("1.png", image.getvalue()),
            ("1.json", b'{"captions": ["One.", "Two."]}'),
            ("2.json", b'{"captions": ["Three."]}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = load_source(tmp_path, captions="each")
    assert len(source) == 3
    assert list(source.problems) == [2]
    assert source[1].caption == "Two."
