"""`fastgoal caption` from the command line, and on to `fastgoal pairs`, with tiny models of random weights."""

import json

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from fastgoal.cli import main
from fastgoal.processing.builders.captioner import PROMPT, Captioner

LENGTH = 24


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    (folder / "sub").mkdir(parents=True)
    for number in range(5):
        name = f"sub/{number}.jpg" if number % 2 else f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (56 - 4 * number, 48 + 8 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def call(*arguments):
    return main([str(argument) for argument in arguments])


def options(photographs, output, model):
    return ("caption", photographs, "--output", output, "--model", model, "--max-new-tokens", LENGTH)


def test_from_images_to_pairs(photographs, tiny_vlm, tiny_clip, tmp_path, tmp_path_factory, capsys):
    output = tmp_path / "captions"
    assert call(*options(photographs, output, tiny_vlm), "--batch-size", 2) == 0
    printed = capsys.readouterr().out

    captioner = Captioner.load(str(tiny_vlm), max_new_tokens=LENGTH)
    rows = [json.loads(line) for line in (output / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["0.png", "2.png", "4.png", "sub/1.jpg", "sub/3.jpg"]
    for row in rows:
        (expected,) = captioner([Image.open(photographs / row["file_name"]).convert("RGB")])
        assert row == {"file_name": row["file_name"], "caption": expected.text, "finish": expected.finish}
    assert len({row["caption"] for row in rows}) > 2

    cut = sum(row["finish"] == "length" for row in rows)
    words = sum(len(row["caption"].split()) for row in rows) / 5
    assert f"first caption (0.png):\n{rows[0]['caption']}\n" in printed
    assert f"5 images, 0 skipped, {words:.1f} words and " in printed
    assert f"{cut} captions ({100 * cut / 5:.1f} %) reached the limit of 24 tokens" in printed
    assert " images/s" in printed
    assert f"{output}: 5 images done now; next: fastgoal pairs {output}" in printed

    pairs = tmp_path / "pairs"
    assert call("pairs", output, "--output", pairs, "--model", tiny_clip, "--detector", "none") == 0
    found = load_dataset(str(pairs), split="train", cache_dir=str(tmp_path_factory.mktemp("cache")))
    assert [(row["file_name"], row["caption"]) for row in found] == [(row["file_name"], row["caption"]) for row in rows]
    for row in found:
        assert row["image"].size == Image.open(photographs / row["file_name"]).size
        assert len(row["pairs"]) == len(row["sentences"])

    capsys.readouterr()
    assert call(*options(photographs, output, tiny_vlm)) == 0
    assert "already" in capsys.readouterr().out


def test_the_manifest_has_what_a_card_needs(photographs, tiny_vlm, tmp_path):
    assert call(*options(photographs, tmp_path / "a", tiny_vlm)) == 0
    manifest = json.loads((tmp_path / "a" / "fastgoal_captions.json").read_text())
    assert manifest["settings"]["prompt"] == PROMPT
    assert manifest["settings"]["model"].startswith(f"{tiny_vlm.name}#")
    assert manifest["settings"]["max_new_tokens"] == LENGTH
    assert manifest["settings"]["temperature"] == 0.0
    assert manifest["summary"]["images"] == 5


def test_a_prompt_of_ones_own(photographs, tiny_vlm, tmp_path, capsys):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("the red cup\n")
    arguments = (*options(photographs, tmp_path / "out", tiny_vlm), "--prompt-file", prompt)
    assert call(*arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    captioner = Captioner.load(str(tiny_vlm), prompt="the red cup", max_new_tokens=LENGTH)
    assert rows[0]["caption"] == captioner([Image.open(photographs / "0.png").convert("RGB")])[0].text
    prompt.write_text("the grey house")
    assert call(*arguments) == 2
    assert "the prompt was different" in capsys.readouterr().err
    prompt.write_text("  ")
    assert call(*arguments) == 2
    assert "prompt.txt, which is empty" in capsys.readouterr().err


def test_broken_images(photographs, tiny_vlm, tmp_path, capsys):
    (photographs / "2.png").write_bytes(b"")
    arguments = options(photographs, tmp_path / "out", tiny_vlm)
    assert call(*arguments) == 2
    assert "2.png is empty (0 bytes)" in capsys.readouterr().err
    assert call(*arguments, "--on-error", "skip") == 0
    printed = capsys.readouterr().out
    assert "4 images, 1 skipped" in printed
    assert "2.png" in printed.split("skipped:")[1]


def test_wrong_input_is_one_line(photographs, tiny_vlm, tiny_clip, tmp_path, capsys):
    def error(*arguments):
        assert call(*arguments) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("fastgoal caption: error: ")
        return line

    output = tmp_path / "out"
    assert "does not write about images" in error(*options(photographs, output, tiny_clip))
    assert "--model absent/model/x does not exist" in error(*options(photographs, output, "absent/model/x"))
    assert "--output must be outside" in error(*options(photographs, photographs / "out", tiny_vlm))
    assert "--output must be outside" in error(*options(photographs, photographs, tiny_vlm))
    assert "'nonsense'" in error(*options(photographs, output, tiny_vlm), "--device", "nonsense")
    assert "--batch-size must be at least 1" in error(*options(photographs, output, tiny_vlm), "--batch-size", 0)
    assert "plain folder of images" in error(*options(photographs, output, tiny_vlm), "--split", "test")
    assert "No such file" in error(*options(photographs, output, tiny_vlm), "--prompt-file", tmp_path / "absent.txt")


def test_several_processes_are_refused(photographs, tiny_vlm, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(*options(photographs, tmp_path / "out", tiny_vlm)) == 2
    assert "WORLD_SIZE=2" in capsys.readouterr().err


def test_help_says_what_comes_out(capsys):
    with pytest.raises(SystemExit):
        call("caption", "--help")
    printed = capsys.readouterr().out
    for words in ("metadata.jsonl", "imagefolder", "hard links", "--prompt-file"):
        assert words in printed
