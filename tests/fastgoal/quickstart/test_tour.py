"""A small quickstart writes everything it promises, and its results are those of the saved models."""

import json
import re

import pytest
from PIL import Image, ImageChops, ImageColor

from fastgoal import EvaluationOptions, FastGoalCLIPModel, FastGoalProcessor, evaluate, retrieval_metrics
from fastgoal.cli import main
from fastgoal.hub_cards.card_images import COLORS
from fastgoal.pages.charts import CURVE_BOX
from fastgoal.quickstart.scenes import draw_scenes
from fastgoal.quickstart.tour import BASE, TourSettings, result_figure, result_table, take_tour

SMALL = TourSettings(train_scenes=12, test_scenes=20, epochs=2, batch_size=6)


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour")
    lines: list[str] = []
    return folder, take_tour(folder, SMALL, say=lines.append), lines


def test_report(toured):
    folder, report, _ = toured
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    assert report["steps"] == 4
    assert report["pairs"]["images"] == 12
    assert report["pairs"]["regions"]["default"] == 60
    assert report["pairs"]["regions"]["column"] >= 36
    assert set(report["results"]) == {"base", "global", "fast_goal"}


def test_progress_lines(toured):
    folder, report, lines = toured
    regions = report["pairs"]["regions"]
    text = "\n".join(lines)
    assert f"matched {report['pairs']['pairs']} sentences to {regions['column']} objects and\n   60 " in text
    epochs = [line for line in lines if line.startswith("   Epoch ")]
    assert [line.split(":")[0].strip() for line in epochs] == ["Epoch 1 of 2", "Epoch 2 of 2"] * 2
    assert epochs[1].endswith(" steps/s, 0 s left.")
    for line, name in zip(epochs[1::2], ("global", "fast-goal"), strict=True):
        card = (folder / name / "README.md").read_text()
        loss = re.search(r"\| 4 \| ([0-9.]+) ", card)  # of the last step, in the table of losses
        assert loss is not None
        assert f"loss {float(loss[1]):.2f}, " in line


def test_results_are_those_of_the_saved_models(toured):
    folder, report, _ = toured
    for name, place in (("base", BASE), ("global", folder / "global"), ("fast_goal", folder / "fast-goal")):
        model, processor = FastGoalCLIPModel.from_base(str(place)), FastGoalProcessor.from_base(str(place))
        for captions, split in (("long", "test"), ("short", "short")):
            options = EvaluationOptions(batch_size=7, resamples=0)
            got = evaluate(model, folder / "scenes" / split, options, processor=processor)
            assert got.metrics == pytest.approx(report["results"][name][captions], abs=1e-9), (name, captions)


def test_the_base_model_knows_short_captions_and_not_long_ones(toured):
    """It was trained on short captions. With the images of others, nothing is left but chance."""
    folder, report, _ = toured
    long, short = (report["results"]["base"][captions]["text_to_image_R@1"] for captions in ("long", "short"))
    assert short > 0.8
    assert short > long + 0.4
    rows = [json.loads(line) for line in (folder / "scenes" / "short" / "metadata.jsonl").open()]
    names = [row["file_name"] for row in rows]
    images = [Image.open(folder / "scenes" / "short" / name) for name in names[1:] + names[:1]]
    model, processor = FastGoalCLIPModel.from_base(str(BASE)), FastGoalProcessor.from_base(str(BASE))
    outputs = model(**processor(images=images, text=[row["caption"] for row in rows]))
    wrong = retrieval_metrics(outputs.image_embeds, outputs.text_embeds)
    assert wrong["text_to_image_R@1"] <= 0.1  # chance: one in 20


def test_trainings_differ_from_the_base_and_from_each_other(toured):
    folder, _, _ = toured
    scales = {
        name: FastGoalCLIPModel.from_base(str(place)).visual_projection.weight
        for name, place in (("base", BASE), ("global", folder / "global"), ("fast", folder / "fast-goal"))
    }
    assert not scales["base"].equal(scales["global"])
    assert not scales["global"].equal(scales["fast"])


