"""Every form of data goes through pairs, training and evaluation with the same result."""

import pytest

import fastgoal
from fastgoal.processing.data.forms.registry import FORMS, load_source, recognize
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
