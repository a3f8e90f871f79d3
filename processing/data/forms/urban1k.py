"""Urban1k (BeichenZhang/Urban1k on the Hub): image/N.jpg and caption/N.txt."""

from pathlib import Path

from fastgoal.processing.data.sources import Source

from .files import Rows, image_name, load_rows
from .form import Form, SourceOptions


def root(path: Path) -> Path:
    """Return the folder with `image` and `caption`."""
    return path if (path / "caption").is_dir() else path / "Urban1k"


def fits(path: Path) -> bool:
    return (root(path) / "caption").is_dir() and (root(path) / "image").is_dir()


def load(path: Path, options: SourceOptions) -> Source:
    if not (root(path) / "caption").is_dir():
        raise ValueError(f"{path} has no folder 'caption'. Expected 'image/N.jpg' and 'caption/N.txt'.")
    return load_rows(root(path), read(root(path)), options)


def read(folder: Path) -> Rows:
    """Yield the rows in the order of N; the caption is the first line (eval/retrieval/Urban1k.py of Long-CLIP)."""
    files = (folder / "caption").glob("*.txt")
    for path in sorted(files, key=lambda path: (len(path.stem), path.stem)):
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        if not lines:
            raise ValueError(f"{path} is empty. Expected a caption in its first line.")
        yield str(path), {"image": image_name(folder, f"{path.stem}.jpg", "image"), "caption": lines[0].strip()}


FORM = Form("urban1k", "Urban1k: image/N.jpg and caption/N.txt", fits, load)
