"""An index of the images of a folder, kept on disk by LanceDB, and the search in it."""

import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastgoal.processing.checkpoints.fingerprints import embedder_fingerprint
from fastgoal.processing.data.locations import SUFFIXES
from fastgoal.processing.embedding import embed_images, embed_texts
from fastgoal.processing.files import hold_folder, lies_inside, write_errors
from fastgoal.processing.images import load_image

FOLDER = ".fastgoal-search"
VERSION = 1
# An interrupted update loses at most this many embeddings.
PORTION = 2048
# A larger index is searched through LanceDB's inverted file, which compares the query with the vectors of `PROBES`
# partitions of about 4,096 vectors each.
EXACT_UP_TO = 1_000_000
PROBES = 64
# LanceDB rounds the query to half precision, which changes a cosine by less than this.
ROUNDING = 1e-3
# Each write adds a version. When there are more, the versions are merged; old ones serve readers for another hour.
MOST_VERSIONS = 64
KEEP_VERSIONS = timedelta(hours=1)

Query = str | Path | Image.Image


@dataclass(frozen=True)
class Update:
    """The changes that an update made to an index.

    Attributes:
        images: Number of images in the index.
        encoded: Number of images that were embedded by this update.
        removed: Number of files that no longer exist.
        skipped: The reason why a file is not in the index, by name.
    """

    images: int
    encoded: int
    removed: int
    skipped: dict[str, str]


@dataclass(frozen=True)
class Hit:
    """An image that a search returned, with the cosine similarity of its embedding and the query's."""

    path: Path
    score: float


def require_search(images: str | Path) -> Any:
    """Return the package LanceDB; raise `ImportError` without it, and `ValueError` if `images` is not a folder."""
    if not Path(images).is_dir():
        raise ValueError(f"`images` must be a folder of images, got {images}.")
    try:
        import lancedb
    except ImportError as error:
        raise ImportError("Search needs LanceDB. Install it with: pip install 'fastgoal[search]'") from error
    # Processes that read images are forked, and do not use LanceDB.
    warnings.filterwarnings("ignore", message="lancedb fork support")
    return lancedb


