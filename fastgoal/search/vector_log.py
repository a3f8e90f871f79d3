"""Vectors of named files on disk, in shards that are appended: what was written is not written again.

    index.json          version, model, and the generation that counts
    0001-000007.npy     vectors of a shard, (rows, width) in half precision
    0001-000007.json    their names, sizes and times of the files, files that cannot be read, and names that are gone

The .json of a shard appears last, by renaming: an interruption costs the shard in the making. A vector whose name is
gone, or comes again later, is dead. When the dead are many the living are written once more, as a new generation.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from fastgoal.processing.files import whole_file, write_errors, write_json

STATE = "index.json"
VERSION = 2
ROWS_TOGETHER = 65_536  # in a shard of a new generation
SPARE_SHARDS = 64


class VectorLog:
    """The names and vectors of a folder, in memory the names alone.

    Args:
        place: The folder; made with the first shard.
        model: Written down, for messages.
        fingerprint: Of the model; a log of another one is refused.
        fresh: Begin anew, whatever is there.

    Raises:
        ValueError: The log belongs to another model, or cannot be read.
    """

    def __init__(self, place: Path, model: str, fingerprint: str, fresh: bool = False) -> None:
        self.place, self.model, self.fingerprint = place, model, fingerprint
        self._fresh = fresh
        self._forget()
        if not fresh and (place / STATE).is_file():
            self._read()

    def _forget(self) -> None:
        self.names: list[str | None] = []  # of the rows, in order; None for the dead
        self.rows: dict[str, int] = {}  # of the living
        self.stamps: dict[str, list[int]] = {}  # of all files seen
        self.broken: dict[str, str] = {}
        self.width: int | None = None
        self.generation = 1
        self._sizes: list[int] = []  # rows of each shard

    def __len__(self) -> int:
        return len(self.rows)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing, and read what one has written meanwhile.

        Raises `ValueError` if one writes now.
        """
        with write_errors(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.place / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"another process brings the index {self.place} up to date; wait for it.") from None
        try:
            if self._is_behind():
                self._forget()
                self._read()
            yield
        finally:
            lock.release()

    def _is_behind(self) -> bool:
        """Whether another process has appended, or written a new generation, since this one has read."""
        state = self.place / STATE
        if self._fresh or not state.is_file():
            return False
        found = json.loads(state.read_text(encoding="utf-8")).get("generation")
        return found != self.generation or self._path(len(self._sizes)).with_suffix(".json").is_file()

    def append(
        self,
        vectors: Tensor | NDArray[np.float16] | None,
        names: Sequence[str],
        stamps: Mapping[str, list[int]],
        broken: Mapping[str, str],
        gone: Sequence[str] = (),
    ) -> None:
        """Write a shard: forget those that are `gone`, then add vectors `(rows, width)` of `names`."""
        if self._fresh or not (self.place / STATE).is_file():
            self._begin()
        path, size = self._path(len(self._sizes)), 0
        if vectors is not None and len(names):
            array = vectors.half().cpu().numpy() if isinstance(vectors, Tensor) else vectors
            with whole_file(path.with_suffix(".npy")) as file, write_errors(path):
                np.save(file, array, allow_pickle=False)
            size, self.width = array.shape
        record = {"rows": size, "names": list(names), "stamps": stamps, "broken": broken, "gone": list(gone)}
        write_json(path.with_suffix(".json"), record)
        self._take(record)

    def shards(self) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """The first row of each shard, and its vectors, read from the disk as they are used."""
        start = 0
        for number, size in enumerate(self._sizes):
            if size:
                path = self._path(number).with_suffix(".npy")
                try:
                    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
                except (OSError, ValueError) as error:
                    raise self.useless(f"cannot be read ({error})") from None
                if vectors.shape != (size, self.width or vectors.shape[1]) or vectors.dtype != np.float16:
                    raise self.useless(f"cannot be read ({path.name} has the shape {vectors.shape})")
                yield start, vectors
            start += size

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """The vectors of some rows, which are in order."""
        return np.concatenate([np.empty((0, self.width or 0), np.float16), *self.parts(rows)])

    def parts(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float16]]:
        """The same, shard by shard."""
        for start, vectors in self.shards():
            here = slice(*np.searchsorted(rows, (start, start + len(vectors))))
            yield vectors[rows[here] - start]

    def compact(self) -> None:
        """Write the living vectors anew if most are dead, or the shards are many and small."""
        dead = len(self.names) - len(self.rows)
        needless = len(self._sizes) - len(self.names) // 2048
        if dead <= len(self.rows) and needless <= SPARE_SHARDS:
            return
        living = np.array(sorted(self.rows.values()), np.int64)
        names, stamps, broken = [str(self.names[row]) for row in living], self.stamps, self.broken
        portions = [slice(start, start + ROWS_TOGETHER) for start in range(0, max(1, len(living)), ROWS_TOGETHER)]
        after = VectorLog(self.place, self.model, self.fingerprint, fresh=True)
        after.generation = self.generation + 1
        for leftover in self.place.glob(f"{after.generation:04d}-*"):
            leftover.unlink()
        after._fresh = False  # `index.json` names the old generation until the new one is whole
        for portion in portions:
            some = names[portion]
            after.append(self.take(living[portion]), some, {name: stamps[name] for name in some}, {})
        after.append(None, [], {name: stamps[name] for name in broken}, broken)
        after._begin()
        self.__dict__.update(after.__dict__)

    def useless(self, reason: str) -> ValueError:
        return ValueError(f"the index {self.place} {reason}; make it anew with --rebuild.")

    def _path(self, number: int) -> Path:
        return self.place / f"{self.generation:04d}-{number:06d}"

    def _begin(self) -> None:
        """Write which generation counts, then take all others away."""
        if self._fresh and (found := self._found_generation()):
            self.generation = found + 1
        state = {"version": VERSION, "generation": self.generation}
        write_json(self.place / STATE, {**state, "model": self.model, "model_fingerprint": self.fingerprint})
        self._fresh = False
        for path in [*self.place.glob("[0-9]*-*"), *self.place.glob("vectors-*.faiss")]:
            if not path.name.startswith(f"{self.generation:04d}-"):
                path.unlink(missing_ok=True)

    def _found_generation(self) -> int:
        return max((int(path.name[:4]) for path in self.place.glob("[0-9][0-9][0-9][0-9]-*")), default=0)

    def _read(self) -> None:
        try:
            state = json.loads((self.place / STATE).read_text(encoding="utf-8"))
            version, model, fingerprint = state["version"], state["model"], state["model_fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise self.useless(f"cannot be read ({error})") from None
        if version not in (1, VERSION):
            raise self.useless(f"has version {version}, not {VERSION}")
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"the index {self.place} was built with another model, {model}; vectors of {self.model} cannot be"
                " compared with it. Search with that model, keep a second index with --index DIR, or replace this one"
                " with --rebuild."
            )
        try:
            if version == 1:
                self._read_version_1(state)
                return
            self.generation = int(state["generation"])
            while (path := self._path(len(self._sizes)).with_suffix(".json")).is_file():
                self._take(json.loads(path.read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise self.useless(f"cannot be read ({str(error).strip().splitlines()[0]})") from None
        for _, vectors in self.shards():
            self.width = vectors.shape[1]
            break

    def _take(self, record: dict[str, Any]) -> None:
        """What a shard says about the files."""
        names, rows = list(record["names"]), int(record["rows"])
        if len(names) != rows:
            raise ValueError("a shard does not fit its names")
        for name in [*record["gone"], *names]:
            self.stamps.pop(name, None)
            self.broken.pop(name, None)
            if (row := self.rows.pop(name, None)) is not None:
                self.names[row] = None
        self.rows.update(zip(names, range(len(self.names), len(self.names) + rows), strict=True))
        self.names += names
        self.stamps.update(record["stamps"])
        self.broken.update(record["broken"])
        self._sizes.append(rows)

    def _read_version_1(self, state: dict[str, Any]) -> None:
        """Take over an index that was one file, and was written whole each time."""
        import faiss

        paths, file = list(state["paths"]), state["vectors"]
        vectors = np.empty((0, 0), np.float16)
        if file is not None:
            index: Any = faiss.read_index(str(self.place / Path(file).name))
            vectors = faiss.vector_to_array(index.codes).view(np.float16).reshape(index.ntotal, index.d)
        if len(vectors) != len(paths):
            raise self.useless("does not fit together")
        self._fresh = True
        with self.held():
            self.append(vectors, paths, dict(state["stamps"]), dict(state["broken"]))
