"""The files of a dataset: parquet files, their splits and shards, and the Hub."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastgoal.processing.checkpoints.errors import first_line, loading
from fastgoal.processing.names import ASKED_HUB, HUB_ID, missing_data

METADATA = "metadata.jsonl"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Suffixes of image files."""
SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.parquet")


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files of a folder and of its subfolder `data`, in order.

    Metadata are left out: `metadata.parquet`, and files that img2dataset writes next to a tar file or a folder of the
    same name.
    """
    files = sorted([*folder.glob("*.parquet"), *(folder / "data").glob("*.parquet")])
    return [
        path
        for path in files
        if path.stem != "metadata" and not path.with_suffix(".tar").exists() and not path.with_suffix("").is_dir()
    ]


def parquet_of_split(folder: Path, split: str | None) -> list[Path]:
    """Return the parquet files of a split, or of the only split; an empty list if the folder has no such files.

    Raises:
        ValueError: Shards are missing or belong to two datasets, a file cannot be read, or there is no such split.
    """
    files = parquet_files(folder)
    refuse_two_runs(files)
    if missing := missing_shards(files):
        raise ValueError(
            f"{folder} lacks {len(missing)} of its shards, the first is {missing[0]}. If `fastgoal pairs` writes it, "
            "run that command again, which continues where it stopped."
        )
    by_split: dict[str, list[Path]] = {}
    for path in files:
        match = SHARD_NAME.fullmatch(path.name)
        by_split.setdefault(match["split"] if match else "train", []).append(path)
    chosen = list(pick_split(by_split, split, str(folder))) if files else []
    _check_parquet(chosen)
    return chosen


def refuse_two_runs(files: Iterable[Path]) -> None:
    """Raise `ValueError` if shards of one split disagree about their number."""
    seen: dict[str, tuple[str, Path]] = {}
    for path in files:
        if match := SHARD_NAME.fullmatch(path.name):
            count, first = seen.setdefault(match["split"], (match["count"], path))
            if count != match["count"]:
                raise ValueError(
                    f"{first} and {path} are shards of two datasets, of {int(count)} and of {int(match['count'])}. "
                    "Remove one of them from the folder."
                )


def _check_parquet(files: list[Path]) -> None:
    """Raise `ValueError` if a file cannot be read or has other columns than the first, or if there are no rows."""
    columns: dict[str, str] = {}
    rows = 0
    for path in files:
        metadata = open_parquet(path).metadata
        schema = metadata.schema.to_arrow_schema()
        types = {name: str(kind).replace("large_", "") for name, kind in zip(schema.names, schema.types, strict=True)}
        columns = columns or types
        if types != columns:
            other = sorted(name for name in {*types, *columns} if types.get(name) != columns.get(name))
            raise ValueError(
                f"{path} and {files[0]} have different columns ({', '.join(other)}): they belong to two datasets. "
                "Remove one of them from the folder."
            )
        rows += metadata.num_rows
    if files and not rows:
        raise ValueError(f"{files[0].parent} has no rows in its {len(files)} parquet files.")


def open_parquet(path: Path) -> Any:
    """Open a `pyarrow.parquet.ParquetFile`. Raise `ValueError` if the file cannot be read."""
    import pyarrow.parquet

    try:
        if not path.is_file():
            raise OSError("it is not a regular file")
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable_parquet(path, error) from None


def unreadable_parquet(path: Path, error: Exception) -> ValueError:
    """Return the error for a parquet file that cannot be read."""
    return ValueError(
        f"{path} cannot be read ({first_line(error).rstrip('.')}): it is truncated or not a parquet file. Download it "
        "again; if `fastgoal pairs` wrote it, delete it and run that command again, which makes what is missing."
    )


def missing_shards(files: Iterable[Path]) -> list[str]:
    """Return the names of missing shards: "00001-of-00004" in a file's name tells how many there must be."""
    names = {path.name for path in files}
    series = sorted({(match["split"], match["count"]) for match in map(SHARD_NAME.fullmatch, names) if match})
    shards = (f"{split}-{index:05d}-of-{count}.parquet" for split, count in series for index in range(int(count)))
    return [shard for shard in shards if shard not in names]


def load_from_hub(name: str, split: str | None, streaming: bool = False) -> Any:
    """Load a split of a dataset on the Hub. Raise `ValueError` if there is none."""
    # A name without an owner could be one of the readers of `datasets`, and one of those reads pickles.
    if not HUB_ID.fullmatch(name):
        raise missing_data(f"'{name}'")
    import datasets

    with loading(f"'{name}'", way_out=ASKED_HUB):
        loaded = datasets.load_dataset(name, split=split, streaming=streaming)
    return loaded if split is not None else pick_split(loaded, split, name)


def hub_cache() -> Path:
    """Return the cache of the Hub's client, where rows of a Hub dataset may name files."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def wrong_split(split: str | None, splits: Iterable[str], name: str | Path) -> ValueError:
    """Return the error for a split that data do not have, or for several splits of which none is chosen."""
    ending = "which has several splits" if split is None else f"got {split!r}"
    return ValueError(f"`split` must be one of {', '.join(map(repr, splits))} for {name}, {ending}.")


def pick_split(loaded: Any, split: str | None, name: str) -> Any:
    """Return a split of what was loaded, or the only one. Raise `ValueError` if it does not exist."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise ValueError(f"`split` must be left out for {name}, which has no splits, got {split!r}.")
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise wrong_split(split, loaded, name)
    return loaded[split]
