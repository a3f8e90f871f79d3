"""A dataset on the Hub."""

from pathlib import Path

from fastgoal.processing.checkpoints.errors import loading
from fastgoal.processing.data.locations import hub_cache, load_from_hub
from fastgoal.processing.data.sources import DatasetSource, Source
from fastgoal.processing.data.streams import StreamSource

from .form import Form, SourceOptions


def fits(path: Path) -> bool:
    return not path.exists()


def load(path: Path, options: SourceOptions) -> Source:
    name = str(path)
    return DatasetSource(load_from_hub(name, options.split), name, base=hub_cache(), **options.columns)


def stream(path: Path, options: SourceOptions) -> StreamSource:
    import huggingface_hub

    name = str(path)
    shards = load_from_hub(name, options.split, streaming=True)
    known = (shards.info.splits or {}).get(str(shards.split))
    rows = getattr(known, "num_examples", None)
    with loading(f"'{name}'"):
        revision = f"{name}@{huggingface_hub.HfApi().dataset_info(name).sha} {shards.split}"
    return StreamSource.of(shards, name, rows=rows, base=hub_cache(), fingerprint=revision, **options.columns)


FORM = Form("hub", "the OWNER/NAME of a dataset on the Hub", fits, load, stream, has_splits=True)
