"""Every form of data goes through pairs, statistics, training and evaluation with the same result."""

import json

import pytest
import torch

import fastgoal
from fastgoal import FastGoalCollator, FastGoalModel, FastGoalProcessor
from fastgoal.cli import main as command
from fastgoal.processing.data.forms.registry import FORMS, load_source, recognize
from fastgoal.processing.data.statistics import inspect_pairs
from fastgoal.processing.data.unmatched import UnmatchedRows
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
    facts = inspect_pairs(UnmatchedRows(load_source(data)))
    assert (facts["rows"], facts["captions"]["sentence_count"], facts["skipped"]) == (len(rows), sentences, [])
    assert facts["captions"]["words"]["mean"] == sum(len(caption.split()) for *_, caption in rows) / len(rows)
    assert facts["duplicate_images"]["rows"] == 0
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


def test_a_broken_image_inside_a_tar_is_named(rows, tiny_clip, tmp_path, capsys):
    data = WRITERS["webdataset"](tmp_path / "data", rows)
    path = data / "00004.tar"
    content = path.read_bytes()
    start = content.index(b"\x89PNG", content.index(b"0005.png"))
    path.write_bytes(content[:start] + bytes(200) + content[start + 200 :])
    arguments = ["pairs", str(data), "--model", str(tiny_clip), "--detector", "none", "--device", "cpu"]
    assert command([*arguments, "--output", str(tmp_path / "stopped")]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    for words in (str(path), "0005.png", "not an image", "--on-error skip"):
        assert words in line
    assert "summary" not in json.loads((tmp_path / "stopped/fastgoal_pairs.json").read_bytes())
    assert command([*arguments, "--output", str(tmp_path / "pairs"), "--on-error", "skip"]) == 0
    (skipped,) = json.loads((tmp_path / "pairs/fastgoal_pairs.json").read_bytes())["summary"]["skipped"]
    assert skipped["row"] == 5
    assert skipped["reason"] in capsys.readouterr().out
    for words in (str(path), "0005.png", "not an image"):
        assert words in skipped["reason"]
    assert [row.name for row in load_source(tmp_path / "pairs")] == [name for name, *_ in rows[:5]]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("width", [640] * 6, r"line 1 \(0000.png\): 'width' must be a text, got 640.*`caption_column`"),
        ("file_name", None, r"`caption_column` must be another column .*'file_name' for both"),
        (
            "original",
            [f"photos/{n}.JPG" for n in range(6)],
            r"`caption_column` .*'original': .*file names, .*photos/0.JPG",
        ),
        ("absent", None, r"`caption_column` must be a column of .*'absent'.*'file_name', 'caption'"),
    ],
)
def test_captions_in_the_wrong_column(column, values, words, rows, tiny_clip, tmp_path):
    data = WRITERS["metadata"](tmp_path / "data", rows)
    if values is not None:
        lines = [
            json.dumps({"file_name": name, "caption": caption, column: value})
            for (name, _, caption), value in zip(rows, values, strict=True)
        ]
        (data / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=words):
        fastgoal.build_pairs(data, tmp_path / "pairs", tiny_clip, None, caption_column=column, progress=False)


def test_no_usable_row_is_an_error_and_not_a_success(rows, tiny_clip, tmp_path):
    data = WRITERS["metadata"](tmp_path / "data", rows)
    for name, *_ in rows:
        (data / name).write_bytes(b"no image")
    for _ in range(2):  # the second time, all shards are there
        with pytest.raises(ValueError, match=r"none of the 6 rows can be used\. .*line 1 \(0000\.png\).*not an image"):
            fastgoal.build_pairs(data, tmp_path / "pairs", tiny_clip, None, on_error="skip", progress=False)
        assert "summary" not in json.loads((tmp_path / "pairs/fastgoal_pairs.json").read_bytes())
    for name, image, _ in rows:
        image.save(data / name)
    with pytest.raises(ValueError, match="other data"):
        fastgoal.build_pairs(data, tmp_path / "pairs", tiny_clip, None, on_error="skip", progress=False)


def test_pairs_has_captions(rows, tiny_clip, tmp_path):
    data = WRITERS["metadata"](tmp_path / "data", rows[:2])
    lines = [json.dumps({"file_name": name, "captions": [caption, "A short one."]}) for name, _, caption in rows[:2]]
    (data / "metadata.jsonl").write_text("\n".join(lines))
    arguments = ["pairs", str(data), "--model", str(tiny_clip), "--detector", "none", "--device", "cpu"]
    assert command([*arguments, "--captions", "each", "--output", str(tmp_path / "pairs")]) == 0
    assert [row.columns["image_group"] for row in load_source(tmp_path / "pairs")] == [0, 0, 1, 1]


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
