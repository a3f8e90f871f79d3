import json

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import fastgoal
from fastgoal import EvaluationOptions
from fastgoal.quickstart.tour import BASE
from fastgoal.trainer.evaluation.protocols import aro
from tests.composition_files import named_scenes, order_cases, write_aro
from tests.published_files import write

COUNT = 40


@pytest.fixture(scope="module")
def trained():
    return CLIPModel.from_pretrained(BASE).eval(), CLIPProcessor.from_pretrained(BASE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aro")
    write_aro(folder, COUNT)
    return folder


def answers(trained, images, captions) -> list[bool]:
    """Whether the first caption of each item is the most similar one, by the model's own logits."""
    model, processor = trained
    found = []
    for image, texts in zip(images, captions, strict=True):
        with torch.no_grad():
            logits = model(**processor(images=image, text=texts, return_tensors="pt", padding=True)).logits_per_image[0]
        found.append(all(logits[0] > other for other in logits[1:]))
    return found


def evaluate(trained, data, protocol, **options):
    options = EvaluationOptions(protocol=protocol, resamples=0, **options)
    return fastgoal.evaluate(trained[0], data, options, processor=trained[1])


def image_bytes(file) -> dict:
    return {"bytes": file.read_bytes(), "path": file.name}


def mean(values) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("protocol", "subset_of", "name"),
    [
        ("aro-attribution", lambda case: tuple(case["attributes"]), "mean_of_attribute_pairs"),
        ("aro-relation", lambda case: case["relation_name"], "mean_of_relations"),
    ],
)
def test_published_mean_and_mean_of_all_cases(trained, folder, monkeypatch, protocol, subset_of, name):
    """Boxes are cut out, and rare pairs of attributes and symmetric relations are not in the published mean."""
    monkeypatch.setattr(aro, "LEAST_CASES", 10)
    file = {"aro-attribution": "visual_genome_attribution.json", "aro-relation": "visual_genome_relation.json"}[
        protocol
    ]
    cases = json.loads((folder / file).read_text())
    for case in [*cases[:2], *cases[3::4]]:  # some wrong answers, among them all of rare subsets
        case["true_caption"], case["false_caption"] = case["false_caption"], case["true_caption"]
    write(folder / "changed" / file, cases)
    images = []
    for case in cases:
        left, top = case["bbox_x"], case["bbox_y"]
        image = Image.open(folder / "images" / case["image_path"])
        images.append(image.crop((left, top, left + case["bbox_w"], top + case["bbox_h"])))
    right = answers(trained, images, [[case["true_caption"], case["false_caption"]] for case in cases])
    by_subset: dict = {}
    for case, is_right in zip(cases, right, strict=True):
        by_subset.setdefault(subset_of(case), []).append(is_right)
    kept = [by_subset[subset] for subset in list(by_subset)[:2]]  # write_aro's last subsets are rare, or "next to"
    report = evaluate(trained, folder / "changed", protocol, image_folder=str(folder / "images"))
    assert report.metrics == pytest.approx({name: mean([mean(subset) for subset in kept]), "all_items": mean(right)})
    assert len({*report.metrics.values(), mean([answer for subset in kept for answer in subset])}) == 3
    whole = [Image.open(folder / "images" / case["image_path"]) for case in cases]
    assert answers(trained, whole, [[case["true_caption"], case["false_caption"]] for case in cases]) != right
    assert report.items == {name: sum(map(len, kept)), "all_items": COUNT}
    assert report.images == COUNT


def test_the_symmetric_relations():
    assert len(aro.SYMMETRIC) == 157
    assert {"next to", "on the front of", "with", "looking through", "wrapped in"} <= aro.SYMMETRIC
    assert not {"on", "riding", "to the left of", "above", "wearing"} & aro.SYMMETRIC


def test_boxes_and_attributes_are_checked(folder, tmp_path):
    cases = json.loads((folder / "visual_genome_attribution.json").read_text())
    for changes, message in (
        ({"bbox_w": None}, "'bbox_w' must be a number, got None"),
        ({"bbox_w": "10"}, "'bbox_w' must be a number, got '10'"),
        ({"attributes": ["red"]}, "'attributes' must have 2 texts, got 1"),
        ({"attributes": "red"}, "'attributes' must be a JSON list, got a str"),
    ):
        write(tmp_path / "visual_genome_attribution.json", [cases[0], {**cases[1], **changes}])
        with pytest.raises(ValueError, match=f"visual_genome_attribution.json entry 1.*{message}"):
            aro.open_attribution(tmp_path, image_folder=folder / "images")


@pytest.fixture(scope="module")
def order(tmp_path_factory):
    folder = tmp_path_factory.mktemp("order")
    cases = order_cases(named_scenes(folder / "images", 24))
    for case in cases[::2]:  # the small model knows words, hardly their order
        case["caption_options"][1:] = [text.replace("drawing", "heart") for text in case["caption_options"][1:]]
    write(folder / "coco_order.json", cases[:18])
    write(folder / "flickr30k_order.json", cases[18:])
    return folder, cases


def test_word_order_of_files_and_of_a_table(trained, order, tmp_path):
    import datasets

    folder, cases = order
    images = [Image.open(folder / "images" / case["image"]) for case in cases]
    right = answers(trained, images, [case["caption_options"] for case in cases])
    report = evaluate(trained, folder, "aro-order")
    expected = {"coco_order": mean(right[:18]), "flickr30k_order": mean(right[18:]), "all_items": mean(right)}
    assert report.metrics == pytest.approx(expected)
    assert 0 < expected["all_items"] < 1

    columns = ("correct_caption", *(f"hard_text_{number}" for number in range(1, 5)))
    rows = [
        {
            "images": image_bytes(folder / "images" / case["image"]),
            **dict(zip(columns, case["caption_options"], strict=True)),
        }
        for case in cases
    ]
    table = datasets.Dataset.from_list(rows).cast_column("images", datasets.Image())
    table.to_parquet(tmp_path / "test.parquet")
    for data in (tmp_path, table):
        assert evaluate(trained, data, "aro-order").metrics == pytest.approx({"all_items": mean(right)})
    assert evaluate(trained, table, "aro-order", limit=7).metrics == pytest.approx({"all_items": mean(right[:7])})
    with pytest.raises(ValueError, match="no column 'hard_text_3'"):
        evaluate(trained, table.remove_columns("hard_text_3"), "aro-order")
    with pytest.raises(ValueError, match="'hard_text_3' must be a text, got None"):
        evaluate(trained, table.map(lambda row: {"hard_text_3": None}), "aro-order")


def test_captions_of_word_order_are_counted(order, tmp_path):
    folder, cases = order
    write(tmp_path / "coco_order.json", [{**cases[0], "caption_options": ["one", "two"]}])
    with pytest.raises(ValueError, match=r"coco_order\.json entry 0: 'caption_options' must have 5 texts, got 2"):
        aro.open_order(tmp_path, image_folder=folder)
    with pytest.raises(ValueError, match="`split` must be left out"):
        aro.open_order(folder, split="test")
