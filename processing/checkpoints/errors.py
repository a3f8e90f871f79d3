"""Errors of libraries that load files, as one line that names the files and says what to do.

Imports nothing heavy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from fastgoal.processing.texts import shortened

LFS_POINTER = b"version https://git-lfs"
# torch's messages about a pickle that may run code, or is none, explain how to load it without protection.
_PICKLE = "it is not a PyTorch file, or it holds objects other than tensors, which were not run."
DAMAGED = "Its files are damaged, missing or do not fit together: create or download them again."


@contextmanager
def loading(label: str, name: str = "", way_out: str = DAMAGED) -> Iterator[None]:
    """Turn any error of a library in the block into a `ValueError` of one line.

    Args:
        label: What is loaded; the message begins with it: "`model=clip/`".
        name: The folder or file; if it holds a pointer of git-lfs, the message says so.
        way_out: What to do, for other reasons.
    """
    try:
        yield
    except Exception as error:  # damaged files make the libraries raise nearly anything
        if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):  # of torch and of Python
            raise
        pointer = lfs_pointer(Path(name)) if name else None
        if pointer is not None:
            way_out = f"{pointer.name} is only a pointer of git-lfs: fetch the file with `git lfs pull`."
        if isinstance(error, ImportError):
            packages = [package for package in ("sentencepiece", "protobuf") if package in str(error).lower()]
            way_out = f"Install the package it needs{': pip install ' + ' '.join(packages) if packages else ''}."
        reason = first_line(error)
        is_clear = reason == _PICKLE or (isinstance(error, OSError | ValueError) and str(error))
        error_type = "" if is_clear else f"{type(error).__name__}: "
        raise ValueError(f"{label} cannot be loaded: {error_type}{reason} {way_out}".rstrip()) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error, shortened, with a full stop; also the second line if the first ends in ":".

    torch's advice to load a pickle that may run code is replaced.
    """
    if isinstance(error, UnpicklingError) or "weights_only" in str(error):
        return _PICKLE
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = shortened(" ".join(lines[:2]) if lines[0].endswith(":") else lines[0], 300)
    return text if text[-1] in ".!?" else text + "."


def lfs_pointer(path: Path) -> Path | None:
    """Return the first file of weights, in a folder or by itself, that is only a pointer of git-lfs."""
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")]) if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                    return file
    return None
