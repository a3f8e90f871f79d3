"""`fastgoal evaluate` with tiny models of real classes."""

import dataclasses
import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from fastgoal.cli import main
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.trainer.evaluation.measures.embeddings import encode_source
from fastgoal.trainer.evaluation.protocols.published import TEST_LISTS
from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS


def run(model, data, *arguments):
    return main(["evaluate", "--model", str(model), "--data", str(data), "--device", "cpu", *map(str, arguments)])


@pytest.fixture(scope="module")
def wider_clip(tiny_clip, tmp_path_factory):
    """A checkpoint with joint embeddings of another width."""
    folder = tmp_path_factory.mktemp("wider")
    config = CLIPConfig.from_pretrained(tiny_clip)
    config.projection_dim = 24
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor.from_pretrained(tiny_clip).save_pretrained(folder)
    return folder


def test_everything_on_a_pairs_data_set(tiny_clip, wider_clip, pairs_folder, tmp_path, capsys):
    output = tmp_path / "report.json"
    asked = ("--joint", "--robustness", "--localization", "--check", "--against", wider_clip, "--resamples", 50)
    assert run(tiny_clip, pairs_folder, *asked, "--output", output) == 0
    report = json.loads(output.read_text())
    assert report["images"] == report["captions"] == 12
    assert report["protocol"] == "folder"
    assert "published" not in report
    assert set(report["joint"]) == {
        f"joint_{way}{own}_mAP@10" for way in ("text_to_image", "image_to_text") for own in ("", "_own")
    }
    low, high = report["intervals"]["text_to_image_R@5"]
    assert low <= report["metrics"]["text_to_image_R@5"] <= high
    assert set(report["robustness"]) == {"inserted", "shuffled", "dropped", "truncated"}
    assert report["robustness"]["shuffled"]["changed"] == 12
    assert report["robustness"]["truncated"]["changed"] == 0
    assert report["robustness"]["truncated"]["drop"] == 0
    assert report["localization"]["sentences"] == 24
    assert report["checked"]
    assert set(report["against"]) >= {"model", "metrics", "joint", "robustness", "localization"}
    difference = report["differences"]["text_to_image_R@5"]
    ours, theirs = (which["metrics"]["text_to_image_R@5"] for which in (report, report["against"]))
    assert difference["difference"] == pytest.approx(ours - theirs)
    assert difference["only_ours"] - difference["only_theirs"] == round(12 * (ours - theirs))
    markdown = output.with_suffix(".md").read_text()
    for title in ("Retrieval, 95 %", "Compared with", "Joint test", "Robustness", "Localization"):
        assert f"## {title}" in markdown
    assert "published" not in markdown + output.read_text()  # neither rows nor keys, on data of one's own
    printed = capsys.readouterr().out
    assert "Joint test: global and local pairs" in printed
    assert "the metric retrieval_recall gives the same" in printed


