"""Small datasets in the form of published ones, with drawn images."""

import json
import os
import random
from pathlib import Path

from PIL import Image, ImageDraw

from fastgoal.trainer.evaluation.protocols.registry import open_protocol

SIZE = (64, 48)
COLORS = ("red", "green", "blue", "white", "yellow", "purple", "orange", "gray")
SHAPES = ("square", "ball")


def write(path, value):
    """Write a text, or a value as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def write_lines(path, rows):
    """Write rows as JSON lines."""
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def rows_of(name, folder):
    """Return the file name and the captions of each row of a protocol."""
    return [(os.path.basename(row.name), row.captions) for row in open_protocol(name, str(folder))]


def draw(path: Path, number: int) -> list[tuple[str, list[int]]]:
    """Draw two things on black, and return a sentence, without its full stop, and a box for each of them."""
    chance = random.Random(number)
    image = Image.new("RGB", SIZE, "black")
    things = []
    for side, x in (("left", 0), ("right", 32)):
        color, shape = chance.choice(COLORS), chance.choice(SHAPES)
        left, top, length = x + chance.randrange(2, 10), chance.randrange(2, 20), chance.randrange(12, 20)
        box = [left, top, left + length, top + length]
        painter = ImageDraw.Draw(image)
        (painter.rectangle if shape == "square" else painter.ellipse)((*box[:2], box[2] - 1, box[3] - 1), fill=color)
        things.append((f"On the {side} is a {color} {shape} {number}", box))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)
    return things


def caption_of(things) -> str:
    return " ".join(f"{sentence}." for sentence, _ in things)


def write_docci(folder: Path, **splits: int) -> None:
    """Write DOCCI as its archives unpack, with this number of images in each split."""
    rows, number = [], 0
    for split, count in splits.items():
        for index in range(count):
            name = f"{split}_{index:05d}"
            things = draw(folder / "images" / f"{name}.jpg", number)
            row = {"example_id": name, "split": split, "image_file": f"{name}.jpg", "description": caption_of(things)}
            rows.append(row)
            number += 1
    write_lines(folder / "docci_descriptions.jsonlines", rows)


def write_dci(folder: Path, count: int, without_long: int = 0) -> None:
    """Write DCI as dci.tar.gz and sa_000138.tar unpack; the last images have no long caption."""
    for index in range(count):
        things = draw(folder / "densely_captioned_images" / "photos" / f"sa_{index}.jpg", 1000 + index)
        long = "" if index >= count - without_long else caption_of(things)
        entry = {"image": f"sa_{index}.jpg", "short_caption": things[0][0], "mask_data": {}, "extra_caption": long}
        write(folder / "densely_captioned_images" / "annotations" / f"{index:04d}.json", entry)


def write_karpathy(folder: Path, name: str, count: int) -> None:
    """Write COCO or Flickr30k with Karpathy's file, and test images alone."""
    subfolder = {"coco": "val2014", "flickr30k": "flickr30k-images"}[name]
    images = []
    for index in range(count):
        things = draw(folder / subfolder / f"{index:06d}.jpg", 2000 + index)
        sentences = [{"raw": f"{text}. Caption {number}."} for number in range(3) for text, _ in things]
        entry = {"sentids": [*range(6)], "filename": f"{index:06d}.jpg", "split": "test", "sentences": sentences}
        images.append({"filepath": subfolder, **entry} if name == "coco" else entry)
    write(folder / f"dataset_{name}.json", {"images": images, "dataset": name})


def write_goal_pairs(path: Path, images: list[tuple[str, int]]) -> None:
    """Write a file of GOAL's pairs for images that `draw` drew; `width` and `height` are those of the crops."""
    entries = []
    for name, number in images:
        things = draw(path.parent / "scratch.png", number)
        segments = [
            {
                "filename": f"somewhere/{name}_results/max_{index}.png",
                "caption": sentence,
                "similarity_score": 20.0 + index,
                "bbox_coordinates": {
                    **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
                    **{"width": box[2] - box[0], "height": box[3] - box[1]},
                },
            }
            for index, (sentence, box) in enumerate(things)
        ]
        entries.append(
            {"original_filename": f"../here/{name}", "original_caption": caption_of(things), "segment": segments}
        )
    (path.parent / "scratch.png").unlink()
    write(path, entries)
