"""Parquet files, saved datasets and boxes that are damaged, hostile or of something else."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from .harness import Case, Kit
from .images import train_on

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Builder = Callable[[Path, bytes], Any]


def table(image: bytes, caption: Any = None, **columns: Any) -> pa.Table:
    caption = ["A red square."] if caption is None else caption
    return pa.table({"image": pa.array([{"bytes": image, "path": "a.png"}], STRUCT), "caption": caption, **columns})


def named(path: str, as_text: bool = False) -> Builder:
    def build(folder: Path, image: bytes) -> None:
        value = [path] if as_text else pa.array([{"bytes": None, "path": path}], STRUCT)
        pq.write_table(pa.table({"image": value, "caption": ["a"]}), folder / "t.parquet")

    return build


def holding(**changes: Any) -> Builder:
    return lambda folder, image: pq.write_table(table(image, **changes), folder / "t.parquet")


def image_of(value: Any) -> Builder:
    return lambda folder, image: pq.write_table(pa.table({"image": value, "caption": ["a"]}), folder / "t.parquet")


def raw(data: bytes) -> Builder:
    return lambda folder, image: (folder / "t.parquet").write_bytes(data)


def cut(folder: Path, image: bytes) -> None:
    pq.write_table(table(image), folder / "t.parquet")
    os.truncate(folder / "t.parquet", 200)


def two_runs(folder: Path, image: bytes) -> None:
    for name in ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        pq.write_table(table(image), folder / f"{name}.parquet")


def a_shard_less(folder: Path, image: bytes) -> None:
    pq.write_table(table(image), folder / "train-00001-of-00002.parquet")


def other_columns(folder: Path, image: bytes) -> None:
    pq.write_table(table(image), folder / "a.parquet")
    pq.write_table(table(image, caption=[3]), folder / "b.parquet")


def saved(spoil: Callable[[Path], Any]) -> Builder:
    def build(folder: Path, image: bytes) -> None:
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        rows = [{"image": {"bytes": image, "path": "a.png"}, "caption": "a"}]
        datasets.Dataset.from_list(rows, features=features).save_to_disk(str(folder))
        spoil(folder)

    return build


def arrow(folder: Path) -> Path:
    return next(folder.glob("*.arrow"))


FILE = r"parquet"
TABLES: dict[str, tuple[Builder, str | None]] = {
    "whole": (holding(), None),
    "large strings": (holding(caption=pa.array(["a"], pa.large_string())), None),
    "names of the machine": (named("/etc/hostname"), "outside"),
    "names as text": (named("/etc/hostname", as_text=True), "outside|image"),
    "parents": (named("../../private.png"), "outside"),
    "a device": (named("/dev/zero"), "outside"),
    "an address": (named("http://example.com/a.png"), "does not exist|cannot be read|leads out"),
    "absent": (named("absent.png"), "does not exist"),
    "no bytes": (raw(b""), FILE),
    "a text": (raw(b"image,caption\n"), FILE),
    "a pointer": (raw(b"version https://git-lfs.github.com/spec/v1\n"), FILE),
    "a pickle": (raw(b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94\x93."), FILE),
    "cut": (cut, FILE),
    "no rows": (lambda folder, image: pq.write_table(table(image)[:0], folder / "t.parquet"), "no rows"),
    "two runs": (two_runs, "two datasets"),
    "a shard less": (a_shard_less, "lacks 1 of its shards"),
    "other columns": (other_columns, "different columns"),
    "a pipe": (lambda folder, image: os.mkfifo(folder / "t.parquet"), FILE),
    "a folder": (lambda folder, image: (folder / "t.parquet").mkdir(), "parquet"),
    "numbers for images": (image_of([1]), "image"),
    "lists for images": (image_of([[1, 2]]), "image"),
    "images that are null": (image_of(pa.array([None], STRUCT)), "no image"),
    "nothing but null": (image_of(pa.array([None])), "no image|image"),
    "bytes of no image": (lambda f, i: pq.write_table(table(b"x"), f / "t.parquet"), "not an image|image"),
    "null for a caption": (holding(caption=pa.array([None], pa.string())), "caption"),
    "numbers for captions": (holding(caption=[3]), "caption"),
    "nested captions": (holding(caption=[[["a"]]]), "caption"),
    "no caption in a list": (holding(caption=pa.array([[]], pa.list_(pa.string()))), "caption"),
    "two image columns": (
        lambda f, i: pq.write_table(table(i, other=pa.array([{"bytes": i, "path": "b"}], STRUCT)), f / "t.parquet"),
        None,
    ),
    "saved, whole": (saved(lambda folder: None), None),
    "saved, cut": (saved(lambda folder: os.truncate(arrow(folder), 200)), "cannot be loaded"),
    "saved, gone": (saved(lambda folder: arrow(folder).unlink()), "cannot be loaded"),
    "saved, no JSON": (saved(lambda folder: (folder / "state.json").write_text("{")), "cannot be loaded"),
    "saved, a list": (saved(lambda folder: (folder / "state.json").write_text("[]")), "cannot be loaded"),
    "saved, no info": (saved(lambda folder: (folder / "dataset_info.json").unlink()), "cannot be loaded"),
}
BOXES: dict[str, tuple[Any, str | None]] = {
    "whole": ([[0, 0, 20, 20]], None),
    "fractions": ([[0.1, 0.1, 0.5, 0.5]], "--box-units fractions"),
    "no box": ([], None),
    "null": (None, None),
    "not a number": ([[float("nan"), 0, 5, 5]], "finite"),
    "infinite": ([[0, 0, float("inf"), 5]], "finite"),
    "turned round": ([[20, 20, 5, 5]], "no area"),
    "outside": ([[500, 500, 600, 600]], "outside"),
    "negative": ([[-50, -50, 10, 10]], "extends beyond"),
    "three numbers": ([[1, 2, 3]], "four numbers"),
    "too many": ([[0, 0, 20, 20]] * 3000, None),
}


def arguments(what: str, kit: Kit, data: Path) -> list[str]:
    model = ["--model", str(kit.clip)]
    if what == "pairs":
        return ["pairs", str(data), "--output", "out", "--detector", "none", "--device", "cpu", *model]
    if what == "evaluate":
        return ["evaluate", "--data", str(data), "--device", "cpu", *model]
    if what == "inspect":
        return ["inspect", str(data), "--output", "page.html"]
    return train_on(kit, data, "--objective", "global", *(["--streaming"] if what == "stream" else []))


def build(folder: Path, kit: Kit, builder: Builder) -> Path:
    data = folder / "data"
    data.mkdir()
    builder(data, kit.picture.read_bytes())
    return data


def cases() -> Iterator[Case]:
    for name, (builder, words) in TABLES.items():
        for what in ("pairs", "evaluate", "train", "stream", "inspect"):
            wrong = words
            if what == "stream" and name.startswith("saved"):
                wrong = "."  # these are no streams
            yield Case(
                "tables",
                f"{what}: {name}",
                lambda folder, kit, what=what, builder=builder: arguments(what, kit, build(folder, kit, builder)),
                wrong,
                sample=(what, name) in (("pairs", "parents"), ("train", "two runs"), ("evaluate", "saved, a list")),
            )
    for name, (boxes, words) in BOXES.items():
        yield Case(
            "tables",
            f"boxes: {name}",
            lambda folder, kit, boxes=boxes: [
                *arguments(
                    "pairs", kit, build(folder, kit, holding(boxes=pa.array([boxes], pa.list_(pa.list_(pa.float64())))))
                ),
                *("--detector", "column:boxes"),
            ],
            words,
            sample=name == "fractions",
        )
