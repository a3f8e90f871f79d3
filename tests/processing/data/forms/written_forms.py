"""Writes the same images and captions in every form of data, for tests."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from tests.processing.data.forms.published_forms import PUBLISHED_WRITERS

Row = tuple[str, Image.Image, str]
"""The file name of an image, the image and its caption."""


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path, rows: Sequence[Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image, _ in rows:
        image.save(folder / name)
    return folder


def write_metadata(folder: Path, rows: Sequence[Row]) -> Path:
    lines = [json.dumps({"file_name": name, "caption": caption}) for name, _, caption in rows]
    (write_images(folder, rows) / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def write_csv(folder: Path, rows: Sequence[Row]) -> Path:
    with (write_images(folder, rows) / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filepath", "title"), *((name, caption) for name, _, caption in rows)])
    return folder / "train.csv"


def write_sidecar(folder: Path, rows: Sequence[Row]) -> Path:
    for name, _, caption in rows:
        (write_images(folder, rows) / name).with_suffix(".txt").write_text(caption)
    return folder


def write_tar(folder: Path, rows: Sequence[Row]) -> Path:
    folder.mkdir(parents=True)
    for start in range(0, len(rows), 4):
        with tarfile.open(folder / f"{start:05d}.tar", "w") as tar:
            for name, image, caption in rows[start : start + 4]:
                for member, content in ((name, encoded(image)), (f"{Path(name).stem}.txt", caption.encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def as_dataset(rows: Sequence[Row]) -> datasets.Dataset:
    images = [{"bytes": encoded(image), "path": name} for name, image, _ in rows]
    columns = {"image": images, "caption": [caption for *_, caption in rows]}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def write_saved(folder: Path, rows: Sequence[Row]) -> Path:
    as_dataset(rows).save_to_disk(str(folder))
    return folder


def write_parquet(folder: Path, rows: Sequence[Row]) -> Path:
    folder.mkdir(parents=True)
    as_dataset(rows).to_parquet(folder / "train.parquet")
    return folder


def write_img2dataset(folder: Path, rows: Sequence[Row]) -> Path:
    folder.mkdir(parents=True)
    table = [
        {
            "caption": caption,
            "url": f"http://a/{name}",
            "key": Path(name).stem,
            "status": "success",
            "png": encoded(image),
        }
        for name, image, caption in rows
    ]
    failed = {"caption": "Not there.", "url": "http://a/b", "key": "9", "status": "failed_to_download", "png": None}
    pyarrow.parquet.write_table(pa.Table.from_pylist([failed, *table]), folder / "00000.parquet")
    return folder


WRITERS: dict[str, Callable[[Path, Sequence[Row]], Path]] = {
    "csv": write_csv,
    "img2dataset": write_img2dataset,
    "metadata": write_metadata,
    "parquet": write_parquet,
    "saved": write_saved,
    "sidecar": write_sidecar,
    "webdataset": write_tar,
    **PUBLISHED_WRITERS,
}
"""By form: writes rows into a new folder, and returns the path for `load_source`."""
