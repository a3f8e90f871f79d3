import pytest

from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS, open_protocol
from tests.published_files import rows_of, write

FILE = "share-captioner_coco_lcs_sam_1246k_1107.json"


def test_the_first_thousand(tmp_path):
    entries = [
        {
            "id": str(n),
            "image": f"sam/images/sa_{n}.jpg",
            "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": f"Line {n}\nand more."}],
        }
        for n in range(1003)
    ]
    write(tmp_path / FILE, entries)
    rows = rows_of("sharegpt4v-1k", tmp_path)
    assert len(rows) == 1000
    assert PROTOCOLS["sharegpt4v-1k"].remark(1000) == ""
    assert rows[7] == ("sa_7.jpg", ["Line 7 and more."])
    write(tmp_path / FILE, [{"image": "a.jpg", "conversations": [{"value": "?"}]}])
    with pytest.raises(ValueError, match="entry 0: 'conversations'"):
        open_protocol("sharegpt4v-1k", str(tmp_path))
