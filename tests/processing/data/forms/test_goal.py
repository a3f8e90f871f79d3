import json

import pytest
from PIL import Image

from fastgoal.processing.data.forms.registry import load_source, recognize
from fastgoal.trainer.batches.rows import TrainingData, check_rows
from tests.published_files import caption_of, draw, write, write_goal_pairs

FILE = "docci_segment_sim_bbox_del_org.json"


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        draw(tmp_path / "images" / f"train_0000{number}.jpg", number)
    write_goal_pairs(tmp_path / FILE, [(f"train_0000{number}.jpg", number) for number in range(3)])
    return tmp_path


def test_boxes_and_sentences_become_pairs(folder):
    for path in (folder, folder / FILE):
        assert recognize(path).name == "goal"
        data = TrainingData(load_source(path))
        check_rows(data, "train_dataset", needs_pairs=True)
        row, things = data[1], draw(folder / "again.jpg", 1)
        assert row.caption == caption_of(things)
        assert row.image == str(folder / "images" / "train_00001.jpg")
        assert [region["box"] for region in row.regions] == [box for _, box in things]
        texts = [row.caption[span["start"] : span["end"]] for span in row.sentences]
        assert texts == [sentence for sentence, _ in things]
        assert [(pair["sentence"], pair["region"], pair["best"]) for pair in row.pairs] == [(0, 0, False), (1, 1, True)]


def test_the_trained_pair_is_the_one_that_goals_code_takes(folder, tiny_clip):
    """GOAL's code trains on `max(item["segment"], key=similarity_score)`, with the box in pixels of the original."""
    from fastgoal import FastGoalCollator, FastGoalProcessor

    entry = json.loads((folder / FILE).read_text())[2]
    segment = max(entry["segment"], key=lambda each: each["similarity_score"])
    box = [segment["bbox_coordinates"][corner] for corner in ("x1", "y1", "x2", "y2")]
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    batch = FastGoalCollator(processor)([TrainingData(load_source(folder))[2]])
    crop = Image.open(folder / "images" / "train_00002.jpg").crop(box)
    options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    expected = processor.image_processor([crop], **options)["pixel_values"]
    assert (batch["local_pixel_values"].float() - expected.float()).abs().max() <= 1
    tokens = processor.tokenizer(segment["caption"])["input_ids"]
    assert batch["local_input_ids"][0, : len(tokens)].tolist() == tokens


def test_segments_that_share_a_crop_or_have_none(folder):
    content = json.loads((folder / FILE).read_text())
    content[0]["segment"][1]["bbox_coordinates"] = content[0]["segment"][0]["bbox_coordinates"]
    del content[1]["segment"][1]["bbox_coordinates"]
    content[2]["segment"] = []
    write(folder / FILE, content)
    rows = [row.columns for row in load_source(folder)]
    assert [len(row["regions"]) for row in rows] == [1, 1]
    assert [[pair["region"] for pair in row["pairs"]] for row in rows] == [[0, 0], [0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": "A cat"}, "entry 1 'segment' entry 0: the sentence 'A cat' is not in 'original_caption'"),
        ({"similarity_score": "high"}, "'similarity_score' must be a number, got 'high'"),
        (
            {"bbox_coordinates": {"x1": 9, "y1": 0, "x2": 9, "y2": 4}},
            r"entry 0: the box \[9.0, 0.0, 9.0, 4.0\] has no area",
        ),
        ({"bbox_coordinates": {"x1": 9}}, "'y1' must be a number, got None"),
    ],
)
def test_broken_segments_name_the_entry(folder, change, message):
    content = json.loads((folder / FILE).read_text())
    content[1]["segment"][0].update(change)
    write(folder / FILE, content)
    with pytest.raises(ValueError, match=message):
        load_source(folder)
