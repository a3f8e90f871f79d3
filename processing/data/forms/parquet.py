"""A folder of parquet files with images, as `fastgoal pairs` and the Hub have them."""

from pathlib import Path

from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.checkpoints.fingerprints import hash_files
from fastgoal.processing.data.locations import open_parquet, parquet_files, parquet_of_split
from fastgoal.processing.data.sources import DatasetSource, Source
from fastgoal.processing.data.streams import StreamSource

from . import img2dataset, urls
from .form import Form, SourceOptions


def fits(path: Path) -> bool:
    """Return whether there are parquet files, and not those of another form."""
    return bool(parquet_files(path)) and not urls.fits(path) and not img2dataset.fits(path)


def load(path: Path, options: SourceOptions) -> Source:
    import datasets

    files = parquet_of_split(path, options.split)
    with loading(f"`source={path}`"):
        dataset = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    return DatasetSource(dataset, str(path), fingerprint=hash_files(files), base=path, **options.columns)


def stream(path: Path, options: SourceOptions) -> StreamSource:
    import datasets

    files = parquet_of_split(path, options.split)
    names = [str(file) for file in files]
    rows = sum(open_parquet(file).metadata.num_rows for file in files)
    shards = datasets.load_dataset("parquet", data_files=names, split="train", streaming=True)
    return StreamSource.of(shards, str(path), rows=rows, base=path, fingerprint=hash_files(files), **options.columns)


FORM = Form(
    "parquet", "a folder of .parquet files with images, such as `fastgoal pairs` writes", fits, load, stream, True
)
