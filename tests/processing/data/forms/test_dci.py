import pytest

from fastgoal.processing.data.forms.registry import load_source, recognize
from tests.published_files import write, write_dci


def test_long_captions_with_short_ones_next_to_them(tmp_path):
    write_dci(tmp_path, count=4, without_long=1)
    for folder in (tmp_path, tmp_path / "densely_captioned_images"):
        assert recognize(folder).name == "dci"
        source = load_source(folder)
        assert [row.name.rsplit("/", 1)[-1] for row in source] == ["sa_0.jpg", "sa_1.jpg", "sa_2.jpg"]
        row = source[2]
        assert row.image == str(tmp_path / "densely_captioned_images" / "photos" / "sa_2.jpg")
        assert row.caption.startswith(row.columns["short_captions"])
        assert row.columns["extended_caption"] == f"{row.columns['short_captions']}\n{row.caption}"
    assert len(load_source(tmp_path, caption_column="extended_caption")) == 4


def test_splits_of_the_dataset(tmp_path):
    write_dci(tmp_path, count=4)
    with pytest.raises(ValueError, match=r"`split` must be left out .*splits\.json.*'test'"):
        load_source(tmp_path, split="test")
    splits = {"train": ["0000.json", "0003.json"], "test": ["0002.json"]}
    write(tmp_path / "densely_captioned_images" / "splits.json", splits)
    assert [row.name[-8:] for row in load_source(tmp_path, split="train")] == ["sa_0.jpg", "sa_3.jpg"]
    with pytest.raises(ValueError, match=r"`split` must be one of 'train', 'test'.*'val'"):
        load_source(tmp_path, split="val")
