"""A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` of `datasets` wrote."""

from pathlib import Path

from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.data.locations import pick_split
from fastgoal.processing.data.sources import DatasetSource, Source

from .form import Form, SourceOptions

FILES = ("dataset_dict.json", "state.json")


def fits(path: Path) -> bool:
    return any((path / name).is_file() for name in FILES)


def load(path: Path, options: SourceOptions) -> Source:
    import datasets

    with loading(f"`source={path}`"):
        saved = datasets.load_from_disk(str(path))
    return DatasetSource(pick_split(saved, options.split, str(path)), str(path), base=path, **options.columns)


FORM = Form("saved", "a folder written by Dataset.save_to_disk", fits, load, has_splits=True)
