"""Rows of a small dataset with local pairs: each image shows two colored squares, each sentence names one."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def image_of(first: str, second: str, size: tuple[int, int] = (64, 32)) -> Image.Image:
    image = Image.new("RGB", size, "black")
    draw = ImageDraw.Draw(image)
    draw.rectangle((18, 4, 29, 15), fill=COLORS[first])
    draw.rectangle((34, 16, 45, 27), fill=COLORS[second])
    return image


def row_of(first: str, second: str, opening: str = "On the left it is") -> dict:
    buffer = io.BytesIO()
    image_of(first, second).save(buffer, "PNG")
    caption = f"{opening} {first}. On the right it is {second}."
    cut = caption.index(". ") + 1
    return {
        "image": {"bytes": buffer.getvalue(), "path": f"{first}-{second}.png"},
        "file_name": f"{first}-{second}.png",
        "caption": caption,
        "width": 64,
        "height": 32,
        "regions": [
            {"box": [18.0, 4.0, 30.0, 16.0], "score": 0.9, "label": "square", "source": "column"},
            {"box": [34.0, 16.0, 46.0, 28.0], "score": 0.8, "label": "square", "source": "column"},
            {"box": [0.0, 0.0, 16.0, 32.0], "score": 1.0, "label": "edge", "source": "column"},
        ],
        "sentences": [{"start": 0, "end": cut}, {"start": cut + 1, "end": len(caption)}],
        "pairs": [
            {"sentence": 0, "region": 0, "score": 0.6, "best": False},
            {"sentence": 1, "region": 1, "score": 0.7, "best": True},
        ],
    }


def rows_of_squares(opening: str = "On the left it is", colors: Sequence[str] = tuple(COLORS)) -> list[dict]:
    """A row for each ordered pair of colors."""
    return [row_of(first, second, opening) for first in colors for second in colors if first != second]


def write_pairs(rows: list[dict], folder: Path, shards: int = 1) -> Path:
    """Write the rows as the parquet files of a pairs dataset."""
    import datasets

    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(shards):
        part = data.shard(shards, index, contiguous=True)
        part.to_parquet(folder / f"train-{index:05d}-of-{shards:05d}.parquet")
    return folder
