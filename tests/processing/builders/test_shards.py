"""The output folder of a run: its lock, and files that appear whole."""

import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from fastgoal.processing.builders import shards
from fastgoal.processing.builders.captions import CaptionSettings
from fastgoal.processing.builders.shards import (
    BadRow,
    RunFolder,
    check_run,
    describe_differences,
    good_rows,
    refuse_skipped,
)
from fastgoal.processing.data.image_folder import ImageFolder
from fastgoal.processing.files import whole_file, write_json
from tests.locks import held_by_another

SETTINGS = CaptionSettings("a model", "What is it?")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    return ImageFolder(tmp_path / "images")


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "out", "run.json", "fastgoal run", ["data/*"])


def test_changed_versions_are_reported_and_new_ones_are_not(source, folder, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(shards.logger, "warning", warnings.append)
    with folder.open(source, SETTINGS) as manifest:
        (folder.folder / "data").mkdir()
        (folder.folder / "data" / "made").touch()
        versions = {"torch": manifest["versions"]["torch"], "pillow": "1.0"}
        write_json(folder.manifest, {**manifest, "versions": versions}, folder.work)
    with folder.open(source, SETTINGS):
        pass
    (message,) = warnings
    assert str(folder.folder) in message
    assert "pillow 1.0," in message
    assert "torch" not in message


def test_one_run_at_a_time(source, folder):
    holder = folder.work / "run.json"
    with folder.open(source, SETTINGS):
        assert json.loads(holder.read_text())["pid"] == os.getpid()
        with pytest.raises(
            ValueError, match=f"^process {os.getpid()} on the machine .*Wait for it, stop it.* delete .*run.lock"
        ):
            folder.open(source, SETTINGS).__enter__()
        holder.unlink()
        with pytest.raises(ValueError, match="another run writes this folder"):
            folder.open(source, SETTINGS).__enter__()
    with folder.open(source, SETTINGS):
        pass
    assert not holder.exists()


def test_the_system_frees_the_lock_of_a_process_that_was_killed(source, folder):
    with (
        held_by_another(folder.work) as number,
        pytest.raises(ValueError, match=f"process {number} on the machine '.*' writes this folder"),
    ):
        folder.open(source, SETTINGS).__enter__()
    with folder.open(source, SETTINGS):
        pass


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    with pytest.raises(TypeError), whole_file(path, tmp_path) as file:
        file.write("half")
    assert os.listdir(tmp_path) == ["sub"]
    assert os.listdir(path.parent) == []
    with whole_file(path, tmp_path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    with pytest.raises(OSError, match=r"Could not write .* continues where it stopped"):
        write_json(tmp_path / "a.json", {}, tmp_path / "absent")


def test_differences_of_settings_in_words():
    found = {"model": "a", "detector": {"kind": "none", "min_area": 0.01}, "prompt": "What?", "limit": 3}
    wanted = {"model": "b", "detector": {"kind": "sam", "min_area": 0.01}, "prompt": "Where?", "limit": 3}
    assert describe_differences(found, found) == ""
    assert describe_differences(found, wanted) == (
        "model was 'a' and is now 'b'; of the detector, kind was 'none' and is now 'sam'; the prompt was different"
    )


def test_rows_that_were_skipped_stop_a_run_that_stops_at_such_rows():
    refuse_skipped([])
    with pytest.raises(ValueError, match=r"skipped 1 row .*a is broken\..*`on_error=skip`"):
        refuse_skipped([{"row": 0, "reason": "a is broken."}])


def test_a_folder_that_another_machine_does_not_see(tmp_path):
    folder = RunFolder(tmp_path / "here", "manifest.json", "a command", ["data/*"])
    folder.work.mkdir(parents=True)
    (folder.work / "run.json").write_text(json.dumps({"pid": 1, "host": "the driver"}))
    run = folder.read_run()
    folder.check_shared(run)
    for elsewhere in (replace(folder, folder=tmp_path / "elsewhere"), folder):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"does not see the output folder .*'the driver'"):
            elsewhere.check_shared({**run, "pid": 2} if elsewhere is folder else run)


def test_bad_rows_are_listed_or_stop_the_run():
    bad, hinting = BadRow(3, "c is broken."), BadRow(4, "d is broken: skip it with `on_error=skip`.")
    skipped = []
    assert good_rows(["a", bad, "b"], skipped) == ["a", "b"]
    assert skipped == [bad]
    for row, message in (
        (bad, r"^c is broken\. .*`on_error=skip`"),
        (hinting, r"^d is broken: [^.]*`on_error=skip`\.$"),
    ):
        with pytest.raises(ValueError, match=message):
            good_rows([row], None)


def test_wrong_options_and_several_processes_are_refused(source, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_run(source, "stop", batch_size=1)
    for options, words in (({"on_error": "go"}, "`on_error`.*'go'"), ({"batch_size": 0}, "`batch_size`.*0")):
        with pytest.raises(ValueError, match=words):
            check_run(source, **{"on_error": "skip", **options})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE=2.*torchrun and accelerate launch.*`workers`"):
        check_run(source, "stop", batch_size=1)