class ImageIndex:
    """The embeddings of all images of a folder under one model, kept on disk.

    The index stores the size and the modification time of each file. An update embeds only new and changed files. The
    vectors are stored in half precision, which changes a cosine by less than 0.0005.

    Example:
        ```python
        from fastgoal import FastGoalModel, FastGoalProcessor, ImageIndex

        model, processor = FastGoalModel.from_pretrained("outputs"), FastGoalProcessor.from_pretrained("outputs")
        index = ImageIndex("photographs", model, processor)
        index.update()
        for hit in index.search("A brown dog runs over a meadow. Behind it there is a lake.", top_k=3):
            print(f"{hit.score:.3f} {hit.path}")
        ```

    Args:
        images: Folder of images, including its subfolders. Hidden files and folders are skipped.
        model: A model on its device.
        processor: The model's processor.
        index: Folder of the index. Defaults to `.fastgoal-search` in `images`.
        model_name: Name of the model for messages and pages.
        rebuild: Replace an existing index with the next update, for example one of another model.
        allow_outside_files: Index links that lead out of the folder. They are skipped by default.

    Raises:
        ValueError: The folder does not exist, or the index belongs to another model or is damaged.
        ImportError: LanceDB is not installed.
    """

    def __init__(
        self,
        images: str | Path,
        model: Any,
        processor: Any,
        *,
        index: str | Path | None = None,
        model_name: str = "this model",
        rebuild: bool = False,
        allow_outside_files: bool = False,
    ) -> None:
        self._lancedb = require_search(images)
        self.images = Path(images)
        self.folder = self.images / FOLDER if index is None else Path(index)
        self.model, self.processor, self.model_name = model, processor, model_name
        self.allow_outside_files = allow_outside_files
        self._fingerprint = embedder_fingerprint(model, processor)
        self._table: Any = None
        self._rebuild = rebuild
        self._open()

    def __len__(self) -> int:
        """Return the number of images that can be found."""
        with self._readable():
            return 0 if self._table is None else int(self._table.count_rows("error IS NULL"))

    def update(self, batch_size: int = 32, num_workers: int = 0, progress: bool = True) -> Update:
        """Embed new and changed images, and remove those that no longer exist.

        Args:
            batch_size: Images per forward pass.
            num_workers: Processes that read images, in addition to this one.
            progress: Show a progress bar if there is more than one batch.

        Raises:
            ValueError: The folder has no readable image, the model's output is not finite, or another process updates
                the index.
            OSError: The index cannot be written.
        """
        files, skipped = _list_files(self.images, self.allow_outside_files)
        if not files:
            reason = "".join(f" Skipped {name}: {reason}." for name, reason in list(skipped.items())[:1])
            raise ValueError(
                f"{self.images} has no image. Files that end in {', '.join(SUFFIXES)} are indexed, also in subfolders."
                + reason
            )
        encoded, stale = 0, list[str]()
        if any(self._changes(files)):
            with hold_folder(self.folder):
                self._open()  # another process may have written
                changed, stale = self._changes(files)
                self._delete(stale)
                for start in range(0, len(changed), PORTION):
                    portion = changed[start : start + PORTION]
                    errors = self._add(portion, files, batch_size, num_workers, progress)
                    encoded += len(portion) - len(errors)
                    skipped |= errors
                self._optimize()
        skipped |= self._broken()
        if not len(self):
            name, reason = next(iter(skipped.items()))
            raise ValueError(f"None of the {len(files)} images in {self.images} can be read. {name}: {reason}")
        return Update(len(self), encoded, sum(name not in files for name in stale), skipped)

    def search(self, query: Query, top_k: int = 5) -> list[Hit]:
        """Return the images that are most similar to a query, best first; equal scores in the order of their names.

        Up to a million images, the query is compared with all of them. Above, the result is approximate.

        Args:
            query: A description, or an image as a path or PIL image. An image of the folder is not its own result.
            top_k: Number of images to return. There are fewer if the index has fewer.

        Raises:
            ValueError: The index is empty, `top_k` is not positive, or the query cannot be read or embedded.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be a positive integer, got {top_k}.")
        if not len(self):
            raise ValueError(f"The index of {self.images} is empty. Call `update` first.")
        if isinstance(query, str):
            vector = embed_texts(self.model, self.processor, [query])[0].numpy()
        else:
            vector = embed_images(self.model, self.processor, [query])[0].numpy()
        if not np.isfinite(vector).all():
            raise ValueError("The embedding of the query has NaN or infinite values. Load the model in float32.")
        return self._nearest(vector, top_k, self.names_of(query) if isinstance(query, Path) else ())

    def names_of(self, path: Path) -> list[str]:
        """Return the names under which the index holds a file: several if there are links to it."""
        status = os.stat(path)
        rows = self._rows(["name"], f"size = {status.st_size} AND mtime = {status.st_mtime_ns}")
        return [name for name in rows["name"].to_pylist() if os.path.samefile(self.images / name, path)]

    def _nearest(self, vector: NDArray[np.float32], top_k: int, left_out: Sequence[str] = ()) -> list[Hit]:
        """Return the images nearest to a vector, ranked by exact cosines."""
        count = len(self)
        query = self._table.search(vector, vector_column_name="vector").distance_type("cosine")
        query = query.bypass_vector_index() if count <= EXACT_UP_TO else query.nprobes(PROBES)
        query = query.select(["name", "vector", "_distance"])
        wide = vector.astype(np.float64)
        limit = 4 * (top_k + len(left_out)) + 64
        while True:
            with self._readable():
                rows = query.limit(limit).to_arrow()
            vectors = _vectors_of(rows)
            # LanceDB leaves out vectors without a direction.
            if not _have_direction(vectors).all() or (count <= EXACT_UP_TO and len(rows) < min(limit, count)):
                self._check_vectors()
            scores = vectors @ wide / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(wide))
            ranked = sorted(zip(-scores, rows["name"].to_pylist(), strict=True))
            hits = [Hit(self.images / name, -float(score)) for score, name in ranked if name not in left_out][:top_k]
            if len(rows) < limit:
                return hits
            # No image that is missing from `rows` scores more than this.
            bound = 1 - float(rows["_distance"].to_numpy().max()) + ROUNDING
            if len(hits) == top_k and hits[-1].score > bound:
                return hits
            limit *= 4

    def _check_vectors(self) -> None:
        """Raise `ValueError` if a vector is damaged. Otherwise another process has changed the index."""
        rows = self._rows(["name", "vector"], "error IS NULL")
        damaged = [rows["name"][row].as_py() for row in np.flatnonzero(~_have_direction(_vectors_of(rows)))]
        if damaged:
            more = f", and so are {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise self._useless(f"the embedding of {damaged[0]} is NaN, infinite or zero{more}")

    def _open(self) -> None:
        """Open the table if there is one that is not to be replaced, and check that it belongs to the model."""
        if self._rebuild:
            return
        with self._readable():
            if not any(self.folder.glob("images.lance/_versions/*.manifest")):
                return
            table = self._connect().open_table("images")
            facts = json.loads(table.schema.metadata[b"fastgoal"])
            version, model, fingerprint = facts["version"], facts["model"], facts["model_fingerprint"]
        if version != VERSION:
            raise self._useless(f"it has version {version}, not {VERSION}")
        if fingerprint != self._fingerprint:
            raise ValueError(
                f"The index {self.folder} was built with another model, {model}, and cannot be searched with"
                f" {self.model_name}. Search with that model, keep a second index with `index`, or replace this one"
                " with `rebuild=True`."
            )
        self._table = table

    def _connect(self) -> Any:
        """Connect so that each read sees what other processes have written."""
        return self._lancedb.connect(self.folder, read_consistency_interval=timedelta(0))

    def _create(self, width: int) -> None:
        """Create the table for vectors of this width."""
        import pyarrow as pa

        facts = {"version": VERSION, "model": self.model_name, "model_fingerprint": self._fingerprint}
        schema = pa.schema(
            [
                ("name", pa.string()),
                ("size", pa.int64()),
                ("mtime", pa.int64()),
                ("vector", pa.list_(pa.float16(), width)),
                ("error", pa.string()),
            ],
            metadata={"fastgoal": json.dumps(facts)},
        )
        with self._writable():
            shutil.rmtree(self.folder / "images.lance", ignore_errors=True)
            self._table = self._connect().create_table("images", schema=schema)
        self._rebuild = False

    def _add(
        self,
        names: Sequence[str],
        files: dict[str, tuple[int, int]],
        batch_size: int,
        num_workers: int,
        progress: bool,
    ) -> dict[str, str]:
        """Embed and store images; store and return the errors of those that cannot be read."""
        import pyarrow as pa

        errors: dict[str, str] = {}
        vectors = self._embed(names, errors, batch_size, num_workers, progress)
        if self._table is None:
            if not len(vectors):
                return errors  # the width is not known yet: tried again by the next update
            self._create(vectors.shape[1])
        is_broken = np.array([name in errors for name in names])
        values = np.zeros((len(names), self._table.schema.field("vector").type.list_size), np.float16)
        if len(vectors):
            values[~is_broken] = vectors
        vector_column = pa.FixedSizeListArray.from_arrays(
            pa.array(values.ravel()), values.shape[1], mask=pa.array(is_broken)
        )
        columns = {
            "name": names,
            "size": [files[name][0] for name in names],
            "mtime": [files[name][1] for name in names],
            "vector": vector_column,
            "error": [errors.get(name) for name in names],
        }
        with self._writable():
            self._table.add(pa.table(columns, schema=self._table.schema))
        return errors

    def _embed(
        self, names: Sequence[str], errors: dict[str, str], batch_size: int, num_workers: int, progress: bool
    ) -> NDArray[np.float16]:
        """Return the vectors of those files that can be read; the reasons for the others go to `errors`."""
        paths = {name: self.images / name for name in names}
        progress = progress and len(names) > batch_size
        try:
            vectors = embed_images(self.model, self.processor, [*paths.values()], batch_size, num_workers, progress)
        except (ValueError, OSError):
            for name, path in paths.items():
                try:
                    load_image(path)
                except (ValueError, OSError) as error:
                    errors[name] = str(error)
            if not errors:
                raise
            left = [name for name in names if name not in errors]
            return self._embed(left, {}, batch_size, num_workers, progress) if left else np.empty((0, 0), np.float16)
        overflowed = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if overflowed:
            raise ValueError(
                f"The embedding of {names[overflowed[0]]} has NaN or infinite values. Load the model in float32."
            )
        return vectors.half().numpy()

    def _rows(self, columns: list[str], where: str | None = None) -> Any:
        """Return columns of the table as an Arrow table."""
        with self._readable():
            return self._table.search().where(where).select(columns).limit(None).to_arrow()

    def _changes(self, files: dict[str, tuple[int, int]]) -> tuple[list[str], list[str]]:
        """Return the names of files that must be embedded, and of rows that no longer match their files."""
        if self._table is None:
            return list(files), []
        columns = self._rows(["name", "size", "mtime"]).to_pydict()
        known = dict(zip(columns["name"], zip(columns["size"], columns["mtime"], strict=True), strict=True))
        changed = [name for name in files if known.get(name) != files[name]]
        return changed, [name for name in known if known[name] != files.get(name)]

    def _broken(self) -> dict[str, str]:
        """Return the error of each indexed file that cannot be read."""
        if self._table is None:
            return {}
        rows = self._rows(["name", "error"], "error IS NOT NULL")
        return dict(sorted(zip(rows["name"].to_pylist(), rows["error"].to_pylist(), strict=True)))

    def _delete(self, names: Sequence[str]) -> None:
        """Remove the rows of files, many at a time."""
        with self._writable():
            for start in range(0, len(names), PORTION):
                quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in names[start : start + PORTION])
                self._table.delete(f"name IN ({quoted})")

    def _optimize(self) -> None:
        """Merge the versions of many small writes, and build the inverted file of a large index."""
        if self._table is None:
            return
        with self._writable():
            if len(self._table.list_versions()) > MOST_VERSIONS:
                self._table.optimize(cleanup_older_than=KEEP_VERSIONS)  # also adds new vectors to the inverted file
            if len(self) > EXACT_UP_TO and not self._table.list_indices():
                self._table.create_index("vector", config=self._lancedb.index.IvfFlat(distance_type="cosine"))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn any error of LanceDB at reading into one that names the way out."""
        try:
            yield
        except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
            raise self._useless(f"it cannot be read ({_reason(error)})") from error

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Turn any error of LanceDB at writing into an `OSError` that names the folder."""
        with write_errors(self.folder):
            try:
                yield
            except RuntimeError as error:
                raise OSError(_reason(error)) from error

    def _useless(self, reason: str) -> ValueError:
        return ValueError(f"The index {self.folder} is of no use: {reason}. Build it again with `rebuild=True`.")


def _vectors_of(rows: Any) -> NDArray[np.float64]:
    """Return the embeddings `(rows, width)` of an Arrow table."""
    column = rows["vector"].combine_chunks()
    vectors: NDArray[np.float64] = column.flatten().to_numpy().reshape(-1, column.type.list_size).astype(np.float64)
    return vectors


def _have_direction(vectors: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which vectors `(rows, width)` are finite and not zero."""
    return np.asarray(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))


