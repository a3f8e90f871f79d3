"""`fastgoal evaluate` with everything that can be asked for."""

import json

import pytest
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from fastgoal.cli import main


def run(model, data, *arguments):
    return main(["evaluate", "--model", str(model), "--data", str(data), "--device", "cpu", *map(str, arguments)])


@pytest.fixture(scope="module")
def wider_clip(tiny_clip, tmp_path_factory):
    """A CLIP of another width in its joint space."""
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
    assert "(published, on other data)" in markdown
    printed = capsys.readouterr().out
    assert "Joint test: global and local pairs" in printed
    assert "the metric retrieval_recall gives the same" in printed


@pytest.fixture
def folder(tmp_path):
    rows = [{"file_name": f"{n}.png", "caption": f"Picture {n % 3}."} for n in range(4)]
    for n in range(4):
        Image.new("RGB", (40, 36), (60 * n, 9, 9)).save(tmp_path / f"{n}.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_incomplete_protocol_is_said_and_gets_no_published_rows(tiny_clip, folder, tmp_path, capsys):
    assert run(tiny_clip, folder, "--protocol", "docci", "--caption-column", "caption") == 0
    output = capsys.readouterr().out
    assert "DOCCI test has 5,000 images, but the data have 4" in output
    assert "(published" not in output


def test_published_rows_stand_beside_ours(tiny_clip, folder, monkeypatch, capsys):
    import dataclasses

    from fastgoal.trainer.evaluation.protocols import registry as protocols

    small = dataclasses.replace(protocols.PROTOCOLS["docci"], images=4)
    monkeypatch.setitem(protocols.PROTOCOLS, "docci", small)
    assert run(tiny_clip, folder, "--protocol", "docci", "--caption-column", "caption", "--resamples", 0) == 0
    output = capsys.readouterr().out
    assert "FAST-GOAL ViT-B/16 (GLIT100k) (published, arXiv 2605.26615)" in output
    assert "(measured here)" in output
    assert "95 %" not in output
    (folder / "2.png").unlink()
    skip = ("--protocol", "docci", "--caption-column", "caption", "--on-error", "skip", "--resamples", 0)
    assert run(tiny_clip, folder, *skip) == 0
    output = capsys.readouterr().out
    assert "DOCCI test has 4 images, but the data have 3" in output
    assert "(published" not in output


def test_duplicate_captions_are_counted(tiny_clip, folder, capsys):
    assert run(tiny_clip, folder) == 0
    assert "1 captions repeat an earlier one" in capsys.readouterr().out


def test_bad_input(tiny_clip, folder, tmp_path, capsys):
    (folder / "empty").mkdir()
    (folder / "empty" / "metadata.jsonl").write_text("")
    broken = tmp_path / "nan"
    model = CLIPModel.from_pretrained(tiny_clip)
    model.visual_projection.weight.data.fill_(float("nan"))
    model.save_pretrained(broken)
    CLIPProcessor.from_pretrained(tiny_clip).save_pretrained(broken)
    for model, data, arguments, message in [
        (tiny_clip, folder, ["--joint"], "the columns pairs"),
        (tiny_clip, folder, ["--localization"], "a column 'boxes'"),
        (tiny_clip, folder / "empty", [], "has no rows"),
        (tiny_clip, folder, ["--resamples", 1], "--resamples must be 0 or"),
        (tiny_clip, folder, ["--output", folder / "o.md"], "name the JSON file"),
        (tiny_clip, folder, ["--against", tmp_path / "none"], "none"),
        (broken, folder, [], "NaN or infinite"),
    ]:
        assert run(model, data, *arguments) == 2, message
        assert message in capsys.readouterr().err
    (folder / "2.png").unlink()
    assert run(tiny_clip, folder) == 2
    assert "line 3 (2.png)" in capsys.readouterr().err
