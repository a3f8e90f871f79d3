"""The folder that `fastgoal embed` writes: vectors in parquet files, and a manifest that names their model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EMBEDDINGS_MANIFEST = "fastgoal_embeddings.json"
VECTOR_TYPES = ("float16", "float32")


def read_embeddings(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished folder.

    Raises:
        ValueError: The manifest cannot be read, or the folder is not finished.
    """
    path = folder / EMBEDDINGS_MANIFEST
    try:
        manifest = dict(json.loads(path.read_bytes()))
        finished = "summary" in manifest
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Write the folder again with `fastgoal embed`.") from None
    if not finished:
        raise ValueError(f"{folder}: the embeddings are not finished. Run the same `fastgoal embed` command again.")
    return manifest


def shard_files(folder: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """Yield the parquet files of a finished folder in order; raise `ValueError` if one is missing."""
    count = manifest["summary"]["shards"]
    for number in range(count):
        path = folder / "data" / f"train-{number:05d}-of-{count:05d}.parquet"
        if not path.is_file():
            raise ValueError(f"{path} is missing. Run the same `fastgoal embed` command again.")
        yield path
