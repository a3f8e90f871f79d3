import pytest

from fastgoal.processing.data.forms import sharegpt4v
from fastgoal.processing.data.forms.registry import load_source, recognize
from tests.published_files import draw, write


def test_the_first_rows_are_for_testing_and_the_others_for_training(tmp_path, monkeypatch):
    monkeypatch.setattr(sharegpt4v, "TEST_ROWS", 2)
    name = "share-captioner_coco_lcs_sam_1246k_1107.json"
    rows = []
    for number in range(3):
        draw(tmp_path / "data" / "sam" / "images" / f"sa_{number}.jpg", number)
        turns = [{"from": "human", "value": "Describe.\n<image>"}, {"from": "gpt", "value": f"Line {number}.\nNext."}]
        rows.append({"id": f"sa_{number}", "image": f"sam/images/sa_{number}.jpg", "conversations": turns})
    write(tmp_path / name, rows)
    for path in (tmp_path, tmp_path / name):
        assert recognize(path).name == "sharegpt4v"
        captions = {split: [row.caption for row in load_source(path, split=split)] for split in (None, "test", "train")}
        assert captions == {
            None: [f"Line {n}. Next." for n in range(3)],
            "test": captions[None][:2],
            "train": captions[None][2:],
        }
    assert load_source(tmp_path)[0].image == str(tmp_path / "data" / "sam" / "images" / "sa_0.jpg")
    with pytest.raises(ValueError, match=r"`split` must be 'train', 'test' .*'val'"):
        load_source(tmp_path, split="val")
    write(tmp_path / name, [{"image": "a.jpg", "conversations": [{"value": "Describe."}]}])
    with pytest.raises(ValueError, match=r"1107\.json entry 0: 'conversations' has no second turn"):
        load_source(tmp_path)
