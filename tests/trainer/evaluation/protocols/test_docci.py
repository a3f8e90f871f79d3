import json

from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS, open_protocol
from tests.published_files import rows_of, write


def test_docci_is_the_test_split(tmp_path):
    lines = [
        {
            "example_id": f"{split}_0000{n}",
            "split": split,
            "image_file": f"{split}_0000{n}.jpg",
            "description": f" {n}.",
        }
        for split, n in [("train", 0), ("test", 1), ("qual_test", 2), ("test", 3)]
    ]
    write(tmp_path / "docci_descriptions.jsonlines", "\n".join(map(json.dumps, lines)) + "\n")
    assert rows_of("docci", tmp_path) == [("test_00001.jpg", ["1."]), ("test_00003.jpg", ["3."])]
    # The list of GOAL's public code has the test split and `qual_test_*.jpg`.
    goal = [("test_00001.jpg", ["1."]), ("qual_test_00002.jpg", ["2."]), ("test_00003.jpg", ["3."])]
    assert rows_of("docci-5100", tmp_path) == goal
    assert "5,100 images, but the data have 3" in PROTOCOLS["docci-5100"].remark(3)
    assert open_protocol("docci", tmp_path)[0].image == str(tmp_path / "images" / "test_00001.jpg")
    remark = PROTOCOLS["docci"].remark(2)
    assert "5,000 images, but the data have 2" in remark
