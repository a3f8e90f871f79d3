import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

import fastgoal
from fastgoal import EvaluationOptions, FastGoalModel, FastGoalProcessor
from fastgoal.cli import main
from fastgoal.pages.average import curve_page
from tests.squares import rows_of_squares, write_pairs


@pytest.fixture(scope="module")
def tuned(tiny_clip, tmp_path_factory):
    """A model at some distance from the base."""
    folder = tmp_path_factory.mktemp("tuned") / "m"
    model = FastGoalModel.from_base(str(tiny_clip), 100)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    FastGoalProcessor.from_base(str(tiny_clip), 100).save_pretrained(folder)
    return folder


ROWS = [{"image": row["image"], "caption": row["caption"]} for row in rows_of_squares()]


def test_each_point_is_the_evaluation_of_the_folder_that_average_writes(tiny_clip, tuned, tmp_path):
    short = tmp_path / "short"
    write_pairs([{**row, "caption": row["caption"].split(".")[0]} for row in rows_of_squares()], short)
    options = EvaluationOptions(device="cpu", resamples=20)
    both = replace(options, also=[f"short=folder:{short}"])
    result = fastgoal.average_curve(tuned, tiny_clip, ROWS, both, alphas=[1, 0, 0.5])
    assert result.alphas == [0, 0.5, 1]
    for index, alpha in enumerate(result.alphas):
        fastgoal.average(tuned, tiny_clip, alpha, tmp_path / str(alpha))
        for label, rows in (("folder", ROWS), ("short", short)):
            report = fastgoal.evaluate(str(tmp_path / str(alpha)), rows, options)
            score = result.scores[label][index]
            assert score.metrics == report.metrics
            assert score.intervals == report.intervals
            change = score.metrics["image_to_text_R@5"] - result.scores[label][0].metrics["image_to_text_R@5"]
            assert score.differences["image_to_text_R@5"].difference == change
            assert result.values(label)[index] == 100 * report.metrics["text_to_image_R@1"]
    values = json.loads(result.to_json())
    assert values["tests"]["short"]["images"] == len(ROWS)
    assert "<svg" in curve_page(result)
    assert (
        fastgoal.average_curve(tuned, tiny_clip, ROWS, options, alphas=[0.2, 1]).scores["folder"][1].differences is None
    )


def test_the_command_writes_the_curve(tiny_clip, tuned, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    with open(data / "metadata.jsonl", "w") as file:
        for number, side in enumerate((20, 40, 60)):
            Image.radial_gradient("L").resize((side, 30)).convert("RGB").save(data / f"{number}.png")
            file.write(json.dumps({"file_name": f"{number}.png", "caption": f"A gradient, {side} pixels wide."}) + "\n")
    output = tmp_path / "curve"
    start = ["average", str(tuned), "--base", str(tiny_clip), "--output", str(output)]
    command = [*start, "--data", str(data), "--device", "cpu", "--resamples", "0"]
    assert main([*command, "--alphas", "0", "1", "--also", f"<b>=folder:{data}"]) == 0
    assert {path.name for path in output.iterdir()} == {"curve.png", "curve.html", "curve.json"}
    page = (output / "curve.html").read_text()
    assert "&lt;b&gt;: text to image R@1 (%)" in page
    assert str(tmp_path) not in page  # a page may be shared
    assert json.loads((output / "curve.json").read_text())["alphas"] == [0, 1]
    out = capsys.readouterr().out
    assert "<b>: text to image R@1 in percent, 3 images and 3 texts" in out
    assert "difference from alpha 0" in out

    for arguments, words in (
        (["--alphas", "0", "1"], ["--output", "empty"]),
        (["--alphas", "0", "1.5"], ["--alphas", "from 0 to 1", "1.5"]),
        (["--alphas", "0.5", "0.5"], ["--alphas", "two different"]),
        (["--alpha", "0.5"], ["--data", "--alphas"]),
        (["--alphas", "0", "1", "--also", "s=nothing:x"], ["--also", "nothing"]),
    ):
        folder = output if "empty" in words else tmp_path / "new"
        assert main([*command, *arguments, "--output", str(folder)]) == 2, arguments
        error = capsys.readouterr().err.splitlines()[-1]
        assert all(word in error for word in words), error
    assert main([*start[:-1], str(tmp_path / "new"), "--alphas", "0", "1"]) == 2
    assert "--data is required" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
