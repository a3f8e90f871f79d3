"""Zero-shot classification of drawn objects with the small trained model of the quickstart."""

import json
import re
import subprocess
import sysconfig
from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from fastgoal import EvaluationOptions, evaluate
from fastgoal.quickstart.scenes import draw_scenes
from fastgoal.trainer.evaluation.protocols.imagenet_templates import IMAGENET_TEMPLATES
from fastgoal.trainer.evaluation.protocols.zero_shot import open_classes

ROOT = Path(__file__).parents[4]
BASE = ROOT / "fastgoal" / "quickstart" / "base_clip"
PYTHON = ROOT / ".outsiders" / "clip_benchmark" / "bin" / "python"
COLORS = ("black", "blue", "brown", "green", "orange", "pink", "purple", "red", "white", "yellow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of drawn objects for each color, of uneven sizes."""
    folder = tmp_path_factory.mktemp("colors")
    for number, color in enumerate(COLORS):
        (folder / f"bright_{color}").mkdir()
        scenes = draw_scenes(4 + number % 3 * 2, seed=number, split="test", min_objects=1, colors=[color])
        for index, scene in enumerate(scenes):
            scene.image.save(folder / f"bright_{color}" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return evaluate(str(BASE), folder, EvaluationOptions(protocol="zero-shot", device="cpu", resamples=50))


def test_the_templates_are_those_of_the_publication():
    """80 different ones; the seven that CLIP's notebook selects as the best are among them."""
    selected = """\
itap of a {}.
a bad photo of the {}.
a origami {}.
a photo of the large {}.
a {} in a video game.
art of the {}.
a photo of the small {}."""
    assert len({*IMAGENET_TEMPLATES}) == len(IMAGENET_TEMPLATES) == 80
    assert {*selected.splitlines()} < {*IMAGENET_TEMPLATES}
    assert all(template.count("{}") == 1 for template in IMAGENET_TEMPLATES)


def test_the_numbers_are_those_of_a_second_implementation(folder, report):
    """Class by class, image by image, with transformers alone. The order of the classes is that of the names."""
    model, processor = CLIPModel.from_pretrained(BASE).eval(), CLIPProcessor.from_pretrained(BASE)
    classes = []
    right: dict[str, list[tuple[bool, bool]]] = {}
    with torch.no_grad():
        for color in COLORS:
            texts = [template.format(f"bright {color}") for template in IMAGENET_TEMPLATES]
            inputs = processor(text=texts, padding=True, return_tensors="pt")
            embeds = F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1).mean(0)
            classes.append(embeds / embeds.norm())
        for number, color in enumerate(COLORS):
            for path in sorted((folder / f"bright_{color}").iterdir()):
                pixels = processor(images=Image.open(path), return_tensors="pt")
                order = (torch.stack(classes) @ model.get_image_features(**pixels).pooler_output[0]).argsort(
                    descending=True
                )
                right.setdefault(color, []).append((number == order[0], number in order[:5]))
    images = [each for results in right.values() for each in results]
    assert report.images == len(images) == 58
    assert report.metrics == {
        "top_1": pytest.approx(sum(first for first, _ in images) / 58),
        "top_5": pytest.approx(sum(fifth for _, fifth in images) / 58),
        "mean_per_class": pytest.approx(
            sum(sum(first for first, _ in results) / len(results) for results in right.values()) / 10
        ),
    }
    assert 0.3 < report.metrics["top_1"] < 0.9  # neither chance nor trivial
    assert report.metrics["top_1"] != report.metrics["mean_per_class"]


def test_the_report_shows_metrics_intervals_and_sources(report):
    assert report.items == dict.fromkeys(("top_1", "top_5", "mean_per_class"), 58)
    low, high = report.intervals["mean_per_class"]
    assert low < report.metrics["mean_per_class"] < high
    assert report.facts == {"classes": "10", "templates": "80, published with CLIP for ImageNet"}
    values = json.loads(report.to_json())
    assert values["metrics"] == report.metrics
    assert (values["captions"], values["images"]) == (800, 58)
    percent = f"{100 * report.metrics['top_1']:.2f} %"
    assert f"| top 1 | {percent}" in report.to_markdown()
    assert percent in report.to_text()


def test_a_dataset_with_labels_gives_the_same_numbers(folder, report, tmp_path):
    """In memory and as parquet files, and against itself nothing differs."""
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "color": number}
        for number, color in enumerate(COLORS)
        for path in sorted((folder / f"bright_{color}").iterdir())
    ]
    names = [f"bright_{color}" for color in COLORS]
    features = datasets.Features({"image": datasets.Image(), "color": datasets.ClassLabel(names=names)})
    data = datasets.Dataset.from_list(rows, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    assert open_classes(data).texts == open_classes(str(tmp_path)).texts == open_classes(folder).texts
    options = EvaluationOptions(protocol="zero-shot", device="cpu", resamples=20)
    again = evaluate(str(BASE), str(tmp_path), options, against=str(BASE))
    assert again.metrics == report.metrics
    assert {key: value.difference for key, value in again.differences.items()} == dict.fromkeys(report.metrics, 0)
    other = data.add_column("shape", [0] * len(data)).cast_column("shape", datasets.ClassLabel(names=["a", "b"]))
    with pytest.raises(ValueError, match="`label_column` must be one of the ClassLabel columns color, shape"):
        open_classes(other)
    assert open_classes(other, label_column="color").texts == open_classes(data).texts
    with pytest.raises(ValueError, match=r"row 1 .*'color' must be a class from 0 to 9, got -1"):
        open_classes(data.map(lambda row, index: {"color": -1 if index == 1 else row["color"]}, with_indices=True))


def test_own_templates_and_names(folder, tmp_path):
    (tmp_path / "templates.txt").write_text("{}\n\nthe {} or {}\n")
    (tmp_path / "names.txt").write_text("\n".join(f"Name {number}" for number in range(10)))
    test = open_classes(folder, templates=str(tmp_path / "templates.txt"), classnames=str(tmp_path / "names.txt"))
    assert test.texts[:4] == ["Name 0", "the Name 0 or Name 0", "Name 1", "the Name 1 or Name 1"]
    assert test.facts == {
        "classes": f"10, named in {tmp_path / 'names.txt'}",
        "templates": f"2, from {tmp_path / 'templates.txt'}",
    }


def test_few_classes_and_ties():
    """Four classes have no top 5. Two classes with one name are a tie, which counts against the model."""
    score = open_classes(
        datasets.Dataset.from_dict(
            {"image": ["a", "b"], "label": [0, 3]},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c", "d"])}
            ),
        )
    ).score
    class_embeds = torch.eye(4)[[0, 0, 1, 2]].repeat_interleave(80, dim=0)
    outcomes = score(torch.eye(4)[[0, 2]], class_embeds)
    assert [*outcomes] == ["top_1", "mean_per_class"]
    assert all(entry.correct.tolist() == [False, True] for entry in outcomes.values())