def _reason(error: Exception) -> str:
    """Return the first line of an error without the place in LanceDB's source."""
    return re.sub(r",? \S+\.rs:\d+.*", "", str(error).strip().splitlines()[0])


def _list_files(folder: Path, allow_outside_files: bool) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Return size and modification time (ns) of the image files by name, and the reasons why others are skipped.

    Names are plain strings, because `Path` takes seconds for 100,000 files.
    """
    files, skipped = {}, {}
    for place, folders, names in os.walk(folder):
        folders[:] = (name for name in folders if not name.startswith("."))
        inside = os.path.relpath(place, folder).replace(os.sep, "/")
        for name in names:
            if name.startswith(".") or not name.lower().endswith(SUFFIXES):
                continue
            path = os.path.join(place, name)
            name = name if inside == "." else f"{inside}/{name}"
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                if not allow_outside_files and not lies_inside(path, folder):
                    skipped[name] = "The link leads out of the folder. To index such files, set `allow_outside_files`."
                    continue
                # A link to nothing keeps the status of the link. It is one of the files that cannot be read.
                status = os.stat(path) if os.path.exists(path) else status
            try:
                name.encode()
            except UnicodeEncodeError:
                shown = os.fsencode(name).decode("utf-8", "backslashreplace")
                skipped[shown] = "The file name is not valid UTF-8. Rename the file."
                continue
            files[name] = (status.st_size, status.st_mtime_ns)
    return dict(sorted(files.items())), skipped