@pytest.fixture
def folder(tmp_path):
    """Four images; the caption of the last one repeats the first."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"file_name": f"{n}.png", "caption": f"Picture {n % 3}."} for n in range(4)]
    for n in range(4):
        Image.new("RGB", (40, 36), (60 * n, 9, 9)).save(folder / f"{n}.png")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_table_and_report(tiny_clip, folder, tmp_path, capsys):
    output = tmp_path / "new" / "report.json"
    assert run(tiny_clip, folder, "--output", output, "--batch-size", 3, "--ks", 1, 3, 9) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert sorted(path.name for path in output.parent.iterdir()) == ["report.json", "report.md"]
    model, processor = CLIPModel.from_pretrained(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)
    expected = encode_source(model, processor, load_source(str(folder))).ranks().summary((1, 3, 9))
    assert report["metrics"] == expected
    assert (report["images"], report["captions"], report["max_text_length"]) == (4, 4, 77)
    assert (report["truncated_share"], report["skipped"], report["dtype"]) == (0.0, [], "float32")
    printed = capsys.readouterr().out
    assert "images    4\n" in printed
    assert "1 caption repeats an earlier one" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("R@3 ")]
    percents = [100 * expected[f"{direction}_R@3"] for direction in ("text_to_image", "image_to_text")]
    cells = line.replace("%", "").split()
    assert [float(cells[1]), float(cells[5])] == pytest.approx(percents, abs=0.01)
    assert "R@9 " not in printed  # there are only four images


def test_bfloat16(tiny_clip, folder, tmp_path):
    output = tmp_path / "report.json"
    assert run(tiny_clip, folder, "--dtype", "bfloat16", "--resamples", 0, "--output", output) == 0
    assert json.loads(output.read_text())["dtype"] == "bfloat16"


def test_an_incomplete_protocol_is_noted_and_has_no_published_rows(tiny_clip, folder, capsys):
    assert run(tiny_clip, folder, "--protocol", "docci", "--caption-column", "caption", "--resamples", 0) == 0
    output = capsys.readouterr().out
    assert "DOCCI test has 5,000 images, but the data have 4" in output
    assert "(published" not in output
    assert TEST_LISTS["docci"][:30] not in output


def test_published_rows_of_a_complete_protocol(tiny_clip, folder, tmp_path, monkeypatch, capsys):
    small = dataclasses.replace(PROTOCOLS["docci"], images=4)
    monkeypatch.setitem(PROTOCOLS, "docci", small)
    docci = ("--protocol", "docci", "--caption-column", "caption", "--resamples", 0)
    assert run(tiny_clip, folder, *docci) == 0
    printed = capsys.readouterr().out
    assert "FAST-GOAL ViT-B/16 (GLIT100k) (published, arXiv 2605.26615)" in printed
    assert "(measured here)" in printed
    assert TEST_LISTS["docci"][:30] in printed
    assert "95 %" not in printed
    (folder / "2.png").unlink()
    assert run(tiny_clip, folder, *docci, "--on-error", "skip", "--output", tmp_path / "report.json") == 0
    printed = capsys.readouterr().out
    assert "DOCCI test has 4 images, but the data have 3" in printed
    assert "(published" not in printed
    assert "1 row was skipped:\n" in printed
    assert len(json.loads((tmp_path / "report.json").read_text())["skipped"]) == 1


def test_bad_input(tiny_clip, folder, tmp_path, capsys):
    (folder / "empty").mkdir()
    (folder / "empty" / "metadata.jsonl").write_text("")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for name in ("nan", "half"):
        shutil.copytree(tiny_clip, tmp_path / name)
    weights = load_file(tiny_clip / "model.safetensors")
    half = {name: value for name, value in weights.items() if "vision" not in name}
    save_file(half, tmp_path / "half" / "model.safetensors", {"format": "pt"})
    weights["visual_projection.weight"].fill_(float("nan"))
    save_file(weights, tmp_path / "nan" / "model.safetensors", {"format": "pt"})
    for model, data, arguments, message in [
        (tiny_clip, folder, ["--joint"], "the columns pairs"),
        (tiny_clip, folder, ["--localization"], "a column 'boxes'"),
        (tiny_clip, folder / "empty", [], "has no rows"),
        (tiny_clip, tmp_path / "nothing", [], str(tmp_path / "nothing")),
        (tiny_clip, tmp_path, [], "no captions itself"),
        (tiny_clip, folder, ["--caption-column", "text"], "'text'"),
        (tiny_clip, folder, ["--resamples", 1], "--resamples must be 0 or"),
        (tiny_clip, folder, ["--batch-size", 0], "--batch-size must be at least 1, got 0"),
        (tiny_clip, folder, ["--device", "abacus"], "'abacus'"),
        (tiny_clip, folder, ["--output", folder / "o.md"], "--output must be the name of the JSON file"),
        (tiny_clip, folder, ["--output", folder], f"--output {folder} is a folder"),
        (tiny_clip, folder, ["--against", tmp_path / "none"], "none"),
        (tmp_path / "bert", folder, [], "type 'bert'"),
        (tmp_path / "half", folder, [], "weights of a FastGoalCLIPModel"),
        (tmp_path / "nan", folder, [], "NaN"),
    ]:
        assert run(model, data, *arguments) == 2, message
        assert message in capsys.readouterr().err
    (folder / "2.png").unlink()
    assert run(tiny_clip, folder, "--output", tmp_path / "report.json") == 2
    errors = capsys.readouterr().err
    assert "fastgoal evaluate: error: " in errors
    assert "line 3 (2.png)" in errors
    assert not (tmp_path / "report.json").exists()
