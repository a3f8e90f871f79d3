"""`fastgoal pairs` from the command line, with a tiny CLIP of random weights."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from datasets import enable_progress_bars, load_dataset
from PIL import Image
from transformers import CLIPTokenizerFast
from transformers.utils import logging as transformers_logging

from fastgoal.cli import main
from fastgoal.hub_cards.data_card import prepare_data_card
from fastgoal.modeling_fastgoal.modeling_fastgoal import FastGoalCLIPModel
from fastgoal.processing.builders import pairs
from fastgoal.processing.checkpoints.fingerprints import check_detector_file
from fastgoal.processing.processing_fastgoal import FastGoalProcessor
from fastgoal.processing.regions import Region

CAPTION = "A grey field lies below. " + "Two birds sit on a long wire above it, " * 6 + "far away. The sky is white."


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(5):
        Image.effect_noise((48 + number, 36), 80).save(folder / f"images/{number}.jpg")
        boxes = [{"bbox": [2, 2, 20, 30], "label": "bird"}]
        lines.append({"file_name": f"images/{number}.jpg", "caption": f"Picture {number}. {CAPTION}", "boxes": boxes})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def call(*arguments):
    return main(["pairs", *map(str, arguments)])


def rows_of(output, tmp_path_factory):
    return load_dataset(str(output), split="train", cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_pairs_equal_those_of_the_processor(data, tiny_clip, tmp_path, tmp_path_factory, capsys):
    output = tmp_path / "pairs"
    options = (data, "--output", output, "--model", tiny_clip, "--detector", "column:boxes", "--shard-size", 2)
    assert call(*options) == 0
    printed = capsys.readouterr().out
    assert "5 images, 0 skipped, 20 sentences, 20 pairs" in printed
    assert "5 column" in printed
    assert "25 default" in printed
    assert "3 shards, 3 written now" in printed

    model, processor = FastGoalCLIPModel.from_base(tiny_clip), FastGoalProcessor.from_base(tiny_clip)
    for number, row in enumerate(rows_of(output, tmp_path_factory)):
        assert row["file_name"] == f"images/{number}.jpg"
        regions = [Region(tuple(r["box"]), r["score"], r["label"], r["source"]) for r in row["regions"]]
        assert (
            regions == processor.propose_regions([row["image"]], [[Region((2, 2, 20, 30), 1.0, "bird", "column")]])[0]
        )
        expected = processor.match([row["image"].convert("RGB")], [row["caption"]], model, regions=[regions])[0]
        assert [pair["region"] for pair in row["pairs"]] == [pair.region_index for pair in expected]
        assert [pair["best"] for pair in row["pairs"]] == [pair.best for pair in expected]
        assert [pair["score"] for pair in row["pairs"]] == pytest.approx([pair.score for pair in expected], abs=1e-5)
        assert [(s["start"], s["end"]) for s in row["sentences"]] == [
            (pair.sentence.start, pair.sentence.end) for pair in expected
        ]

    assert call(*options) == 0
    assert "already" in capsys.readouterr().out
    assert call(*options, "--limit", 3) == 2
    assert "limit was None and is now 3" in capsys.readouterr().err


def test_a_longer_model_also_reads_the_last_sentences(data, tiny_clip, tmp_path, tmp_path_factory, capsys):
    """The last three of six sentences begin after 248 tokens, which are letters."""
    output, metadata = tmp_path / "pairs", data / "metadata.jsonl"
    metadata.write_text(
        metadata.read_text().replace("The sky is white.", "The sky is white. " * 3 + "It rains. No. Yes.")
    )
    options = (data, "--output", output, "--model", tiny_clip, "--detector", "none", "--max-text-length")
    assert call(*options, 512) == 0
    assert capsys.readouterr().out.endswith(" --max_text_length 512\n")
    chosen = {}
    for length in (248, 512):
        model = FastGoalCLIPModel.from_base(tiny_clip, length)
        processor = FastGoalProcessor.from_base(tiny_clip, length)
        chosen[length] = [
            [pair.best for pair in processor.match([row["image"].convert("RGB")], [row["caption"]], model)[0]]
            for row in rows_of(output, tmp_path_factory)
        ]
    found = [[pair["best"] for pair in row["pairs"]] for row in rows_of(output, tmp_path_factory)]
    assert found == chosen[512] != chosen[248]
    assert call(*options, 300) == 2
    assert "max_text_length was 512 and is now 300" in capsys.readouterr().err
    assert call(data, "--output", tmp_path / "short", *options[3:], 76) == 2
    assert (
        "--max-text-length must be from 77, the text length of this CLIP, to 1024, got 76." in capsys.readouterr().err
    )


def test_a_changed_clip_is_another_clip(data, tiny_clip, tmp_path, capsys):
    copy = tmp_path / "clip"
    FastGoalProcessor.from_base(tiny_clip).save_pretrained(copy)
    model = FastGoalCLIPModel.from_base(tiny_clip)
    model.save_pretrained(copy)
    options = (data, "--output", tmp_path / "pairs", "--model", copy, "--detector", "none")
    assert call(*options) == 0
    with torch.no_grad():
        model.visual_projection.weight += 0.01
    model.save_pretrained(copy)
    assert call(*options) == 2
    assert "model was 'clip#" in capsys.readouterr().err


def test_bad_rows_stop_or_are_listed(data, tiny_clip, tmp_path, capsys):
    (data / "images/3.jpg").unlink()
    options = (data, "--output", tmp_path / "pairs", "--model", tiny_clip, "--detector", "none")
    assert call(*options) == 2
    assert "metadata.jsonl line 4 (images/3.jpg)" in capsys.readouterr().err
    assert call(*options, "--on-error", "skip") == 0
    printed = capsys.readouterr().out
    assert "4 images, 1 skipped" in printed
    assert "images/3.jpg" in printed.split("skipped:")[1]


def test_only_its_own_progress_is_shown(data, tiny_clip, tmp_path, capsys):
    transformers_logging.enable_progress_bar()
    enable_progress_bars()
    options = ("--output", tmp_path / "pairs", "--model", tiny_clip, "--detector", "none")
    assert call(data, *options) == 0
    error = capsys.readouterr().err
    assert "pairs: 100%" in error
    assert not re.search("Loading|Generating|Writing", error)
    for quiet, shown in ((["--quiet"], False), ([], True)):
        assert main(["inspect", str(tmp_path / "pairs"), "--output", str(tmp_path / "page.html"), *quiet]) == 0
        assert bool(capsys.readouterr().err) == shown


def test_wrong_input_is_one_line(data, tiny_clip, tmp_path, capsys):
    def error(*arguments):
        assert call(*arguments, "--output", tmp_path / "pairs") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("fastgoal pairs: error: ")
        return line

    (tmp_path / "empty").mkdir()
    assert "config.json" in error(data, "--model", tmp_path / "empty", "--detector", "none")
    assert "does not exist" in error(data, "--model", tmp_path / "absent", "--detector", "none")
    assert "not in a known form" in error(tmp_path / "empty", "--model", tiny_clip, "--detector", "none")
    assert "no column 'text'" in error(data, "--model", tiny_clip, "--detector", "none", "--caption-column", "text")
    assert "no column 'objects'" in error(data, "--model", tiny_clip, "--detector", "column:objects")
    assert "nonsense" in error(data, "--model", tiny_clip, "--detector", "none", "--device", "nonsense")
    assert "absent.pt" in error(data, "--model", tiny_clip, "--detector", tmp_path / "absent.pt")


def test_a_pickle_inside_the_data_is_refused(data, tiny_clip, tmp_path, capsys, monkeypatch):
    for folder in (data, tmp_path / "pairs"):
        weights = folder / "models/yolo.pt"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"anything")
        assert call(data, "--output", tmp_path / "pairs", "--model", tiny_clip, "--detector", weights) == 2
        assert "code when it is loaded" in capsys.readouterr().err.replace("\n", " ")
    link = tmp_path / "link.pt"
    link.symlink_to(data / "models/yolo.pt")
    with pytest.raises(ValueError, match="inside the data folder"):
        check_detector_file(str(link), str(data))
    monkeypatch.chdir(data / "models")
    with pytest.raises(ValueError, match="inside the data folder"):
        check_detector_file("yolo.pt", str(data))
    check_detector_file(str(tmp_path / "other.pt"), str(data), "owner/name")


def test_help_tells_of_pickles(capsys):
    with pytest.raises(SystemExit):
        call("--help")
    printed = capsys.readouterr().out
    assert "is a pickle: loading it runs the code inside it" in printed
    assert "column:NAME" in printed


def test_several_processes_are_refused(data, tiny_clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(data, "--output", tmp_path / "pairs", "--model", tiny_clip, "--detector", "none") == 2
    assert "WORLD_SIZE=2" in capsys.readouterr().err


def test_regions_sam_checks_the_kind(data, tiny_clip, tmp_path, capsys):
    options = (data, "--output", tmp_path / "pairs", "--model", tiny_clip, "--regions", "sam")
    assert call(*options, "--detector", "none") == 2
    assert "--regions sam needs a SAM checkpoint, got --detector none" in capsys.readouterr().err


def test_dtype_and_detector_reach_the_matcher(data, tiny_clip, tmp_path, monkeypatch):
    loaded = SimpleNamespace()

    def load_detector(name, device=None, **limits):
        loaded.detector = (name, device, limits)

    def write_pairs(source, output, settings, load_matcher, *options):
        loaded.settings, (loaded.model, loaded.processor) = settings, load_matcher()
        names = ("images", "sentences", "pairs", "seconds", "images_per_second", "shards", "shards_made")
        return {"skipped": [], "stage_seconds": {}, "regions": {}, "best_regions": {}, **dict.fromkeys(names, 0)}

    monkeypatch.setattr(pairs, "load_detector", load_detector)
    monkeypatch.setattr(pairs, "write_pairs", write_pairs)
    options = ("--detector", "none", "--device", "cpu", "--dtype", "bfloat16", "--min-score", "0.4")
    assert call(data, "--output", tmp_path / "pairs", "--model", tiny_clip, *options) == 0
    assert loaded.detector == ("none", "cpu", {"min_score": 0.4, "min_area": 0.01, "max_area": 0.8})
    assert (loaded.settings.dtype, loaded.settings.detector.min_score) == ("bfloat16", 0.4)
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.processor.tokenizer.model_max_length == loaded.model.config.text_config.max_position_embeddings == 248


def test_mistakes_in_the_source_come_before_the_models(data, tiny_clip, tmp_path, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("nothing may be loaded")

    for name in ("load_model", "load_detector"):
        monkeypatch.setattr(pairs, name, fail)
    options = ("--output", tmp_path / "pairs", "--model", tiny_clip)
    boxes = ("--detector", "column:boxes")
    for more, message in (
        ((*boxes, "--box-units", "fractions"), r"images/0\.jpg.* box 0 .*--box-format"),
        (("--detector", "column:nothing"), "no column 'nothing'"),
        (("--detector", "absent.pt", "--caption-column", "nothing"), "no column 'nothing'"),
    ):
        assert call(data, *options, *more) == 2
        assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    (data / "images" / "0.jpg").write_bytes(b"no image")
    assert call(data, *options, *boxes) == 2
    assert "images/0.jpg" in capsys.readouterr().err


def test_tokens_are_stored_and_no_tokenizer_is_needed(data, tiny_clip, tmp_path, tmp_path_factory, capsys, monkeypatch):
    output = tmp_path / "pairs"
    assert call(data, "--output", output, "--model", tiny_clip, "--detector", "none") == 0
    rows = rows_of(output, tmp_path_factory)
    tokenizer = CLIPTokenizerFast.from_pretrained(tiny_clip)
    for row in rows:
        sentences = [row["caption"][span["start"] : span["end"]] for span in row["sentences"]]
        assert row["caption_tokens"] == len(tokenizer(row["caption"])["input_ids"]) > 100
        assert row["sentence_tokens"] == [len(ids) for ids in tokenizer(sentences)["input_ids"]]
        assert len(row["sentence_tokens"]) == 4
    assert json.loads((output / "fastgoal_pairs.json").read_bytes())["summary"]["text_length"] == 248

    def fail(*arguments, **options):
        raise OSError("no tokenizer")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    capsys.readouterr()
    numbers = tmp_path / "numbers.json"
    arguments = ["--output", tmp_path / "page.html", "--json", numbers]
    assert main(["inspect", str(output), *map(str, arguments)]) == 0
    facts = json.loads(numbers.read_bytes())
    mean, longest = sum(rows["caption_tokens"]) / 5, max(rows["caption_tokens"])
    assert facts["captions"]["tokens"]["mean"] == pytest.approx(mean)
    assert facts["captions"]["tokens"]["truncated"]["77"]["rows"] == 5
    assert facts["captions"]["sentence_tokens"]["max"] == max(map(max, rows["sentence_tokens"]))
    assert facts["tokenizer"] == tiny_clip.name
    printed = capsys.readouterr().out
    assert f"{mean:.0f} tokens per caption, " in printed
    assert "Words are counted" not in printed
    assert main(["push-data", str(output), "me/pairs", "--license", "mit", "--dry-run"]) == 0
    card = prepare_data_card(output, "me/pairs", "mit")["README.md"].decode()
    assert re.search(rf"CLIP tokens \(`{tiny_clip.name}`\) \| {mean:.1f} \| .* \| {longest} \|", card)
