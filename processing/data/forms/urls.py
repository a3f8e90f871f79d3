"""Tables of URLs, such as those of Recap-DataComp, PixelProse and LAION-COCO. Nothing is ever downloaded from here.

The error names the command of img2dataset (github.com/rom1504/img2dataset) that downloads the images.
"""

import shlex
from pathlib import Path
from typing import NoReturn

from fastgoal.processing.data.locations import parquet_files
from fastgoal.processing.data.sources import CAPTION_COLUMNS, Source

from .form import Form, SourceOptions
from .tables import PATH_COLUMNS, read_header

URL_COLUMNS = ("url", "URL", "image_url", "urls")
# Captions of published tables: the long ones first.
LONG_COLUMNS = ("re_caption", "vlm_caption", "longSV_captions", "top_caption", "TEXT")
SUFFIXES = (".parquet", ".csv", ".tsv")
IMAGES = ("jpg", "png", "webp", "bytes")


def table_files(path: Path) -> list[Path]:
    """Return a table, or the tables of a folder."""
    if path.is_dir():
        tables = [file for suffix in (".csv", ".tsv") for file in path.glob(f"*{suffix}")]
        return sorted([*parquet_files(path), *tables])
    return [path] if path.suffix in SUFFIXES else []


def has_urls_only(columns: list[str]) -> bool:
    """Return whether the columns of a table have URLs of images, but neither images nor names of image files."""
    return any(name in columns for name in URL_COLUMNS) and not {*PATH_COLUMNS, *IMAGES} & {*columns}


def fits(path: Path) -> bool:
    """Return whether the first table has URLs only."""
    files = table_files(path)
    return bool(files) and has_urls_only(read_header(files[0]))


def load(path: Path, options: SourceOptions) -> Source:
    """Raise `ValueError` with the command that downloads the images."""
    files = table_files(path)
    if not files:
        raise ValueError(f"{path} has no .parquet, .csv or .tsv files.")
    table = files[0].parent if path.is_dir() else path
    refuse_urls(table, files[0].suffix, read_header(files[0]), options)


def refuse_urls(path: Path, suffix: str, columns: list[str], options: SourceOptions) -> NoReturn:
    """Raise `ValueError` with the command that downloads the images of a table of URLs.

    Args:
        path: The table, or the folder of its files.
        suffix: Suffix of the files.
        columns: Columns of the table.
        options: The options of `load_source`; its columns are used.
    """
    url = options.image_column or next((name for name in URL_COLUMNS if name in columns), "url")
    names = [name for name in (*LONG_COLUMNS, *CAPTION_COLUMNS) if name in columns]
    caption = options.caption_column or next(iter(names), None)
    if caption is None:
        raise ValueError(
            f"{path} has URLs of images, and no column with a usual name of captions, only {columns}. Name it with "
            "`caption_column` to get the command that downloads the images."
        )
    output = f"{path.with_suffix('') if path.suffix in SUFFIXES else path}-images"
    command = [
        "img2dataset",
        "--url_list",
        str(path),
        "--input_format",
        suffix.removeprefix("."),
        "--url_col",
        url,
        "--caption_col",
        caption,
        "--output_format",
        "webdataset",
        "--output_folder",
        output,
        "--image_size",
        "512",
        "--resize_mode",
        "keep_ratio",
        "--resize_only_if_bigger",
        "True",
    ]
    raise ValueError(
        f"{path} has URLs of images, and fastgoal does not download them. Download them with "
        f"`{shlex.join(command)}` (pip install img2dataset), then use {output}."
    )


FORM = Form(
    "urls", "tables of image URLs: nothing is downloaded; an error names the img2dataset command for it", fits, load
)
