"""A dataset on the Hub."""

from pathlib import Path

from fastgoal.processing.data.locations import hub_cache, load_from_hub
from fastgoal.processing.data.sources import DatasetSource, Source

from .form import Form, SourceOptions


def fits(path: Path) -> bool:
    return not path.exists()


def load(path: Path, options: SourceOptions) -> Source:
    name = str(path)
    return DatasetSource(load_from_hub(name, options.split), name, base=hub_cache(), **options.columns)


FORM = Form("hub", "the OWNER/NAME of a dataset on the Hub", fits, load, has_splits=True)
