import pytest

from fastgoal.processing.data.forms.registry import load_source, recognize
from tests.published_files import draw, write_lines


def narrative(dataset, image, caption):
    trace = [[{"x": 0.1, "y": 0.2, "t": 0.0}]]
    timed = [{"utterance": caption, "start_time": 0.0, "end_time": 1.0}]
    row = {"dataset_id": dataset, "image_id": image, "annotator_id": 1, "caption": caption}
    return {**row, "timed_caption": timed, "traces": trace, "voice_recording": "a.ogg"}


def test_narratives_of_an_image_are_one_row(tmp_path):
    draw(tmp_path / "val2017" / "000000137576.jpg", 1)
    draw(tmp_path / "flickr30k-images" / "1007.jpg", 2)
    coco = [narrative("mscoco_val2017", "137576", text) for text in ("In this image.", "A dog.")]
    write_lines(
        tmp_path / "coco_val_localized_narratives.jsonl", [coco[0], narrative("mscoco_val2017", "7", "No."), coco[1]]
    )
    write_lines(
        tmp_path / "flickr30k_test_localized_narratives.jsonl", [narrative("flickr30k_test", "1007", "A boat.")]
    )
    assert recognize(tmp_path).name == "localized-narratives"
    assert recognize(tmp_path / "coco_val_localized_narratives.jsonl").name == "localized-narratives"
    rows = [*load_source(tmp_path, split="val")]
    assert [(row.name, row.captions) for row in rows] == [
        ("val2017/000000137576.jpg", ["In this image.", "A dog."]),
        ("val2017/000000000007.jpg", ["No."]),
    ]
    assert "traces" not in rows[0].columns
    assert load_source(tmp_path, split="test")[0].image == str(tmp_path / "flickr30k-images" / "1007.jpg")
    with pytest.raises(ValueError, match=r"`split` must be one of 'val', 'test'"):
        load_source(tmp_path)


def test_a_line_without_a_caption(tmp_path):
    path = tmp_path / "ade20k_train_localized_narratives.jsonl"
    write_lines(path, [narrative("ADE20k_train", "ADE_1", "A room."), narrative("ADE20k_train", "ADE_2", " ")])
    with pytest.raises(ValueError, match="line 2: 'caption' must be a text"):
        load_source(path)
