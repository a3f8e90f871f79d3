"""What img2dataset wrote in each of its output formats is read as the same rows."""

import logging
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest

from fastgoal.processing.data.forms.registry import load_source, open_stream, recognize
from fastgoal.processing.images import load_image

WRITTEN = Path(__file__).parent / "img2dataset"
COLORS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
COLORS["purple"] = (128, 0, 128)
FORMS = {"files": "sidecar", "parquet": "img2dataset", "webdataset": "webdataset"}


@pytest.fixture(params=FORMS)
def written(request, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return WRITTEN / request.param


def check(rows):
    captions = [
        f"A {color} rectangle stands on a white ground. It is {5 * n} pixels wide." for n, color in enumerate(COLORS, 1)
    ]
    assert sorted(row.caption for row in rows) == sorted(captions)
    for row in rows:
        color = COLORS[row.caption.split()[1]]
        assert load_image(row.image).getpixel((10, 10)) == pytest.approx(color, abs=12)
        assert row.columns["url"].endswith(f"/{row.caption.split()[1]}.png")
        assert row.columns["key_of_mine"].startswith("id")
        assert row.name.endswith(f"{row.columns['key']}.jpg")


def test_each_output_has_the_rows_that_were_downloaded(written, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert recognize(written).name == FORMS[written.name]
    source = load_source(written)
    assert "2 of 7 images were not downloaded" in caplog.text
    check(list(source))
    assert source.captions(range(5)) == [row.caption for row in source]
    if written.name == "files":
        with pytest.raises(ValueError, match=r"sidecar, which cannot be streamed, unlike .*img2dataset.*webdataset"):
            open_stream(written)
    else:
        stream = open_stream(written)
        check([stream.row(0, dict(values)) for values in stream.dataset])


def test_no_row_was_downloaded(tmp_path):
    table = pyarrow.parquet.read_table(WRITTEN / "parquet/00000.parquet")
    failed = table.filter(pyarrow.compute.field("status") != "success")
    pyarrow.parquet.write_table(failed, tmp_path / "00000.parquet")
    with pytest.raises(ValueError, match=r"none of the 2 rows was downloaded.*'failed_to_"):
        load_source(tmp_path)


def test_a_shard_that_is_truncated_is_named(tmp_path):
    shutil.copytree(WRITTEN / "parquet", tmp_path / "parquet")
    path = tmp_path / "parquet/00000.parquet"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match=r"00000.parquet cannot be read .*truncated"):
        load_source(tmp_path / "parquet")
