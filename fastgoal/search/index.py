"""Searching a folder of images by a description or by an image, with an index on disk.

The index holds one vector for each image and knows size and time of its file, so that only new and changed files are
encoded again, and only they are written (`vector_log`). A query is compared with all vectors, by faiss, up to a million
(`nearest`); they are kept in half precision, which changes a cosine by less than 0.0005 and makes a query several times
as fast.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastgoal.processing.checkpoints.fingerprints import fingerprint
from fastgoal.processing.data.image_folder import SUFFIXES
from fastgoal.processing.embedding import embed_images
from fastgoal.processing.files import lies_inside
from fastgoal.processing.images import load_image

from .nearest import Nearest
from .vector_log import VectorLog

FOLDER = ".fastgoal-search"
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
        self,
        images: Path,
        place: Path,
        model_name: str,
        model_fingerprint: str,
        rebuild: bool = False,
        allow_outside_files: bool = False,
    ) -> None:
        if not images.is_dir():
            raise ValueError(f"{images} is not a folder; name the folder with the images to search.")
        self.images, self.place, self.model_name = images, place, model_name
        self.allow_outside_files = allow_outside_files
        try:
            import faiss
        except ImportError as error:
            raise ImportError("searching needs faiss; install it with: pip install 'fastgoal[search]'") from error
        self._faiss: Any = faiss
        self._log = VectorLog(place, model_name, model_fingerprint, rebuild)
        self._nearest: Nearest | None = None

    def update(self, encode: Callable[[Sequence[Path]], Tensor]) -> Update:
        """Encode new and changed images, forget those that are gone, and save.

        Args:
            encode: Gives `(images, width)` normalized vectors of image files.

        Raises:
            ValueError: The folder has no image that can be read, or another process is at this as well.
            OSError: The index cannot be written.
        """
        log, self._nearest = self._log, None
        stamps = _stamps(self.images)
        if not stamps:
            raise ValueError(f"{self.images} has no image; looked for {', '.join(SUFFIXES)} in it and its sub-folders.")
        encoded, gone = 0, list[str]()
        if any(self._changes(stamps)):
            with log.held():
                todo, gone = self._changes(stamps)
                left = [*gone, *(name for name in todo if name in log.stamps)]
                for start in range(0, max(1, len(todo)), _PORTION):
                    portion = todo[start : start + _PORTION]
                    vectors, good, broken = self._encoded(encode, portion)
                    log.append(vectors, good, {name: stamps[name] for name in portion}, broken, left)
                    encoded, left = encoded + len(good), []
                log.compact()
        if not len(log):
            name, reason = next(iter(log.broken.items()))
            raise ValueError(f"none of the {len(stamps)} images in {self.images} can be read; {name}: {reason}")
        return Update(len(log), encoded, len(gone), dict(log.broken))

    def _changes(self, stamps: dict[str, list[int]]) -> tuple[list[str], list[str]]:
        """Names of files that are new or have changed, and of those that are gone."""
        known = self._log.stamps
        todo = [name for name, stamp in stamps.items() if known.get(name) != stamp]
        return todo, [name for name in known if name not in stamps]

    def search(self, vector: Tensor, k: int = 5, without: Sequence[str] = ()) -> list[Hit]:
        """The k images nearest to a normalized vector `(width,)`, best first; all of them if there are fewer.

        Those `without` (of `names_of`) are no answers. Above a million images not all are compared, see `recall`.

        Raises:
            ValueError: The vector has another width than the index or is not finite, or k is not positive.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be a positive integer.")
        if not len(self):
            raise ValueError(f"the index of {self.images} is empty; call update first.")
        if vector.shape != (self._log.width,):
            raise ValueError(f"the query has shape {tuple(vector.shape)}; the index needs ({self._log.width},).")
        if not bool(vector.isfinite().all()):
            raise ValueError("the query's vector has NaN or infinite values; the model has overflowed. Use float32.")
        found = self._searcher().search(vector.detach().float().cpu().numpy(), min(k + len(without), len(self)))
        names = ((self._log.names[row], score) for row, score in found)
        return [Hit(self.images / str(name), score) for name, score in names if name not in without][:k]

    @property
    def recall(self) -> float | None:
        """None if a query is compared with all images; else the share of the 10 nearest that a search finds, measured
        with 200 of the images as queries when the inverted file was made."""
        return self._searcher().recall

    def names_of(self, path: Path) -> list[str]:
        """The names under which the index holds a file, several if there are links to it; copies are other files."""
        found = os.stat(path)
        stamp = [found.st_size, found.st_mtime_ns]
        names = [name for name in self._log.rows if self._log.stamps[name] == stamp]
        return [name for name in names if os.path.samefile(self.images / name, path)]

    def __len__(self) -> int:
        return len(self._log)

    def _searcher(self) -> Nearest:
        if self._nearest is None:
            self._nearest = Nearest(self._faiss, self._log)
        return self._nearest

    def _encoded(
        self, encode: Callable[[Sequence[Path]], Tensor], names: list[str]
    ) -> tuple[Tensor | None, list[str], dict[str, str]]:
        """Vectors of those files that can be read, their names, and what is wrong with the others."""
        broken: dict[str, str] = {}
        if not self.allow_outside_files:
            leads = f"is a link that leads out of {self.images}; with --allow-outside-files it is taken"
            outside = [name for name in names if not lies_inside(self.images / name, self.images)]
            broken = {name: f"{name} {leads}" for name in outside}
            names = [name for name in names if name not in broken]
        if not names:
            return None, [], broken
        try:
            vectors = encode([self.images / name for name in names])
        except (ValueError, OSError):
            for name in names:
                try:
                    load_image(self.images / name)
                except (ValueError, OSError) as error:
                    broken[name] = str(error)
            names = [name for name in names if name not in broken]
            if not names:
                return None, [], broken
            vectors = encode([self.images / name for name in names])
        vectors = vectors.float().cpu()
        if vectors.ndim != 2 or len(vectors) != len(names):
            raise ValueError(f"encode gave {tuple(vectors.shape)} for {len(names)} images; expected a row for each.")
        overflowed = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if overflowed:
            raise ValueError(
                f"the vector of {names[overflowed[0]]} has NaN or infinite values; the model has overflowed."
            )
        if self._log.width not in (None, vectors.shape[1]):
            raise ValueError(f"the model gives vectors of width {vectors.shape[1]}; the index has {self._log.width}.")
        return vectors, names, broken


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
                path = os.path.join(place, name)
                # A link to nothing has its own stamp: it is one of the files that cannot be read.
                found = os.stat(path) if os.path.exists(path) else os.lstat(path)
                stamps[name if inside == "." else f"{inside}/{name}"] = [found.st_size, found.st_mtime_ns]
    return dict(sorted(stamps.items()))


def model_fingerprint(model: Any, processor: Any) -> str:
    """Return a fingerprint of a model's weights and of its image processor's settings."""
    settings = processor.image_processor.to_dict()
    return fingerprint(model.state_dict(), [json.dumps(settings, sort_keys=True, default=str)])


def file_encoder(model: Any, processor: Any, batch_size: int = 32, num_workers: int = 0) -> Callable[..., Tensor]:
    """`encode` for `ImageIndex.update`, of a CLIP."""

    def encode(paths: Sequence[Path]) -> Tensor:
        return embed_images(model, processor, list(paths), batch_size, num_workers, progress=len(paths) > batch_size)

    return encode
