"""What goes wrong when files of others are loaded, in a line that says which they are and what to do.

Imports nothing heavy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastgoal.processing.texts import shortened

LFS_POINTER = b"version https://git-lfs"
DAMAGED = "Its files are damaged, missing or do not belong together: make or download them again."


@contextmanager
def loading(what: str, name: str = "", way_out: str = DAMAGED) -> Iterator[None]:
    """Turn whatever the libraries raise over files into a `ValueError` of one line.

    Args:
        what: What is loaded, in words that begin the message: `--model clip/`.
        name: The folder or file, which is looked at for what often is the reason.
        way_out: What to do, for any other reason.
    """
    try:
        yield
    except Exception as error:  # files that are damaged make the libraries raise nearly anything
        if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):  # torch's, and Python's
            raise
        pointer = lfs_pointer(Path(name)) if name else None
        if pointer is not None:
            way_out = f"{pointer.name} is but a pointer of git-lfs: fetch the file itself with `git lfs pull`."
        if isinstance(error, ImportError):
            known = [name for name in ("sentencepiece", "protobuf") if name in str(error).lower()]
            way_out = f"Install the package that it needs{': pip install ' + ' '.join(known) if known else ''}."
        kind = "" if isinstance(error, OSError | ValueError) and str(error) else f"{type(error).__name__}: "
        raise ValueError(f"{what} cannot be loaded: {kind}{first_line(error)} {way_out}".rstrip()) from error


def first_line(error: BaseException) -> str:
    """What an error says, short and with a full stop; its second line too, where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = shortened(" ".join(lines[:2]) if lines[0].endswith(":") else lines[0], 300)
    return text if text[-1] in ".!?" else text + "."


def lfs_pointer(path: Path) -> Path | None:
    """The first file of weights, in a folder or by itself, that is only a pointer of git-lfs."""
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")]) if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                    return file
    return None
