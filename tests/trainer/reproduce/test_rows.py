import re
import shlex
import string

import pytest

from fastgoal.trainer.evaluation.protocols.published import TEST_LISTS, published_rows
from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS
from fastgoal.trainer.reproduce.plan import plan
from fastgoal.trainer.reproduce.requirements import HOMES
from fastgoal.trainer.reproduce.rows import find_row, read_rows

ROWS = read_rows()
# R@1 of ViT-B/16, text to image and image to text, as printed in arXiv 2605.26615.
IN_DOMAIN = {
    "global": (76.02, 75.51),
    "local": (70.33, 71.67),
    "global_local": (78.27, 78.37),
    "fastgoal": (79.06, 78.94),
}


def test_published_numbers_are_those_of_the_evaluation_report():
    models = {
        "clip-b16": "CLIP ViT-B/16, positions stretched",
        "longclip-b16": "Long-CLIP ViT-B/16",
        "goal-b16-dci": "GOAL ViT-B/16 (cross-dataset)",
        "goal-b16-docci": "GOAL ViT-B/16 (cross-dataset)",
        "fastgoal-b16-glit": "FAST-GOAL ViT-B/16 (GLIT100k)",
        "fastgoal-l14-glit": "FAST-GOAL ViT-L/14 (GLIT100k)",
    }
    checked = 0
    for row in ROWS.values():
        model = models.get(row.name.partition("-")[2])
        if row.published and model:
            (entry,) = (each for each in published_rows(row.protocol) if each.model == model)
            assert row.published == (entry.text_to_image, entry.image_to_text)
            checked += 1
    assert checked == 18
    for method, published in IN_DOMAIN.items():
        assert ROWS[f"docci-{method}-b16-docci"].published == published


@pytest.mark.parametrize("row", ROWS.values(), ids=str)
def test_rows_agree_with_their_names(row):
    assert re.fullmatch(r"[a-z0-9]+-[a-z_]+-(b16|l14)(-(docci|dci|glit))?", row.name)
    assert row.protocol in PROTOCOLS
    evaluate = shlex.split(row.commands[-1])
    assert evaluate[:2] == ["fastgoal", "evaluate"]
    assert evaluate[evaluate.index("--protocol") + 1] == row.protocol
    assert evaluate[evaluate.index("--output") + 1] == f"{{output}}/{row.name}/report.json"
    assert row.base.endswith({"b16": "patch16", "l14": "patch14"}[row.name.split("-")[2]])
    fields = {field for command in row.commands for _, field, _, _ in string.Formatter().parse(command) if field}
    assert fields <= {"data", "output", "base", "base_file", "detector", "train_data", "per_device_batch_size"}
    folders = re.findall(r"\{data\}/(\w+)", " ".join(row.commands))
    assert {*folders} <= {*HOMES}
    assert row.protocol in TEST_LISTS
    assert (row.published is None) == row.name.startswith(("docci5100", "dci2k"))


def test_rows_that_share_a_folder_make_the_same_there(tmp_path):
    """Rows in one output folder share pairs and models, so a folder must belong to one command."""
    by_output: dict[str, set[str]] = {}
    for row in ROWS.values():
        data = "own/" if row.needs_train_data else None
        for words in plan(row, tmp_path / "data", tmp_path / "output", train_data=data).commands:
            name = "--output_dir" if words[1] == "train" else "--output"
            by_output.setdefault(words[words.index(name) + 1], set()).add(shlex.join(words))
    assert all(len(commands) == 1 for commands in by_output.values())


def test_unknown_rows():
    with pytest.raises(ValueError, match=r"`row` must be .* got 'docci-clip-b6': did you mean docci-clip-b16\?"):
        find_row("docci-clip-b6")
