import pytest

from fastgoal.processing.data.forms.registry import load_source, recognize
from tests.published_files import write_docci


def test_splits_serve_training_and_evaluation(tmp_path):
    write_docci(tmp_path, train=3, test=2, qual_dev=1, qual_test=1)
    for path in (tmp_path, tmp_path / "docci_descriptions.jsonlines"):
        assert recognize(path).name == "docci"
        source = load_source(path, split="train")
        assert [row.name for row in source] == [f"images/train_0000{n}.jpg" for n in range(3)]
        assert source[1].image == str(tmp_path / "images" / "train_00001.jpg")
        assert source[1].caption.startswith("On the left is a ")
        both = load_source(path, split="test+qual_test")
        assert [row.columns["split"] for row in both] == ["test", "test", "qual_test"]
    for split in (None, "val", "test+val"):
        with pytest.raises(ValueError, match=r"`split` must be one of 'train', 'test', 'qual_dev', 'qual_test'"):
            load_source(tmp_path, split=split)


def test_images_elsewhere(tmp_path):
    write_docci(tmp_path / "docci", train=1)
    (tmp_path / "docci" / "images").rename(tmp_path / "images")
    for folder in (tmp_path, tmp_path / "images"):
        source = load_source(tmp_path / "docci", split="train", image_folder=folder)
        assert source[0].image == str(tmp_path / "images" / "train_00000.jpg")
