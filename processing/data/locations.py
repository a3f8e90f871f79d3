"""Where the rows of a dataset lie: parquet files and their splits, and the Hub."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastgoal.processing.checkpoints.errors import first_line, loading

METADATA = "metadata.jsonl"
SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.parquet")
EXPECTED = (
    f"a folder with {METADATA} (one JSON object a line with 'file_name' and 'caption' or 'captions'), a folder written "
    "by Dataset.save_to_disk, a folder of .parquet files (as `fastgoal pairs` writes), or the OWNER/NAME of a dataset "
    "on the Hub"
)


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files of a folder and of its sub-folder `data`, in order."""
    return sorted([*folder.glob("*.parquet"), *(folder / "data").glob("*.parquet")])


def parquet_of_split(folder: Path, split: str | None) -> list[Path]:
    """The parquet files of a split, of the only one if there is one; none where the folder has no such files.

    Raises:
        ValueError: Shards are missing or of two datasets, one cannot be read, or the split is not there.
    """
    files = parquet_files(folder)
    refuse_two_runs(files)
    if missing := missing_shards(files):
        raise ValueError(
            f"source='{folder}' lacks {len(missing)} of the shards that its file names speak of, the first: "
            f"{missing[0]}. If `fastgoal pairs` writes it, run that command again: it continues where it stopped."
        )
    by_split: dict[str, list[Path]] = {}
    for path in files:
        match = SHARD_NAME.fullmatch(path.name)
        by_split.setdefault(match["split"] if match else "train", []).append(path)
    chosen = list(pick_split(by_split, split, str(folder))) if files else []
    _check_parquet(chosen)
    return chosen


def refuse_two_runs(files: Iterable[Path]) -> None:
    """Raise `ValueError` where files are shards of one split, of different numbers of them."""
    seen: dict[str, tuple[str, Path]] = {}
    for path in files:
        if match := SHARD_NAME.fullmatch(path.name):
            count, first = seen.setdefault(match["split"], (match["count"], path))
            if count != match["count"]:
                raise ValueError(
                    f"{first} and {path} are shards of two datasets, of {int(count)} and of {int(match['count'])}. "
                    "Take one of them out of the folder."
                )


def _check_parquet(files: list[Path]) -> None:
    """Raise `ValueError` where one cannot be read or has other columns than the first, or there is no row at all."""
    import pyarrow.parquet

    columns: dict[str, str] = {}
    rows = 0
    for path in files:
        try:
            if not path.is_file():
                raise OSError("it is no regular file")
            metadata = pyarrow.parquet.read_metadata(path)
            schema = metadata.schema.to_arrow_schema()
        except (OSError, pyarrow.ArrowException) as error:
            reason = first_line(error).rstrip(".")
            raise ValueError(
                f"{path} cannot be read ({reason}): it is cut off or no parquet file. Get it again, or take it out."
            ) from None
        found = {name: str(kind).replace("large_", "") for name, kind in zip(schema.names, schema.types, strict=True)}
        columns = columns or found
        if found != columns:
            other = sorted(name for name in {*found, *columns} if found.get(name) != columns.get(name))
            raise ValueError(
                f"{path} has other columns than {files[0]} ({', '.join(other)}): they are of two datasets. Take "
                "one of them out of the folder."
            )
        rows += metadata.num_rows
    if files and not rows:
        raise ValueError(f"{files[0].parent} has {len(files)} parquet files and not one row in them.")


def missing_shards(files: Iterable[Path]) -> list[str]:
    """Names of files that the others' names speak of ("00001-of-00004") and that are not there."""
    there = {path.name for path in files}
    series = sorted({(match["split"], match["count"]) for match in map(SHARD_NAME.fullmatch, there) if match})
    names = (f"{split}-{index:05d}-of-{count}.parquet" for split, count in series for index in range(int(count)))
    return [name for name in names if name not in there]


def load_from_hub(name: str, split: str | None, streaming: bool = False) -> Any:
    """A dataset of the Hub, one split of it; raises `ValueError` where there is none."""
    # Without an owner the name could be one of the library's own readers, and one of those reads pickles.
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(f"source='{name}' does not exist. Expected {EXPECTED}.")
    import datasets

    way_out = f"It is no folder here, and the Hub has no answer. Expected {EXPECTED}."
    with loading(f"source='{name}'", way_out=way_out):
        loaded = datasets.load_dataset(name, split=split, streaming=streaming)
    return loaded if split is not None else pick_split(loaded, split, name)


def hub_cache() -> Path:
    """Where the Hub's client keeps files: those that the rows of a dataset from there may name."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def pick_split(loaded: Any, split: str | None, name: str) -> Any:
    """The split that is asked for of what was loaded, the only one where there is one; a `ValueError` without."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise ValueError(f"split='{split}': {name} was saved as one dataset without splits; leave split out.")
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise ValueError(f"split={split!r}: {name} has the splits {list(loaded)}; choose one of them.")
    return loaded[split]