def draw(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def refuse_all_models(monkeypatch):
    monkeypatch.setattr("fastgoal.trainer.evaluation.evaluate.load_model", lambda *args: pytest.fail("it was loaded"))


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        (("cat/1.png", "dog/"), {}, ("dog", "no images")),
        (("cat/1.png",), {}, ("two classes", "cat")),
        (("cat/1.png", "dog/1.png", "2.png"), {}, ("2.png", "class folder")),
        (("1.png",), {}, ("class folders",)),
        ((), {}, ("no images",)),
        (("cat/1.png", "dog/1.png"), {"templates": "a photo of a {}.\na photo"}, ("line 2", "{}", "'a photo'")),
        (("cat/1.png", "dog/1.png"), {"templates": "\n"}, ("`templates`", "empty")),
        (("cat/1.png", "dog/1.png"), {"classnames": "cat\ndog\ncow"}, ("2 classes", "cat to dog", "3 names")),
        (("cat/1.png", "dog/1.png"), {"joint": True}, ("`joint`", "zero-shot")),
        (("cat/1.png", "dog/1.png"), {"truncate_dim": [8]}, ("`truncate_dim`", "zero-shot")),
        (("cat/1.png", "dog/1.png"), {"split": "test"}, ("`split`", "'test'")),
        (("cat/1.png", "dog/1.png"), {"protocol": "folder", "classnames": "cat\ndog"}, ("`classnames`", "zero-shot")),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(tmp_path, monkeypatch, files, options, words):
    refuse_all_models(monkeypatch)
    data = tmp_path / "data"
    data.mkdir()
    for name in files:
        (data / name).mkdir(parents=True) if name.endswith("/") else draw(data, name)
    for name in ("templates", "classnames"):
        if name in options:
            (tmp_path / f"{name}.txt").write_text(options[name])
            options = {**options, name: str(tmp_path / f"{name}.txt")}
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        evaluate(str(BASE), data, EvaluationOptions(**{"protocol": "zero-shot", **options}))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ['{"0": {"filename": "a.jpg", "caption": "A.", "negative_caption": "B."}}', "[1]"])
def test_a_file_of_another_benchmark(tmp_path, monkeypatch, content):
    refuse_all_models(monkeypatch)
    (tmp_path / "replace_att.json").write_text(content)
    for data in (tmp_path, tmp_path / "replace_att.json"):
        with pytest.raises(ValueError, match=str(tmp_path)) as error:
            evaluate(str(BASE), data, EvaluationOptions(protocol="zero-shot"))
        assert "\n" not in str(error.value)


@pytest.mark.outsider
@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="clip-benchmark is missing: make outsiders")
def test_clip_benchmark_finds_the_same(folder, report, tmp_path):
    (tmp_path / "templates.json").write_text(json.dumps(IMAGENET_TEMPLATES))
    script, site_packages = ROOT / "tests" / "outsiders" / "clip_benchmark" / "run.py", sysconfig.get_path("purelib")
    command = [PYTHON, script, site_packages, BASE, folder, tmp_path / "templates.json", tmp_path / "metrics.json"]
    subprocess.run(command, check=True, timeout=300)
    names = {"acc1": "top_1", "acc5": "top_5", "mean_per_class_recall": "mean_per_class"}
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert {names[name]: value for name, value in found.items()} == pytest.approx(report.metrics, abs=1e-12)
