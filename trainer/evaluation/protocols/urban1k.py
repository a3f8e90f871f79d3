"""Urban1k (BeichenZhang/Urban1k on the Hub; eval/retrieval/Urban1k.py of Long-CLIP)."""

from pathlib import Path

from .files import image_file
from .protocol import Protocol, Rows


def read_urban1k(folder: Path) -> Rows:
    """Read `image/N.jpg` and the first line of `caption/N.txt`, in the order of N."""
    if not (folder / "caption").is_dir() and (folder / "Urban1k").is_dir():
        folder = folder / "Urban1k"
    if not (folder / "caption").is_dir():
        raise ValueError(f"{folder} has no folder 'caption'. Expected 'image/N.jpg' and 'caption/N.txt'.")
    files = (folder / "caption").glob("*.txt")
    for path in sorted(files, key=lambda path: (len(path.stem), path.stem)):
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        if not lines:
            raise ValueError(f"{path} is empty. Expected a caption in its first line.")
        yield image_file(folder, f"{path.stem}.jpg", "image"), [lines[0].strip()]


PROTOCOLS = (
    Protocol("urban1k", "Urban1k", "image/N.jpg and caption/N.txt", read_urban1k, images=1000, captions_each=1),
)
