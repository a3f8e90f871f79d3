import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from fastgoal.processing.data.forms.metadata import MetadataSource
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.data.image_folder import ImageFolder, open_images
from fastgoal.processing.data.sources import DatasetSource


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photographs"
    for name in ("b.jpg", "a/2.PNG", "a/10.webp", ".hidden/x.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_plain_folder_is_rows_without_captions(folder):
    source = open_images(folder)
    assert isinstance(source, ImageFolder)
    assert [row.name for row in source] == ["a/10.webp", "a/2.PNG", "b.jpg"]
    assert [row.captions for row in source] == [[], [], []]
    assert source[2].image == str(folder / "b.jpg") == source.label(2)


def test_the_fingerprint_follows_the_files(folder, tmp_path):
    before = open_images(folder).fingerprint
    (folder / "notes.txt").write_text("other notes")
    assert open_images(folder).fingerprint == before
    content = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(content[:-2] + b"xx")
    changed = open_images(folder).fingerprint
    assert changed != before
    (folder / "b.jpg").write_bytes(content)
    assert open_images(folder).fingerprint == before
    (folder / "b.jpg").rename(folder / "c.jpg")
    assert open_images(folder).fingerprint not in (before, changed)
    moved = folder.rename(tmp_path / "moved")
    (moved / "c.jpg").rename(moved / "b.jpg")
    assert open_images(moved).fingerprint == before


def test_other_sources_need_no_captions(folder, tmp_path):
    (folder / "metadata.jsonl").write_text('{"file_name": "b.jpg"}\n{"file_name": "a/2.PNG", "caption": null}\n')
    source = open_images(folder)
    assert isinstance(source, MetadataSource)
    assert [(row.name, row.captions) for row in source] == [("b.jpg", []), ("a/2.PNG", [])]
    with pytest.raises(ValueError, match="caption"):
        load_source(folder)[1]

    rows = {"image": [str(folder / "b.jpg")], "number": [1]}
    features = Features({"image": ImageFeature(), "number": Value("int32")})
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    source = open_images(tmp_path / "saved")
    assert isinstance(source, DatasetSource)
    assert source[0].captions == []


def test_errors(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty and its subfolders have no images \(\.jpg"):
        open_images(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"`split` .*plain folder of images"):
        open_images(folder, split="train")
    with pytest.raises(ValueError, match=r"absent.* does not exist"):
        open_images(tmp_path / "absent")
