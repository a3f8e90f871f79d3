"""Searching a folder of images by a description or by an image, with an index on disk.

The index holds one vector for each image and knows size and time of its file, so that only new and changed files are
encoded again. A query is compared with all vectors, by faiss; they are kept in half precision, which changes a cosine
by less than 0.0005 and makes a query several times as fast.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgoal.processing.data.image_folder import SUFFIXES
from fastgoal.processing.files import write_text
from fastgoal.processing.images import load_image
from fastgoal.trainer.evaluation.embeddings import encode_images

FOLDER = ".fastgoal-search"
_STATE = "index.json"
_VERSION = 1
_PORTION = 2048  # images between two saves: what an interruption can cost


@dataclass(frozen=True)
class Update:
    """What bringing an index up to date did: numbers of images, and why files were left out."""

    images: int
    encoded: int
    removed: int
    broken: dict[str, str]


@dataclass(frozen=True)
class Hit:
    """One answer: the image file, and its cosine to the query."""

    path: Path
    score: float


class ImageIndex:
    """Vectors of the images of a folder, of one model.

    Args:
        images: The folder; sub-folders belong to it, hidden ones do not.
        place: Where the index is kept.
        model_name: For messages.
        model_fingerprint: Of `model_fingerprint`; an index of another model is refused.
        rebuild: Throw away an index that is there.

    Raises:
        ValueError: The folder does not exist, or the index belongs to another model, or cannot be read.
        ImportError: faiss is not installed.
    """

    def __init__(
        self, images: Path, place: Path, model_name: str, model_fingerprint: str, rebuild: bool = False
    ) -> None:
        if not images.is_dir():
            raise ValueError(f"{images} is not a folder; name the folder with the images to search.")
        self.images, self.place = images, place
        self.model_name, self.model_fingerprint = model_name, model_fingerprint
        try:
            import faiss
        except ImportError as error:
            raise ImportError("searching needs faiss; install it with: pip install 'fastgoal[search]'") from error
        self._faiss: Any = faiss
        self._index: Any = None
        self._paths: list[str] = []  # of the vectors, in order
        self._stamps: dict[str, list[int]] = {}  # of all files seen: size and time
        self._broken: dict[str, str] = {}
        self._file: str | None = None
        if not rebuild and (place / _STATE).is_file():
            self._load()

    def update(self, encode: Callable[[Sequence[Path]], Tensor]) -> Update:
        """Encode new and changed images, forget those that are gone, and save.

        Args:
            encode: Gives `(images, width)` normalised vectors of image files.

        Raises:
            ValueError: The folder has no image that can be read.
            OSError: The index cannot be written.
        """
        stamps = _stamps(self.images)
        if not stamps:
            raise ValueError(f"{self.images} has no image; looked for {', '.join(SUFFIXES)} in it and its sub-folders.")
        todo = [name for name, stamp in stamps.items() if self._stamps.get(name) != stamp]
        gone = [name for name in self._stamps if name not in stamps]
        stale = {*todo, *gone}
        dropped = [place for place, name in enumerate(self._paths) if name in stale]
        if dropped:
            self._index.remove_ids(np.array(dropped))
            self._paths = [name for name in self._paths if name not in stale]
        for name in stale:
            self._stamps.pop(name, None)
            self._broken.pop(name, None)
        encoded = 0
        for start in range(0, len(todo), _PORTION):
            portion = todo[start : start + _PORTION]
            good = portion
            try:
                vectors = encode([self.images / name for name in portion])
            except (ValueError, OSError):
                good = [name for name in portion if self._is_readable(name)]
                vectors = encode([self.images / name for name in good]) if good else torch.empty(0)
            if good:
                self._add(good, vectors)
            self._stamps.update({name: stamps[name] for name in portion})
            encoded += len(good)
            self._save()
        if gone and not todo:
            self._save()
        if not self._paths:
            name, error = next(iter(self._broken.items()))
            raise ValueError(f"none of the {len(stamps)} images in {self.images} can be read; {name}: {error}")
        return Update(len(self._paths), encoded, len(gone), dict(self._broken))

    def search(self, vector: Tensor, k: int = 5, without: Sequence[str] = ()) -> list[Hit]:
        """The k images nearest to a normalised vector `(width,)`, best first; all of them if there are fewer.

        Those `without` (of `names_of`) are no answers.

        Raises:
            ValueError: The vector has another width than the index or is not finite, or k is not positive.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be a positive integer.")
        if self._index is None:
            raise ValueError(f"the index of {self.images} is empty; call update first.")
        if vector.shape != (self._index.d,):
            raise ValueError(f"the query has shape {tuple(vector.shape)}; the index needs ({self._index.d},).")
        if not bool(vector.isfinite().all()):
            raise ValueError("the query's vector has NaN or infinite values; the model has overflowed. Use float32.")
        query = vector.detach().float().cpu().numpy()[None]
        scores, places = self._index.search(query, min(k + len(without), len(self._paths)))
        hits = [
            Hit(self.images / self._paths[place], float(score))
            for score, place in zip(scores[0].tolist(), places[0].tolist(), strict=True)
            if self._paths[place] not in without
        ]
        return hits[:k]

    def names_of(self, path: Path) -> list[str]:
        """The names under which the index holds a file, several if there are links to it; copies are other files."""
        found = os.stat(path)
        stamp = [found.st_size, found.st_mtime_ns]
        names = [name for name in self._paths if self._stamps[name] == stamp]
        return [name for name in names if os.path.samefile(self.images / name, path)]

    def __len__(self) -> int:
        return len(self._paths)

    def _is_readable(self, name: str) -> bool:
        try:
            load_image(self.images / name)
        except (ValueError, OSError) as error:
            self._broken[name] = str(error)
            return False
        return True

    def _add(self, names: list[str], vectors: Tensor) -> None:
        vectors = vectors.float().cpu()
        if vectors.ndim != 2 or len(vectors) != len(names):
            raise ValueError(f"encode gave {tuple(vectors.shape)} for {len(names)} images; expected a row for each.")
        broken = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if broken:
            raise ValueError(f"the vector of {names[broken[0]]} has NaN or infinite values; the model has overflowed.")
        if self._index is None:
            kind = self._faiss.ScalarQuantizer.QT_fp16  # which needs no training
            self._index = self._faiss.IndexScalarQuantizer(vectors.shape[1], kind, self._faiss.METRIC_INNER_PRODUCT)
        if vectors.shape[1] != self._index.d:
            raise ValueError(f"the model gives vectors of width {vectors.shape[1]}; the index has {self._index.d}.")
        self._index.add(vectors.contiguous().numpy())
        self._paths += names

    def _load(self) -> None:
        path = self.place / _STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            version, model, fingerprint = state["version"], state["model"], state["model_fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._useless(f"cannot be read ({error})") from None
        if version != _VERSION:
            raise self._useless(f"has version {version}, not {_VERSION}")
        if fingerprint != self.model_fingerprint:
            raise ValueError(
                f"the index {self.place} was built with another model, {model}; vectors of {self.model_name} cannot be"
                " compared with it. Search with that model, keep a second index with --index DIR, or replace this one"
                " with --rebuild."
            )
        try:
            self._paths, self._stamps = list(state["paths"]), dict(state["stamps"])
            self._broken, self._file = dict(state["broken"]), state["vectors"]
            if self._file is not None:
                self._index = self._faiss.read_index(str(self.place / Path(self._file).name))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise self._useless(f"cannot be read ({str(error).strip().splitlines()[0]})") from None
        if (0 if self._index is None else self._index.ntotal) != len(self._paths):
            raise self._useless("does not fit together")

    def _useless(self, reason: str) -> ValueError:
        return ValueError(f"the index {self.place} {reason}; make it anew with --rebuild.")

    def _save(self) -> None:
        """Vectors under a new name first, then the state that names them: a crash leaves the old index whole."""
        self.place.mkdir(parents=True, exist_ok=True)
        self._file = None
        if self._index is not None:
            self._file = f"vectors-{secrets.token_hex(8)}.faiss"
            self._faiss.write_index(self._index, str(self.place / self._file))
        state = {
            "version": _VERSION,
            "model": self.model_name,
            "model_fingerprint": self.model_fingerprint,
            "vectors": self._file,
            "paths": self._paths,
            "stamps": self._stamps,
            "broken": self._broken,
        }
        write_text(self.place / _STATE, json.dumps(state))
        for path in self.place.glob("vectors-*.faiss"):
            if path.name != self._file:
                path.unlink(missing_ok=True)


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of the image files by name, in order; hidden ones left out.

    Names are plain strings, as `Path` takes seconds for 100,000 files.
    """
    stamps = {}
    for place, folders, names in os.walk(folder):
        folders[:] = (name for name in folders if not name.startswith("."))
        inside = os.path.relpath(place, folder).replace(os.sep, "/")
        for name in names:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                found = os.stat(os.path.join(place, name))
                stamps[name if inside == "." else f"{inside}/{name}"] = [found.st_size, found.st_mtime_ns]
    return dict(sorted(stamps.items()))


def model_fingerprint(model: Any, processor: Any) -> str:
    """A hash that tells models apart by what they compute: some values of every weight, and the image processor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 1024)][:1024].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    settings = processor.image_processor.to_dict()
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def file_encoder(model: Any, processor: Any, batch_size: int = 32, num_workers: int = 0) -> Callable[..., Tensor]:
    """`encode` for `ImageIndex.update`, of a CLIP."""

    def encode(paths: Sequence[Path]) -> Tensor:
        return encode_images(model, processor, list(paths), batch_size, num_workers, progress=len(paths) > batch_size)

    return encode
