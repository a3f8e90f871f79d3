"""`write_pairs` and `build_pairs`: known matches, resuming after errors and kills, bad rows, locks and full disks.

The matcher only sees colors, see `color_world`.
"""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
from dataclasses import asdict, replace
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import torch
from datasets import load_dataset
from PIL import Image

from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.processing.builders import pairs as pair_builder
from fastgoal.processing.builders import shards
from fastgoal.processing.builders.pairs import PairSettings, build_pairs
from fastgoal.processing.data.forms.registry import load_source
from fastgoal.processing.detectors.spec import DetectorSpec

from .color_world import (
    HALVES,
    SETTINGS,
    ColorModel,
    Halves,
    make_folder,
    make_processor,
    matcher,
    rows_of,
    run,
    run_as_process,
    unused,
    without_times,
)


@pytest.fixture
def load(tmp_path_factory):
    return lambda output: load_dataset(str(output), split="train", cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of eight images and the output of an uninterrupted run over it: shards of 3, 3 and 2 rows."""
    base = tmp_path_factory.mktemp("made")
    folder = make_folder(base / "data")
    model = ColorModel()
    summary = run(folder, base / "pairs", matcher(Halves(), model))
    return SimpleNamespace(folder=folder, output=base / "pairs", summary=summary, model=model)


def test_every_sentence_gets_the_region_of_its_color(made, load):
    dataset = load(made.output)
    assert len(dataset) == 8
    for number, row in enumerate(dataset):
        assert row["file_name"] == f"{number}.png"
        assert (row["width"], row["height"]) == (60 + number, 30) == row["image"].size
        assert [row["caption"][s["start"] : s["end"]].split()[1] for s in row["sentences"]] == ["right", "left"]
        assert [row["regions"][pair["region"]]["label"] for pair in row["pairs"]] == ["right", "left"]
        assert [pair["sentence"] for pair in row["pairs"]] == [0, 1]
        assert sum(pair["best"] for pair in row["pairs"]) == 1
        third = (60 + number) / 3
        assert row["regions"][0]["box"] == pytest.approx([0, 0, third, 30])
        assert [region["source"] for region in row["regions"]] == ["halves"] * 2 + ["default"] * 5
        assert row["image"].tobytes() == Image.open(made.folder / row["file_name"]).tobytes()


def test_each_caption_is_split_once(made, tmp_path, monkeypatch):
    split, captions = FastGoalProcessor.split_sentences, []
    monkeypatch.setattr(FastGoalProcessor, "split_sentences", lambda *args: captions.append(args[1]) or split(*args))
    run(made.folder, tmp_path / "pairs")
    assert len(captions) == 8
    assert rows_of(tmp_path / "pairs") == rows_of(made.output)


def test_short_captions_are_kept_where_the_data_have_them(made, tmp_path, load):
    known: dict = {0: {"short_captions": ["one", " two "]}, 1: {"short_captions": ["three"]}}
    folder = make_folder(tmp_path / "data", 3, known)
    run(folder, tmp_path / "pairs", matcher(Halves(), ColorModel()))
    assert load(tmp_path / "pairs")["short_captions"][:] == [["one", "two"], ["three"], []]
    assert "short_captions" not in load(made.output).column_names


def test_summary_counts_what_is_in_the_data(made):
    counts = {name: made.summary[name] for name in ("images", "sentences", "pairs", "shards", "shards_made")}
    assert counts == {"images": 8, "sentences": 16, "pairs": 16, "shards": 3, "shards_made": 3}
    assert made.summary["regions"] == {"default": 40, "halves": 16}
    assert made.summary["best_regions"] == {"halves": 8}
    assert made.summary["skipped"] == []
    assert set(made.summary["stage_seconds"]) == {"decode", "detect", "crop", "sentences", "image", "write"}
    saved = json.loads((made.output / "fastgoal_pairs.json").read_text())
    assert without_times(saved["summary"]) == without_times(made.summary)
    assert saved["settings"]["detector"] == asdict(HALVES)
    assert "transformers" in saved["versions"]


def test_crops_of_several_images_share_a_forward_pass(made):
    # A shard of three images with seven candidate regions each goes to CLIP eight crops at a time, and no batch takes
    # crops of two shards: whoever makes a shard makes the same batches.
    assert made.model.image_batches == [8, 8, 5, 8, 8, 5, 8, 6]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_threads_in_parallel_or_in_turns_give_the_same_rows(made, tmp_path, monkeypatch, overlap, workers):
    monkeypatch.setattr(pair_builder, "overlaps", lambda device: overlap)
    threads = torch.get_num_threads()
    run(made.folder, tmp_path / "pairs", num_workers=workers)
    assert rows_of(tmp_path / "pairs") == rows_of(made.output)
    assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match=r"`num_workers`.*0"):
        run(made.folder, tmp_path / "pairs", num_workers=0)


def test_overlapping_times_are_counted_once():
    spans = [(10.0, 20.0), (12.0, 15.0), (18.0, 30.0), (40.0, 41.0)]
    assert pair_builder._covered(spans) == 21.0


def test_images_keep_the_bytes_of_their_files(made):
    paths = sorted((made.output / "data").iterdir())
    assert [path.name for path in paths] == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    images = [image for path in paths for image in pyarrow.parquet.read_table(path)["image"].to_pylist()]
    for number, image in enumerate(images):
        assert image == {"bytes": (made.folder / f"{number}.png").read_bytes(), "path": f"{number}.png"}


def test_a_finished_folder_stays_unchanged(made):
    before = rows_of(made.output)
    again = run(made.folder, made.output, unused)
    assert again == {**made.summary, "shards_made": 0}
    assert rows_of(made.output) == before


def test_its_output_is_a_source(made):
    rows = list(load_source(made.output))
    assert [row.name for row in rows] == [f"{number}.png" for number in range(8)]
    assert rows[0].caption == "The right is blue. The left is red."


@pytest.mark.parametrize("broken_at", [1, 4, 8])
def test_an_interrupted_run_continues_and_equals_an_uninterrupted_one(made, tmp_path, broken_at):
    def fail():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(made.folder, tmp_path / "pairs", matcher(Halves(broken_at, fail)))
    finished = (broken_at - 1) // 3
    assert len(list((tmp_path / "pairs").glob("data/*"))) == finished
    assert not list((tmp_path / "pairs").rglob("*.tmp"))
    summary = run(made.folder, tmp_path / "pairs")
    assert summary["shards_made"] == 3 - finished
    assert rows_of(tmp_path / "pairs") == rows_of(made.output)
    assert without_times(summary) == without_times(made.summary)


@pytest.fixture(scope="module")
def context():
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_as_process.__module__, "datasets", "pyarrow.parquet"])
    return context


@pytest.mark.slow
def test_a_killed_run_continues_and_equals_an_uninterrupted_one(made, context, tmp_path):
    output = tmp_path / "pairs"
    # The detector kills the process at the fifth image, with no chance to clean up.
    process = context.Process(target=run_as_process, args=(made.folder, output), kwargs={"act_at": 5})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in (output / "data").iterdir()] == ["train-00000-of-00003.parquet"]
    assert (output / ".fastgoal/run.json").exists()
    assert list(output.rglob("*.tmp"))
    summary = run(made.folder, output)
    assert summary["shards_made"] == 2
    assert rows_of(output) == rows_of(made.output)
    assert without_times(summary) == without_times(made.summary)
    assert not list(output.rglob("*.tmp"))
    assert not (output / ".fastgoal/run.json").exists()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_is_lost_or_mixed(context, tmp_path, seed):
    settings = replace(SETTINGS, shard_size=2)
    folder, output = make_folder(tmp_path / "data", 24), tmp_path / "pairs"
    whole = without_times(run(folder, tmp_path / "whole", settings=settings))
    chance, before = random.Random(seed), {}
    for _ in range(6):
        process = context.Process(target=run_as_process, args=(folder, output, settings), kwargs={"pause": 0.01})
        process.start()
        process.join(chance.uniform(0.05, 0.7))
        process.kill()
        process.join()
        now = rows_of(output) if (output / "data").is_dir() else {}
        assert before.items() <= now.items() <= rows_of(tmp_path / "whole").items()
        before = now
    assert without_times(run(folder, output, settings=settings)) == whole
    assert rows_of(output) == rows_of(tmp_path / "whole")


def test_a_second_run_is_refused_while_the_first_one_lives(context, tmp_path):
    settings = replace(SETTINGS, shard_size=2)
    folder, output = make_folder(tmp_path / "data", 24), tmp_path / "pairs"
    process = context.Process(target=run_as_process, args=(folder, output, settings), kwargs={"pause": 0.2})
    process.start()
    while process.is_alive() and not (output / ".fastgoal/run.json").exists():
        process.join(0.01)
    with pytest.raises(ValueError, match=f"process {process.pid} on the machine .* writes this folder"):
        run(folder, output, unused, settings=settings)
    process.kill()
    process.join()
    assert run(folder, output, settings=settings)["images"] == 24


def test_a_damaged_shard_is_named_and_made_again(made, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(shards.logger, "warning", warnings.append)
    output = tmp_path / "pairs"
    run(made.folder, output)
    first, second, third = sorted((output / "data").iterdir())
    size = first.stat().st_size
    first.write_bytes(first.read_bytes()[: size // 2])
    content = second.read_bytes()
    second.write_bytes(content[:-4] + b"XXXX")
    third.unlink()
    assert run(made.folder, output)["shards_made"] == 3
    assert len(warnings) == 2  # a missing shard is no damage
    assert all(fact in warnings[0] for fact in (f"{first} is damaged", f"{size // 2} bytes", f"record says {size}"))
    assert f"{second} is damaged" in warnings[1]
    first.unlink()
    (output / ".fastgoal" / f"{second.stem}.json").write_text("{")
    assert run(made.folder, output)["shards_made"] == 2
    assert rows_of(output) == rows_of(made.output)


def test_other_settings_or_data_are_refused(made, tmp_path):
    output = tmp_path / "pairs"
    folder = make_folder(tmp_path / "data", count=2)
    run(folder, output)
    before = rows_of(output)
    with pytest.raises(ValueError, match=r"of the detector, min_area was 0.01 and is now 0.2\..*`output`, or delete"):
        run(folder, output, unused, settings=replace(SETTINGS, detector=replace(HALVES, min_area=0.2)))
    with pytest.raises(ValueError, match="model was 'colors' and is now 'shapes'"):
        run(folder, output, unused, settings=replace(SETTINGS, model="shapes"))
    with pytest.raises(ValueError, match="source_rows was 2 and is now 8"):
        run(made.folder, output, unused)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"image files of the source have changed.*delete this folder"):
        run(folder, output, unused)
    assert rows_of(output) == before
    (output / "fastgoal_pairs.json").write_text("{")
    with pytest.raises(ValueError, match=r"fastgoal_pairs.json: .* cannot be read"):
        run(folder, output, unused)


def test_settings_may_change_until_a_shard_is_finished(made, tmp_path):
    def fail():
        raise RuntimeError("wrong detector")

    with pytest.raises(RuntimeError, match="wrong detector"):
        run(made.folder, tmp_path / "pairs", matcher(Halves(1, fail)), PairSettings("colors", shard_size=2))
    run(made.folder, tmp_path / "pairs")
    assert rows_of(tmp_path / "pairs") == rows_of(made.output)


def test_a_folder_with_other_files_is_refused(made, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"`fastgoal pairs` did not write \(thesis.tex\)"):
        run(made.folder, tmp_path, unused)
    with pytest.raises(ValueError, match=r"`output`.*thesis.tex"):
        run(made.folder, tmp_path / "thesis.tex", unused)


BAD_ROWS = {
    0: {"file_name": "absent.png"},
    1: {"caption": "  "},
    2: {"file_name": "broken.png"},
    4: {"boxes": [[0, 0, 30, 30], [40, 5, 40, 20]]},
}


@pytest.fixture
def bad_folder(tmp_path):
    extra = {number: {"boxes": [[0, 0, 20, 30]], **BAD_ROWS.get(number, {})} for number in range(8)}
    folder = make_folder(tmp_path / "bad", extra=extra)
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:60])
    return folder


COLUMN = PairSettings("colors", DetectorSpec("column", "boxes"), shard_size=3)


def test_bad_rows_are_skipped_counted_and_listed(bad_folder, tmp_path, load):
    summary = run(bad_folder, tmp_path / "pairs", settings=COLUMN, on_error="skip")
    assert summary["images"] == 4
    assert [entry["row"] for entry in summary["skipped"]] == [0, 1, 2, 4]
    reasons = [entry["reason"] for entry in summary["skipped"]]
    for number, words in enumerate(("absent.png", "empty caption", "broken.png", "box")):
        assert f"metadata.jsonl line {summary['skipped'][number]['row'] + 1} (" in reasons[number]
        assert words in reasons[number].lower()
    # The first shard has no rows at all, and the folder can be read nevertheless.
    assert load(tmp_path / "pairs")["file_name"] == ["3.png", "5.png", "6.png", "7.png"]
    again = run(bad_folder, tmp_path / "pairs", unused, settings=COLUMN, on_error="skip")
    assert again["skipped"] == summary["skipped"]
    with pytest.raises(ValueError, match=r"skipped 4 rows .*absent.png"):
        run(bad_folder, tmp_path / "pairs", unused, settings=COLUMN)


def test_skipped_rows_survive_an_interruption(bad_folder, tmp_path):
    whole = run(bad_folder, tmp_path / "whole", settings=COLUMN, on_error="skip")
    with pytest.raises(ValueError, match=r"line 1 \(absent.png\).*`on_error=skip`"):
        run(bad_folder, tmp_path / "pairs", settings=COLUMN)
    run(bad_folder, tmp_path / "pairs", settings=COLUMN, on_error="skip")
    (tmp_path / "pairs/data/train-00001-of-00003.parquet").unlink()
    summary = run(bad_folder, tmp_path / "pairs", settings=COLUMN, on_error="skip")
    assert without_times(summary) == without_times(whole)
    assert rows_of(tmp_path / "pairs") == rows_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("extra", "labels"),
    [
        ({"boxes": [[0, 0, 20, 30], [40, 0, 60, 30]]}, ["", ""]),
        ({"boxes": [[0, 0, 20, 30], [40, 0, 60, 30]], "labels": ["door", "tree"]}, ["door", "tree"]),
        ({"boxes": [{"bbox": [0, 0, 20, 30], "label": "door", "iscrowd": 0}, {"bbox": [40, 0, 60, 30]}]}, ["door", ""]),
        ({"boxes": [{"bbox": [0, 0, 20, 30], "score": 0.1}, {"bbox": [40, 0, 60, 30], "score": 0.9}]}, [""]),
        ({"boxes": None}, []),
    ],
)
def test_boxes_of_a_column(tmp_path, load, extra, labels):
    folder = make_folder(tmp_path / "data", count=1, extra={0: extra})
    run(folder, tmp_path / "pairs", matcher(), settings=COLUMN)
    (row,) = load(tmp_path / "pairs")
    assert [region["label"] for region in row["regions"] if region["source"] == "column"] == labels
    if len(labels) == 2:
        assert [row["regions"][pair["region"]]["box"][0] for pair in row["pairs"]] == [40, 0]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "has no column 'boxes'.*file_name, caption"),
        ({"boxes": {"box": []}}, "'boxes' must be a list of"),
        ({"boxes": [{"box": [0, 0, 9, 9]}]}, "'boxes' .* box 0"),
        ({"boxes": [[0, 0, 20, 30]], "labels": []}, r"`labels` .* got 0 for 1"),
        ({"boxes": [[0, 0, 200, 30]]}, r"line 1 \(0.png\)"),
    ],
)
def test_bad_boxes_name_the_row(tmp_path, extra, message):
    folder = make_folder(tmp_path / "data", count=1, extra={0: extra})
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "pairs", matcher(), settings=COLUMN)


def test_a_rotated_photograph_is_stored_unchanged_and_measured_upright(tmp_path, load):
    folder = make_folder(tmp_path / "data", count=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "0.png").save(folder / "0.png", exif=exif)
    run(folder, tmp_path / "pairs")
    (row,) = load(tmp_path / "pairs")
    assert (row["width"], row["height"]) == (30, 60) == row["image"].size


def test_limit_takes_the_first_rows_and_default_regions_are_always_there(made, tmp_path, load):
    settings = PairSettings("colors", replace(HALVES, max_area=0.2), limit=4, shard_size=3)
    summary = run(made.folder, tmp_path / "pairs", settings=settings)
    assert (summary["images"], summary["shards"], summary["regions"]) == (4, 2, {"default": 20})
    assert load(tmp_path / "pairs")["file_name"] == [f"{number}.png" for number in range(4)]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"shard_size": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=rf"`{next(iter(wrong))}`.*0"):
        PairSettings(model="x", **wrong)


def test_a_manifest_of_another_format_is_refused(made, tmp_path):
    output = tmp_path / "pairs"
    run(made.folder, output)
    path = output / "fastgoal_pairs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    with pytest.raises(ValueError, match=r"fastgoal_pairs.json: .*format is 0, expected 2"):
        run(made.folder, output, unused)


def test_the_public_function_takes_loaded_models_and_detectors(made, tiny_clip, tmp_path, load):
    model, processor = FastGoalCLIPModel.from_base(str(tiny_clip)), FastGoalProcessor.from_base(str(tiny_clip))
    options = {"processor": processor, "shard_size": 3, "progress": False}
    summary = build_pairs(made.folder, tmp_path / "pairs", model, Halves(), **options)
    assert summary["regions"] == made.summary["regions"]
    assert processor.detector is None
    processor.detector = Halves()
    rows = list(load(tmp_path / "pairs"))
    expected = processor.pair_rows(
        [str(made.folder / row["file_name"]) for row in rows], [row["caption"] for row in rows], model
    )
    for row, other in zip(rows, expected, strict=True):
        assert [(p["sentence"], p["region"], p["best"]) for p in row["pairs"]] == [
            (p["sentence"], p["region"], p["best"]) for p in other["pairs"]
        ]
        assert [p["score"] for p in row["pairs"]] == pytest.approx([p["score"] for p in other["pairs"]], abs=1e-5)
    with torch.no_grad():
        model.visual_projection.weight += 0.01
    with pytest.raises(ValueError, match=r"model was 'tiny_clip0#.* and is now 'tiny_clip0#"):
        build_pairs(made.folder, tmp_path / "pairs", model, Halves(), **options)
    assert build_pairs(load_source(made.folder), tmp_path / "none", model, None, **options)["regions"] == {
        "default": 40
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processor": None}, "`processor`.*None"),
        ({"model": "folder"}, "`processor`.*name"),
        ({"workers": 2}, "`workers`.*`model`"),
        ({"regions": "masks"}, "`regions`.*'masks'"),
        ({"regions": "sam"}, "`regions=sam`.*`detector=none`"),
        ({"box_units": "percent"}, "`box_units`.*'percent'"),
        ({"box_format": "cxcywh"}, "`box_format` must be xyxy or xywh, got 'cxcywh'"),
        ({"min_area": 2.0}, "min_area"),
    ],
)
def test_arguments_that_do_not_go_together(made, tiny_clip, tmp_path, options, message):
    model, processor = ColorModel(), make_processor()
    model.state_dict, model.name_or_path = dict, "colors"
    options = {"model": model, "detector": "none", "processor": processor, **options}
    with pytest.raises(ValueError, match=message):
        build_pairs(made.folder, tmp_path / "pairs", **options)
    assert not (tmp_path / "pairs").exists()


def test_captions_without_phrases_are_counted(tmp_path, load):
    folder = make_folder(tmp_path / "data", 3, {1: {"caption": "Red, nothing else. It is blue."}})
    summary = run(folder, tmp_path / "pairs")
    assert (summary["without_phrases"], summary["regions"]) == (1, {"default": 15, "halves": 4})
    assert (
        run(folder, tmp_path / "column", matcher(), settings=replace(COLUMN, detector=HALVES))["without_phrases"] == 0
    )
    assert [region["source"] for region in load(tmp_path / "pairs")[1]["regions"]] == ["default"] * 5


def test_a_full_disk_says_so_and_keeps_what_is_finished(made, tmp_path):
    run(made.folder, tmp_path / "pairs", settings=SETTINGS)
    shard = tmp_path / "pairs/data/train-00001-of-00003.parquet"
    size = shard.stat().st_size
    shard.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"Could not write .*is kept"):
            run(made.folder, tmp_path / "pairs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(rows_of(tmp_path / "pairs")) == 2
    assert run(made.folder, tmp_path / "pairs")["shards_made"] == 1
    assert rows_of(tmp_path / "pairs") == rows_of(made.output)


@pytest.mark.parametrize("where", ["rows", "end of a shard", "record"])
def test_no_space_left_names_the_file_and_the_way_out(made, tmp_path, monkeypatch, where):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    calls = []

    def fail_later(original, least):
        def maybe(*args, **kwargs):
            calls.append(args)
            if len(calls) >= least:
                raise full
            return original(*args, **kwargs)

        return maybe

    # Rows are written once for each of these small shards. Synced are the name of the process, the manifest, and of
    # each shard the record and the shard, every time the file and its folder.
    if where == "rows":
        writer = pyarrow.parquet.ParquetWriter
        monkeypatch.setattr(writer, "write_table", fail_later(writer.write_table, 2))
    else:
        monkeypatch.setattr(os, "fsync", fail_later(os.fsync, {"record": 9, "end of a shard": 11}[where]))
    name = r"train-00001-of-00003\.(json|parquet)"
    with pytest.raises(OSError, match=f"Could not write .*{name}.*No space left.*is kept: make room"):
        run(made.folder, tmp_path / "pairs")
    monkeypatch.undo()
    assert list(rows_of(tmp_path / "pairs")) == ["train-00000-of-00003.parquet"]
    assert not list((tmp_path / "pairs").rglob("*.tmp"))
    assert run(made.folder, tmp_path / "pairs")["shards_made"] == 2
    assert rows_of(tmp_path / "pairs") == rows_of(made.output)
