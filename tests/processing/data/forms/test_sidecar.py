"""Images with text files of the same name."""

import json
import os

import pytest
from PIL import Image

from fastgoal.processing.data.forms.registry import load_source, recognize
from fastgoal.processing.data.image_folder import open_images


def write(folder, **texts):
    """Write images, and text files such as `a_txt`."""
    for name, text in texts.items():
        stem, _, suffix = name.partition("_")
        path = folder / "10_dog" / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(path.with_suffix(".PNG"))
        path.write_text(text)
    return folder


def test_each_kind_of_text_file(tmp_path):
    folder = write(tmp_path, a_txt="One.\n", b_caption="Two.", c_json=json.dumps({"caption": "Three.", "tags": ["x"]}))
    Image.new("RGB", (8, 6)).save(folder / "10_dog/without.png")
    assert recognize(folder).name == "sidecar"
    source = load_source(folder, caption_column="caption")
    assert [(row.name, row.caption) for row in (source[1], source[2])] == [
        ("10_dog/b.PNG", "Two."),
        ("10_dog/c.PNG", "Three."),
    ]
    assert source[2].columns == {"tags": ["x"]}
    with pytest.raises(ValueError, match=r"a.PNG: there is no 'caption', only .*'txt'"):
        source[0]
    assert len(source) == 3
    assert [row.name for row in open_images(folder)][-1] == "10_dog/without.png"


def test_files_that_are_no_captions(tmp_path):
    folder = write(tmp_path, a_json='{"shapes": []}')
    with pytest.raises(ValueError, match="contains images but no captions"):
        load_source(folder)
    write(folder, a_txt="One.")
    for text, words in (("[]", "must be a JSON object, got a list"), ("{", "is not JSON")):
        (folder / "10_dog/a.json").write_text(text)
        with pytest.raises(ValueError, match=rf"a.PNG: its .json file {words}"):
            load_source(folder, form="sidecar", with_captions=False)[0]


def test_a_text_file_that_leads_out_of_the_folder(tmp_path):
    folder = write(tmp_path / "data", a_txt="One.", b_txt="Two.")
    (tmp_path / "secret.txt").write_text("The password.")
    (folder / "10_dog/b.txt").unlink()
    (folder / "10_dog/b.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match=r"b.PNG: .*b.txt.* is outside the folder"):
        load_source(folder)[1]
    assert load_source(folder, allow_outside_files=True)[1].caption == "The password."
    (folder / "10_dog/b.txt").unlink()
    os.mkfifo(folder / "10_dog/b.txt")
    with pytest.raises(ValueError, match=r"b.txt cannot be read: it is a pipe"):
        load_source(folder)[1]