def test_test_scenes_are_not_trained_on(toured):
    folder, _, _ = toured
    captions = {
        name: {json.loads(line)["caption"] for line in (folder / "scenes" / name / "metadata.jsonl").open()}
        for name in ("train", "test")
    }
    assert not captions["train"] & captions["test"]


def test_pairs_can_be_inspected(toured, tmp_path):
    assert main(["inspect", str(toured[0] / "pairs"), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<td>boxes in the data</td>" in page
    assert "<td>column</td>" not in page


def test_figure_of_pairs(toured):
    folder, _, _ = toured
    with Image.open(folder / "pairs.png") as picture:
        assert picture.width > 800
        assert picture.height > 600


def test_cards_describe_the_models(toured):
    folder, _, _ = toured
    for name in ("global", "fast-goal"):
        card = (folder / name / "README.md").read_text()
        assert "on drawn scenes only" in card
        assert ("the regions that their sentences describe" in card) == (name == "fast-goal")


def test_table_shows_percentages(toured):
    _, report, _ = toured
    results = {
        name: {
            captions: {f"{direction}_R@{k}": value for direction in ("text_to_image", "image_to_text") for k in (1, 5)}
            for captions, value in values.items()
        }
        for name, values in {
            "base": {"long": 0.01, "short": 0.9},
            "global": {"long": 0.125, "short": 0.25},
            "fast_goal": {"long": 0.25, "short": 0.5},
        }.items()
    }
    results["fast_goal"]["short"]["image_to_text_R@5"] = 0.6
    lines = [line.split() for line in result_table({"results": results}).splitlines()]
    assert lines[0] == ["long", "captions", "short", "captions"]
    assert lines[1] == ["R@1", "R@5"] * 2
    assert lines[2:] == [
        ["before", "1.0", "1.0", "90.0", "90.0"],
        ["global", "loss", "alone", "12.5", "12.5", "25.0", "25.0"],
        ["FAST-GOAL", "25.0", "25.0", "50.0", "55.0"],
    ]
    assert len(result_table(report).splitlines()) == 5


def test_figure_has_a_point_for_each_model(toured):
    """Both axes start at 0 and end a tenth beyond the largest value."""
    folder, report, _ = toured
    with Image.open(folder / "results.png") as saved:
        assert ImageChops.difference(saved, result_figure(report)).getbbox() is None
    both = ("text_to_image_R@1", "image_to_text_R@1")
    shares = {"base": (0.01, 0.9), "global": (0.08, 0.3), "fast_goal": (0.095, 0.5)}
    results = {
        name: {"long": dict.fromkeys(both, long), "short": dict.fromkeys(both, short)}
        for name, (long, short) in shares.items()
    }
    figure = result_figure({"results": results})
    left, top, right, bottom = CURVE_BOX
    for long, short in shares.values():
        x, y = left + (right - left) * short / 0.99, bottom - (bottom - top) * long / 0.1045
        assert figure.getpixel((round(3 * x), round(3 * y))) == ImageColor.getrgb(COLORS[0])


def test_base_model_recognizes_single_objects():
    model, processor = FastGoalCLIPModel.from_base(str(BASE)), FastGoalProcessor.from_base(str(BASE))
    hits = total = 0
    for scene in draw_scenes(10, seed=5, split="validation"):
        crops = [scene.image.crop(box) for box in scene.boxes]
        logits = model(**processor(images=crops, text=[f"a {label}" for label in scene.labels])).logits_per_image
        hits += int((logits.argmax(dim=1) == logits.new_tensor(range(len(crops)))).sum())
        total += len(crops)
    assert hits / total > 0.8


def test_a_folder_with_other_files_is_refused(tmp_path):
    photographs = tmp_path / "scenes" / "train"
    photographs.mkdir(parents=True)
    (photographs / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"`output=.*\(scenes\)"):
        take_tour(tmp_path, TourSettings(), say=print)
    assert (photographs / "mine.jpg").read_bytes() == b"mine"
