import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import fastgoal
from fastgoal import EvaluationOptions
from fastgoal.quickstart.tour import BASE
from fastgoal.trainer.evaluation.protocols.winoground import open_examples
from tests.composition_files import write_winoground
from tests.published_files import write_lines

COUNT = 24


@pytest.fixture(scope="module")
def trained():
    return CLIPModel.from_pretrained(BASE).eval(), CLIPProcessor.from_pretrained(BASE)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("winoground")
    return folder, write_winoground(folder, COUNT)


def evaluate(trained, data, **options):
    options = EvaluationOptions(protocol="winoground", resamples=20, **options)
    return fastgoal.evaluate(trained[0], data, options, processor=trained[1])


def expected_scores(trained, folder, rows) -> dict[str, float]:
    """The scores by the model's own logits, example by example."""
    model, processor = trained
    right: dict[str, list[bool]] = {}
    for row in rows:
        images = [Image.open(folder / "images" / f"{row[name]}.png") for name in ("image_0", "image_1")]
        texts = [row["caption_0"], row["caption_1"]]
        with torch.no_grad():
            outputs = model(**processor(images=images, text=texts, return_tensors="pt", padding=True))
        (a, b), (c, d) = outputs.logits_per_image.tolist()
        scores = {"text": a > b and d > c, "image": a > c and d > b, "group": a > b and d > c and a > c and d > b}
        for name, value in scores.items():
            right.setdefault(name, []).append(value)
            right.setdefault(f"{name}_{row['collapsed_tag'].lower()}", []).append(value)
    return {name: sum(values) / len(values) for name, values in right.items()}


def test_scores_are_those_of_the_models_own_logits(trained, examples, tmp_path):
    """Of the files and of the table that is on the Hub."""
    import datasets

    folder, rows = examples
    expected = expected_scores(trained, folder, rows)
    report = evaluate(trained, folder)
    assert report.metrics == pytest.approx(expected)
    assert len({expected["text"], expected["image"], expected["group"]}) == 3
    assert report.items["text"] == COUNT
    assert report.items["image_both"] == COUNT // 3
    assert report.images == 2 * COUNT
    assert "400 items, but the data have 24" in report.facts["note"]

    columns = ("image_0", "image_1")
    files = [{name: folder / "images" / f"{row[name]}.png" for name in columns} for row in rows]
    images = [{name: {"bytes": path.read_bytes(), "path": path.name} for name, path in row.items()} for row in files]
    table = datasets.Dataset.from_list([{**row, **parts} for row, parts in zip(rows, images, strict=True)])
    for name in columns:
        table = table.cast_column(name, datasets.Image())
    table.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert evaluate(trained, tmp_path, split="test").metrics == pytest.approx(expected)
    some = evaluate(trained, table, limit=5).metrics
    assert some == pytest.approx(expected_scores(trained, folder, rows[:5]))


def test_exchanged_captions_turn_right_into_wrong(trained, examples, tmp_path):
    folder, rows = examples
    exchanged = [{**row, "caption_0": row["caption_1"], "caption_1": row["caption_0"]} for row in rows]
    write_lines(tmp_path / "examples.jsonl", exchanged)
    (tmp_path / "images").symlink_to(folder / "images")
    found = evaluate(trained, tmp_path, allow_outside_files=True).metrics
    assert found == pytest.approx(expected_scores(trained, folder, exchanged))
    assert found["text"] < expected_scores(trained, folder, rows)["text"]


def test_a_missing_key_is_named(examples, tmp_path):
    folder, rows = examples
    write_lines(tmp_path / "examples.jsonl", [rows[0], {**rows[1], "caption_1": None}])
    with pytest.raises(ValueError, match=r"examples\.jsonl line 2: 'caption_1' must be a text, got None"):
        open_examples(tmp_path, image_folder=folder)
    with pytest.raises(ValueError, match="`split` must be left out"):
        open_examples(folder, split="test")
    with pytest.raises(ValueError, match="`image_folder` must be left out"):
        open_examples(tmp_path / "no", image_folder=folder)
