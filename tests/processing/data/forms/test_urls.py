"""Tables of URLs: never downloaded, and the command that downloads them."""

import re
import shlex

import pyarrow as pa
import pyarrow.parquet
import pytest

from fastgoal.processing.data.forms.registry import load_source, recognize

TABLES = {
    "Recap-DataComp": ({"url": ["http://a/b.jpg"], "re_caption": ["Long."], "org": ["x"]}, "url", "re_caption"),
    "PixelProse": (
        {"url": ["http://a/b.jpg"], "vlm_caption": ["Long."], "key": ["x"]},
        "url",
        "vlm_caption",
    ),
    "LAION-COCO": ({"URL": ["http://a/b.jpg"], "TEXT": ["x"], "top_caption": ["y"]}, "URL", "top_caption"),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_the_command_names_the_table_and_its_columns(tmp_path, name, suffix, is_folder):
    columns, url, caption = TABLES[name]
    path = tmp_path / "my urls" / f"part.{suffix}"
    path.parent.mkdir()
    if suffix == "parquet":
        pyarrow.parquet.write_table(pa.table(columns), path)
    else:
        lines = [columns, [values[0] for values in columns.values()]]
        path.write_text("\n".join(("," if suffix == "csv" else "\t").join(line) for line in lines))
    source = path.parent if is_folder else path
    assert recognize(source).name == "urls"
    with pytest.raises(ValueError, match="does not download") as error:
        load_source(source)
    words = shlex.split(re.search("`(img2dataset .*?)`", str(error.value))[1])
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--url_list"] == str(source)
    assert (options["--url_col"], options["--caption_col"]) == (url, caption)
    assert (options["--input_format"], options["--output_format"]) == (suffix, "webdataset")


def test_the_caption_column_can_be_named_and_must_be_known(tmp_path):
    path = tmp_path / "urls.csv"
    path.write_text("url,story\nhttp://a/b.jpg,x\n")
    with pytest.raises(ValueError, match=r"only \['url', 'story'\].*`caption_column`"):
        load_source(path)
    with pytest.raises(ValueError, match="--caption_col story"):
        load_source(path, caption_column="story")
