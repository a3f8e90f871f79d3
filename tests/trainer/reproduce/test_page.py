import json

import pytest

from fastgoal.trainer.reproduce.page import write_page
from fastgoal.trainer.reproduce.plan import plan
from fastgoal.trainer.reproduce.requirements import Requirement
from fastgoal.trainer.reproduce.rows import find_row


def page_of(folder, row, requirements, text_to_image=0.7821, image_to_text=0.7703):
    made = plan(find_row(row), folder / "data", folder / "out")
    made.folder.mkdir(parents=True)
    values = {"text_to_image_R@1": text_to_image, "image_to_text_R@1": image_to_text}
    report = {
        "metrics": values,
        "intervals": {key: [value - 0.01, value + 0.01] for key, value in values.items()},
        "images": 5000,
        "protocol_title": "DOCCI test",
        "device": "cpu",
        "versions": {"fastgoal": "1.0"},
    }
    (made.folder / "report.json").write_text(json.dumps(report))
    page = write_page(made, requirements)
    assert (made.folder / "page.md").read_text() == page
    return page, json.loads((made.folder / "page.json").read_text())


def test_the_difference_to_the_published_row(tmp_path):
    page, values = page_of(tmp_path, "docci-fastgoal-b16-docci", [Requirement("base", "openai/clip-vit-base-patch16")])
    # Published: 79.06 / 78.94.
    assert "| text to image | 78.21 | 77.21 to 79.21 | 79.06 | -0.85 | yes |" in page
    assert "| image to text | 77.03 | 76.03 to 78.03 | 78.94 | -1.91 | no |" in page
    assert values["text_to_image"]["difference"] == pytest.approx(-0.85)
    assert "not a test" in page
    assert "DOCCI's own test split" in page
    assert "fastgoal train --model openai/clip-vit-base-patch16" in page
    assert "Optimizer" in page.partition("## Not from the paper")[2]
    assert not any(word in page.lower() for word in ("pass", "success", "reproduced"))


def test_incomplete_data_are_not_compared(tmp_path):
    remark = "The split train of docci has 9,647 images, but the data have 24."
    page, values = page_of(
        tmp_path, "docci-fastgoal-b16-docci", [Requirement("data docci", "24 images", remark=remark)]
    )
    assert "| 79.06 | - | - |" in page
    assert f"Do not compare these numbers with the published ones:**\n\n- {remark}" in page
    assert values["text_to_image"]["difference"] is None


def test_a_row_without_a_published_number_says_which_list_is_unknown(tmp_path):
    page, _ = page_of(tmp_path, "docci5100-goal-b16-docci", [])
    assert "| not in this package | - | - |" in page
    assert "does not say which list" in page
    assert "5,100" in page
