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
from fastgoal.trainer.evaluation.measures.retrieval import retrieval_metrics
from fastgoal.trainer.evaluation.protocols.registry import open_protocol


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
    monkeypatch.setattr(sys.modules["fastgoal.trainer.evaluation.evaluate"], "measure", None)
    with pytest.raises((ValueError, OSError), match=message):
        fastgoal.evaluate(model, pictures, **{"processor": processor, **changes})


@pytest.mark.parametrize(("test", "words"), [("joint", "the columns pairs"), ("localization", "a column 'boxes'")])
def test_the_data_are_looked_at_before_a_model_is_loaded(tmp_path, tiny_clip, monkeypatch, test, words):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "a"}\n')
    module = sys.modules["fastgoal.trainer.evaluation.evaluate"]
    monkeypatch.setattr(module, "load_model", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=rf"`{test}` .*{words}.*the data have file_name, caption"):
        fastgoal.evaluate(str(tiny_clip), str(tmp_path), EvaluationOptions(**{test: True}))
