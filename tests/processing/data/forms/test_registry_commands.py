"""Every form of data goes through pairs, training and evaluation with the same result."""

import json

import pytest
import torch

import fastgoal
from fastgoal import FastGoalCollator, FastGoalModel, FastGoalProcessor
from fastgoal.processing.data.forms.registry import FORMS, load_source, recognize
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.evaluation.options import EvaluationOptions
from fastgoal.trainer.run import main
from tests.processing.data.forms.written_forms import WRITERS
from tests.squares import image_of, row_of

PAIRS = (("red", "green"), ("green", "blue"), ("blue", "red"), ("red", "blue"), ("green", "red"), ("blue", "green"))
# A form that is not on this disk, and one that is never read.
NOT_WRITTEN = {"hub", "urls"}


@pytest.fixture(scope="module")
def rows():
    return [(f"{n:04d}.png", image_of(*pair), row_of(*pair)["caption"]) for n, pair in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def expected(rows, tiny_clip, tmp_path_factory):
    """What the image folder gives."""
    folder = tmp_path_factory.mktemp("expected")
    source = WRITERS["metadata"](folder / "data", rows)
    made = fastgoal.build_pairs(source, folder / "pairs", tiny_clip, None, progress=False)
    report = fastgoal.evaluate(tiny_clip, source, EvaluationOptions(resamples=0))
    scores = [pair["score"] for row in load_source(folder / "pairs") for pair in row.columns["pairs"]]
    return made["sentences"], scores, report


def test_each_form_has_a_writer():
    assert {*WRITERS} == {*FORMS} - NOT_WRITTEN


@pytest.mark.parametrize("form", WRITERS)
def test_pairs_training_and_evaluation(form, rows, expected, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = WRITERS[form](tmp_path / "data", rows)
    assert recognize(data).name == form
    made = fastgoal.build_pairs(data, tmp_path / "pairs", tiny_clip, None, shard_size=4, progress=False)
    sentences, scores, report = expected
    assert (made["images"], made["sentences"], made["skipped"]) == (len(rows), sentences, [])
    stored = load_source(tmp_path / "pairs")
    assert [row.caption for row in stored] == [caption for *_, caption in rows]
    assert [pair["score"] for row in stored for pair in row.columns["pairs"]] == pytest.approx(scores, abs=1e-6)
    assert fastgoal.evaluate(tiny_clip, data, EvaluationOptions(resamples=0)).metrics == report.metrics
    options = ["--model", tiny_clip, "--train_data", data, "--objective", "global", "--max_steps", "1", "--use_cpu"]
    options += ["true", "--per_device_train_batch_size", "4", "--save_strategy", "no", "--report_to", "none"]
    if FORMS[form].stream is not None:
        options += ["--streaming"]
    assert main([*map(str, options), "--output_dir", str(tmp_path / "out"), "--dataloader_num_workers", "0"]) == 0


def test_damaged_data_stop_at_once_or_are_listed(rows, tiny_clip, tmp_path, monkeypatch):
    data = WRITERS["webdataset"](tmp_path / "data", rows)
    path = data / "00004.tar"
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"0005.png") + 600])
    with pytest.raises(ValueError, match=r"00004.tar is not a complete tar file .*Download.*`on_error=skip`"):
        fastgoal.build_pairs(data, tmp_path / "pairs", tiny_clip, None, progress=False)
    with pytest.raises(ValueError, match=r"00004.tar is not a complete tar file .*`on_error=skip`"):
        fastgoal.evaluate(tiny_clip, data, EvaluationOptions(resamples=0))
    options = {"on_error": "skip", "progress": False}
    made = fastgoal.build_pairs(data, tmp_path / "pairs", tiny_clip, None, **options)
    assert made["images"] == 4
    assert [str(path) in entry["reason"] for entry in made["skipped"]] == [True]
    report = fastgoal.evaluate(tiny_clip, data, EvaluationOptions(resamples=0, on_error="skip"))
    assert (report.images, len(report.skipped)) == (4, 1)
    train = ["--model", tiny_clip, "--train_data", data, "--objective", "global", "--max_steps", "9", "--use_cpu"]
    train += ["true", "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0", "--report_to", "none"]
    for more in ([], ["--streaming", "--save_strategy", "no"]):
        with pytest.raises(ValueError, match=r"00004.tar is not a complete tar file"):
            main([*map(str, [*train, *more]), "--output_dir", str(tmp_path / f"out{len(more)}")])


def test_rows_of_one_image_reach_the_loss(rows, tiny_clip, tmp_path):
    folder = WRITERS["metadata"](tmp_path / "data", rows)
    lines = [json.dumps({"file_name": name, "captions": [caption, "A short one."]}) for name, _, caption in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    made = fastgoal.build_pairs(folder, tmp_path / "pairs", tiny_clip, None, captions="each", progress=False)
    assert made["images"] == 2 * len(rows)
    data = TrainingData(str(tmp_path / "pairs"))
    collator = FastGoalCollator(FastGoalProcessor.from_base(tiny_clip))
    batch = collator([data[index] for index in (0, 1, 5)])
    assert batch["image_groups"].tolist() == [0, 0, 2]
    model = FastGoalModel.from_base(tiny_clip)
    inputs = collator([data.data[index] for index in (0, 1, 5)])
    loss = model(**inputs, return_loss=True).loss_global
    logits = model(**inputs).logits_per_image
    kept = torch.tensor([[0.0, -torch.inf, 0], [-torch.inf, 0, 0], [0, 0, 0]])
    labels = torch.arange(3)
    expected = sum(torch.nn.functional.cross_entropy(side + kept, labels) for side in (logits, logits.T)) / 2
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
