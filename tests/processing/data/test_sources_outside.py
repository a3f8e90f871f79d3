"""Rows can name files of their own folder only, and only regular files are opened as images."""

import json
import os
import socket
import threading

import datasets
import pyarrow.parquet
import pytest
from PIL import Image

from fastgoal.processing.data.forms.registry import load_source, open_stream
from fastgoal.processing.data.image_folder import open_images
from fastgoal.processing.data.sources import DatasetSource
from fastgoal.processing.images import load_image


@pytest.fixture
def places(tmp_path):
    """A folder with an image, and a private image next to it."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (8, 8), "green").save(folder / "own.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "private.png")
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    (folder / "inner.png").symlink_to("own.png")
    (folder / "away").symlink_to(tmp_path)
    return folder, tmp_path / "private.png"


def refused(source, words="is outside the folder"):
    with pytest.raises(ValueError, match=f"{words}.*`allow_outside_files=True`"):
        source[0]


OUTSIDE = ["../private.png", "{private}", "link.png", "away/private.png", "sub/../../private.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_rows_cannot_name_files_outside(places, name):
    folder, private = places
    name = name.format(private=private)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "caption": "a"}) + "\n")
    refused(load_source(folder), rf"metadata.jsonl line 1 \(.*\): .* is outside the folder {folder}: it is {private}")
    allowed = load_source(folder, allow_outside_files=True)[0]
    assert load_image(allowed.image).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["own.png", "inner.png", "sub/../own.png"])
def test_rows_can_name_files_inside(places, tmp_path, name, monkeypatch):
    folder, _ = places
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "caption": "a"}) + "\n")
    beside = tmp_path / "beside"
    beside.symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for place in (folder, beside, "data"):  # the folder itself may be a link, and be named from here
        assert load_image(load_source(place)[0].image).getpixel((0, 0)) == (0, 128, 0)


@pytest.mark.parametrize("as_text", [False, True])
def test_parquet_files_cannot_name_files_outside(places, as_text, monkeypatch):
    folder, private = places

    def write(path):
        column = [str(path)] if as_text else [{"bytes": None, "path": str(path)}]
        kind = datasets.Value("string") if as_text else datasets.Image(decode=False)
        features = datasets.Features({"image": kind, "caption": datasets.Value("string")})
        table = datasets.Dataset.from_dict({"image": column, "caption": ["a"]}, features=features)
        pyarrow.parquet.write_table(table.with_format("arrow")[:], folder / "train.parquet")

    options = {"image_column": "image"}
    write(private)
    refused(load_source(folder, **options))
    refused(open_images(folder, **options))
    stream = open_stream(folder)
    with pytest.raises(ValueError, match=r"is outside the folder .*private.png"):
        stream.row(0, dict(next(iter(stream.dataset))))
    # A name without a folder is of the data's folder, not of the one that the program runs in.
    write("own.png")
    assert load_image(load_source(folder, **options)[0].image).getpixel((0, 0)) == (0, 128, 0)


def test_a_folder_of_images_with_links(places):
    folder, private = places
    source = open_images(folder)
    assert [row for row in range(len(source)) if source.files[row] == "link.png"] == [1]
    assert load_image(source[0].image).size == (8, 8)
    with pytest.raises(ValueError, match=rf"'link.png' is outside the folder {folder}: it is {private}"):
        source[1]
    assert load_image(open_images(folder, allow_outside_files=True)[1].image).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("value", [7, 1.5, ["a.png"], {"bytes": [1, 2]}, {"path": 3}, True])
def test_columns_without_images(value):
    table = datasets.Dataset.from_list([{"image": value, "caption": "a"}])
    with pytest.raises(ValueError, match=r"data row 0 .*'image' must be a file name or the bytes of an image"):
        DatasetSource(table, "data")[0]


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket.png"))
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("pipe.png", "a pipe, a socket or a device"),
        ("zero.png", "a pipe, a socket or a device"),
        ("socket.png", "cannot be read"),
        ("folder.png", "cannot be read"),
    ):
        error: list[Exception] = []

        def load(name=name, error=error):
            try:
                load_image(tmp_path / name)
            except ValueError as caught:
                error.append(caught)

        reader = threading.Thread(target=load, daemon=True)
        reader.start()
        reader.join(20)
        assert words in str(error[0]), name
    listening.close()
    source = open_images(tmp_path, allow_outside_files=True)
    assert source.fingerprint
