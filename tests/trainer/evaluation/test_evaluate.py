"""`fastgoal.evaluate`, the function behind the command."""

import json
import sys

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import fastgoal
from fastgoal import EvaluationOptions
from fastgoal.trainer.evaluation.evaluate import check_again
from fastgoal.trainer.evaluation.measures.embeddings import encode_source
from fastgoal.trainer.evaluation.measures.intervals import Difference, Interval
from fastgoal.trainer.evaluation.measures.retrieval import retrieval_metrics
from fastgoal.trainer.evaluation.protocols.registry import open_protocol
from fastgoal.trainer.evaluation.report import gain_rows, select_gains


@pytest.fixture(scope="module")
def loaded(tiny_clip):
    return CLIPModel.from_pretrained(tiny_clip).eval(), CLIPProcessor.from_pretrained(tiny_clip)


@pytest.fixture(scope="module")
def pictures():
    return [
        {"image": Image.new("RGB", (40, 36), (60 * n, 9, 200 - 40 * n)), "caption": f"Picture {n}."} for n in range(4)
    ]


def test_a_loaded_model_and_rows(loaded, pictures):
    """The numbers are those of the embeddings that the model itself gives."""
    model, processor = loaded
    report = fastgoal.evaluate(
        model, pictures, EvaluationOptions(ks=(1, 2), resamples=20, check=True), processor=processor
    )
    inputs = processor(
        images=[row["image"] for row in pictures],
        text=[row["caption"] for row in pictures],
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        outputs = model(**inputs)
    expected = retrieval_metrics(outputs.image_embeds, outputs.text_embeds, ks=(1, 2))
    assert report.metrics == pytest.approx(expected, abs=1e-9)
    assert isinstance(report, fastgoal.EvaluationReport)
    assert (report.images, report.captions, report.device, report.dtype) == (4, 4, "cpu", "float32")
    assert report.checked
    assert report.joint is report.against is report.differences is report.published is None
    low, high = report.intervals["text_to_image_R@1"]
    assert low <= report.metrics["text_to_image_R@1"] <= high
    assert json.loads(report.to_json()) == json.loads(json.dumps(report.to_dict()))
    assert report.to_markdown().startswith(f"# {report.model} on own data")


def test_compressed_vectors_are_in_the_report(loaded, pictures):
    model, processor = loaded
    options = EvaluationOptions(ks=(1, 2), resamples=20, truncate_dim=(8,), vectors=("float32", "binary"))
    report = fastgoal.evaluate(model, pictures, options, processor=processor)
    full = len(encode_source(model, processor, open_protocol("folder", pictures)).image_embeds[0])
    kept = [(entry.width, entry.vectors) for entry in report.compressed]
    assert kept == [
        *((full, name) for name in ("binary", "binary, rescored")),
        *((8, name) for name in ("float32", "binary", "binary, rescored")),
    ]
    # Rescoring four images with the original vectors ranks all of them as before.
    assert report.compressed[1].differences["text_to_image_R@1"].difference == 0
    assert json.loads(report.to_json())["compressed"][2]["width"] == 8
    assert "| 8 x binary | 1 | " in report.to_markdown()


def test_against_itself_nothing_differs(tiny_clip, loaded, pictures):
    model, processor = loaded
    report = fastgoal.evaluate(
        str(tiny_clip),
        pictures,
        EvaluationOptions(limit=3, resamples=0, device="cpu"),
        against=model,
        against_processor=processor,
    )
    assert report.images == report.limit == 3
    assert all(
        (value.difference, value.interval, value.certain) == (0, None, None) for value in report.differences.values()
    )
    values = report.to_dict()
    assert values["differences"]["image_to_text_R@1"]["certain"] is None
    assert not {"intervals", "resamples", "joint", "checked"} & set(values)
    assert "the first 3 rows" in report.to_text()


def test_the_check_finds_a_wrong_number(loaded, pictures):
    model, processor = loaded
    encoded = encode_source(model, processor, open_protocol("folder", pictures))
    metrics = encoded.ranks().summary((1, 2))
    check_again(encoded, metrics, (1, 2))
    metrics["text_to_image_mean_rank"] += 0.25
    with pytest.raises(ValueError, match=r"`check` .*text_to_image_mean_rank"):
        check_again(encoded, metrics, (1, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processor": None}, "`model` .* `processor`"),
        ({"against": torch.nn.Identity()}, "`against` .* `against_processor`"),
        ({"against": "no/such/folder/here"}, "no/such/folder/here"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_the_first_one_runs(
    loaded, pictures, monkeypatch, changes, message
):
    model, processor = loaded
    monkeypatch.setattr(sys.modules["fastgoal.trainer.evaluation.evaluate"], "measure_all", None)
    with pytest.raises((ValueError, OSError), match=message):
        fastgoal.evaluate(model, pictures, **{"processor": processor, **changes})


@pytest.mark.parametrize(("test", "words"), [("joint", "the columns pairs"), ("localization", "a column 'boxes'")])
def test_the_data_are_looked_at_before_a_model_is_loaded(tmp_path, tiny_clip, monkeypatch, test, words):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "a"}\n')
    module = sys.modules["fastgoal.trainer.evaluation.evaluate"]
    monkeypatch.setattr(module, "load_model", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=rf"`{test}` .*{words}.*the data have file_name, caption"):
        fastgoal.evaluate(str(tiny_clip), str(tmp_path), EvaluationOptions(**{test: True}))


@pytest.fixture
def classes(tmp_path, pictures):
    """A folder of six images in two classes, and a file with one template."""
    for number, row in enumerate([*pictures, *pictures[:2]]):
        folder = tmp_path / "classes" / ("dark_one" if number % 2 else "light_one")
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{number}.png")
    (tmp_path / "templates.txt").write_text("a {}.")
    return tmp_path / "classes", str(tmp_path / "templates.txt")


def test_several_protocols_in_one_run_load_each_model_once(tiny_clip, pictures, classes, monkeypatch):
    """The numbers are those of one run for each protocol."""
    folder, templates = classes
    module, loads = sys.modules["fastgoal.trainer.evaluation.evaluate"], []
    load = module.load_model
    monkeypatch.setattr(module, "load_model", lambda name, *args: loads.append(name) or load(name, *args))
    options = EvaluationOptions(
        also=[f"one=zero-shot:{folder}", f"two=zero-shot:{folder}"],
        templates=templates,
        ks=(1, 2),
        resamples=20,
        device="cpu",
    )
    report = fastgoal.evaluate(str(tiny_clip), pictures, options, against=str(tiny_clip))
    assert loads == [str(tiny_clip)] * 2
    alone = EvaluationOptions(protocol="zero-shot", templates=templates, resamples=20, device="cpu")
    single = fastgoal.evaluate(str(tiny_clip), folder, alone, against=str(tiny_clip))
    assert [*report.also] == ["one", "two"]
    for other in report.also.values():
        assert other.metrics == single.metrics
        assert other.intervals == single.intervals
        assert other.differences == single.differences
    assert report.metrics == fastgoal.evaluate(str(tiny_clip), pictures, EvaluationOptions(ks=(1, 2))).metrics
    names = [f"folder: R@1, {way}" for way in ("text to image", "image to text")]
    names += [f"{label}: {metric}" for label in ("one", "two") for metric in ("top 1", "mean per class")]
    assert [*report.gains()] == names
    values = json.loads(report.to_json())
    assert values["also"]["one"]["metrics"] == single.metrics
    assert values["gained_and_lost"] == dict.fromkeys(names, "not told apart from 0")
    for text in (report.to_markdown(), report.to_text()):
        assert text.count("Gained and lost") == 1
        assert "two: Zero-shot classification (zero-shot)" in text
        assert text.count("not told apart from 0") == len(names)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("zero-shot:{}", ("`also`", "LABEL=PROTOCOL:PATH", "'zero-shot:")),
        ("a=zero-shot", ("`also`", "LABEL=PROTOCOL:PATH", "'a=zero-shot'")),
        ("a=zeroshot:{}", ("`also`", "'zeroshot'", "zero-shot")),
        ("a=zero-shot:{}/none", ("`also`", "a:", "/none")),
        ("a=docci:{}", ("`also`", "a:", "docci_descriptions.jsonlines")),
        ("folder=zero-shot:{}", ("`also`", "label", "'folder'")),
    ],
)
def test_a_wrong_entry_is_refused_before_a_model_is_loaded(tiny_clip, pictures, classes, monkeypatch, entry, words):
    module = sys.modules["fastgoal.trainer.evaluation.evaluate"]
    monkeypatch.setattr(module, "load_model", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="`also`") as error:
        fastgoal.evaluate(str(tiny_clip), pictures, EvaluationOptions(also=[entry.format(classes[0])]))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_gained_and_lost():
    """The verdict of each interval: above 0, below 0, around 0, and without one."""
    differences = [Difference(0.5, 0.2, 0.3, Interval(0.1, 0.4)), Difference(0.5, 0.6, -0.1, Interval(-0.2, -0.01))]
    differences += [Difference(0.5, 0.4, 0.1, Interval(-0.1, 0.2)), Difference(0.5, 0.4, 0.1, None)]
    metrics = {f"text_to_image_{name}": differences[0] for name in ("R@1", "R@5", "mean_rank")}
    gains = select_gains({"docci": metrics, "in": dict(zip(("top_1", "top_5", "a"), differences[1:], strict=True))})
    assert gain_rows(gains) == [
        ["docci: R@1, text to image", "20.00", "50.00", "+30.00", "+10.00 to +40.00", "gained"],
        ["in: top 1", "60.00", "50.00", "-10.00", "-20.00 to -1.00", "lost"],
        ["in: top 5", "40.00", "50.00", "+10.00", "-10.00 to +20.00", "not told apart from 0"],
        ["in: a", "40.00", "50.00", "+10.00", "-", "-"],
    ]
