import json
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import fastgoal
from fastgoal import EvaluationOptions
from fastgoal.quickstart.tour import BASE
from fastgoal.trainer.evaluation.protocols.sugarcrepe import open_folder
from tests.composition_files import read_entries, write_sugarcrepe

ROOT = Path(__file__).parents[4]
OUTSIDERS = ROOT / ".outsiders"
needs_sugarcrepe = pytest.mark.skipif(
    not all((OUTSIDERS / name).is_dir() for name in ("sugarcrepe", "open_clip")),
    reason="SugarCrepe or open_clip is missing: make outsiders",
)
COUNTS = {"replace_obj": 24, "replace_att": 20, "swap_att": 12, "add_obj": 9, "add_att": 10}


@pytest.fixture(scope="module")
def trained():
    return CLIPModel.from_pretrained(BASE).eval(), CLIPProcessor.from_pretrained(BASE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sugarcrepe")
    write_sugarcrepe(folder, **COUNTS)
    return folder


def evaluate(trained, folder, **options):
    options = EvaluationOptions(protocol="sugarcrepe", resamples=20, **options)
    return fastgoal.evaluate(trained[0], folder, options, processor=trained[1])


def share_right(trained, file, images) -> float:
    """The accuracy by the model's own logits, one entry at a time."""
    model, processor = trained
    right = 0
    for entry in read_entries(file):
        texts = [entry["caption"], entry["negative_caption"]]
        inputs = processor(images=Image.open(images / entry["filename"]), text=texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            first, second = model(**inputs).logits_per_image[0].tolist()
        right += first > second
    return right / len(read_entries(file))


def test_accuracies_are_those_of_the_models_own_logits(trained, folder):
    report = evaluate(trained, folder)
    expected = {name: share_right(trained, folder / f"{name}.json", folder / "val2017") for name in COUNTS}
    assert {0.0, 1.0}.isdisjoint(expected.values())  # or the items would be too easy to test anything
    expected |= {
        "mean_of_replace": (expected["replace_obj"] + expected["replace_att"]) / 2,
        "mean_of_swap": expected["swap_att"],
        "mean_of_add": (expected["add_obj"] + expected["add_att"]) / 2,
        "mean_of_subsets": sum(expected.values()) / 5,
        "all_items": sum(expected[name] * count for name, count in COUNTS.items()) / 75,
    }
    assert report.metrics == pytest.approx(expected)
    assert [*report.metrics] == [*expected]
    assert report.items == {**COUNTS, **{"mean_of_replace": 44, "mean_of_swap": 12, "mean_of_add": 19}} | {
        "mean_of_subsets": 75,
        "all_items": 75,
    }
    assert "7,511 items, but the data have 75" in report.facts["note"]
    low, high = report.intervals["all_items"]
    assert 0 < low < report.metrics["all_items"] < high < 1


@needs_sugarcrepe
@pytest.mark.outsider
@pytest.mark.slow
def test_sugarcrepes_own_code_gives_the_same_accuracies(trained, folder, tmp_path):
    script = ROOT / "tests" / "outsiders" / "sugarcrepe" / "run.py"
    command = [OUTSIDERS / "open_clip" / "bin" / "python", script, OUTSIDERS / "sugarcrepe", BASE, folder]
    subprocess.run([*command, tmp_path / "accuracies.json"], check=True, timeout=300)
    metrics = evaluate(trained, folder).metrics
    assert json.loads((tmp_path / "accuracies.json").read_text()) == {
        name: pytest.approx(metrics[name]) for name in COUNTS
    }


def test_exchanged_captions_turn_right_into_wrong(trained, folder, tmp_path):
    """The negative caption of one entry becomes its caption: exactly this answer changes."""
    entries = json.loads((folder / "add_att.json").read_text())
    before = evaluate(trained, folder).metrics["add_att"]

    def accuracy() -> float:
        (tmp_path / "add_att.json").write_text(json.dumps(entries))
        images = str(folder / "val2017")
        return evaluate(trained, tmp_path / "add_att.json", image_folder=images).metrics["add_att"]

    for number, entry in enumerate(entries.values()):
        entry["caption"], entry["negative_caption"] = entry["negative_caption"], entry["caption"]
        if number == 0:
            assert abs(accuracy() - before) == pytest.approx(0.1)
    assert accuracy() == pytest.approx(1 - before)
    for entry in entries.values():
        entry["negative_caption"] = entry["caption"]
    assert accuracy() == 0  # ties


def test_difference_to_another_model_is_paired(trained, folder, tiny_clip):
    options = EvaluationOptions(protocol="sugarcrepe", resamples=20, limit=6)
    report = fastgoal.evaluate(trained[0], folder, options, processor=trained[1], against=tiny_clip)
    difference = report.differences["all_items"]
    assert report.items["all_items"] == 6 * len(COUNTS)
    assert difference.difference == pytest.approx((difference.only_ours - difference.only_theirs) / 30)
    assert difference.only_ours > 0


def test_missing_keys_are_named(folder, tmp_path):
    entries = json.loads((folder / "add_att.json").read_text())
    del entries["4"]["negative_caption"]
    (tmp_path / "add_att.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"add_att\.json entry '4': 'negative_caption' must be a text, got None"):
        open_folder(tmp_path)
