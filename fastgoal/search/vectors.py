"""Search in the vectors that `fastgoal embed` wrote, without an index: a query is compared with all of them."""

from pathlib import Path
from typing import Any

import numpy as np

from fastgoal.processing.checkpoints.fingerprints import embedder_fingerprint
from fastgoal.processing.data.embeddings_folder import EMBEDDINGS_MANIFEST, read_embeddings, shard_files
from fastgoal.processing.embedding import embed_images, embed_texts

from .index import Hit, Query, Update


def is_embeddings(folder: str | Path) -> bool:
    """Return whether `fastgoal embed` wrote a folder."""
    return (Path(folder) / EMBEDDINGS_MANIFEST).is_file()


class StoredVectors:
    """The vectors of images in a folder that `fastgoal embed` wrote.

    Args:
        folder: The folder.
        model: The model that embedded the images, on its device.
        processor: The model's processor.
        model_name: Name of the model for messages.

    Raises:
        ValueError: The folder is not finished, holds vectors of texts, or belongs to another model.
    """

    def __init__(self, folder: str | Path, model: Any, processor: Any, model_name: str = "this model") -> None:
        self.folder, self.model, self.processor = Path(folder), model, processor
        manifest = read_embeddings(self.folder)
        if manifest["settings"]["texts"]:
            raise ValueError(f"`images={folder}` has vectors of texts. Search needs those of images.")
        if manifest["summary"]["model_fingerprint"] != embedder_fingerprint(model, processor):
            raise ValueError(
                f"`images={folder}` has vectors of another model, {manifest['settings']['model'].partition('#')[0]}, "
                f"and cannot be searched with {model_name}. Search with that model, or run `fastgoal embed` with this "
                "one."
            )
        self.images, self._manifest = Path(manifest["source"]), manifest

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self._manifest["summary"]["rows"])

    def update(self, batch_size: int = 32, num_workers: int = 0, progress: bool = True) -> Update:
        """Change nothing: `fastgoal embed` writes the vectors."""
        return Update(len(self), 0, 0, {})

    def search(self, query: Query, top_k: int = 5) -> list[Hit]:
        """Return the images that are most similar to a query, best first; equal scores in the order of their names.

        Args:
            query: A description, or an image as a path or PIL image. An image is not its own result.
            top_k: Number of images to return.

        Raises:
            ValueError: `top_k` is not positive, a file is missing, or the query cannot be read or embedded.
        """
        import pyarrow.parquet as parquet

        if top_k < 1:
            raise ValueError(f"`top_k` must be a positive integer, got {top_k}.")
        embed: Any = embed_texts if isinstance(query, str) else embed_images
        wide = embed(self.model, self.processor, [query])[0].numpy().astype(np.float64)
        left_out = set(self.names_of(query)) if isinstance(query, Path) else set()
        best: list[tuple[float, str]] = []
        for path in shard_files(self.folder, self._manifest):
            rows = parquet.read_table(path, columns=["file_name", "vector"])
            vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1).astype(np.float64)
            scores = vectors @ wide / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(wide))
            found = zip((-scores).tolist(), rows["file_name"].to_pylist(), strict=True)
            best = sorted([*best, *((score, name) for score, name in found if name not in left_out)])[:top_k]
        return [Hit(self.images / name, -score) for score, name in best]

    def names_of(self, path: Path) -> list[str]:
        """Return the names of the rows that are this file: one, or none."""
        import pyarrow.parquet as parquet

        file, folder = path.resolve(), self.images.resolve()
        name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else None
        shards = shard_files(self.folder, self._manifest)
        columns = (parquet.read_table(shard, columns=["file_name"])["file_name"].to_pylist() for shard in shards)
        return [name] if name is not None and any(name in column for column in columns) else []
