"""A folder as `fastgoal pairs` writes it with known counts: five rows in two shards."""

import io
import json
from dataclasses import asdict

import pyarrow
import pyarrow.parquet
from PIL import Image

from fastgoal.processing.data.pairs_dataset import features
from fastgoal.processing.detectors.spec import DetectorSpec
from fastgoal.processing.regions import default_regions
from fastgoal.processing.sentences import split_sentences

SIZE = (80, 60)
DETECTOR = DetectorSpec("ultralytics", "yolo11n.pt", "yolo11n.pt#0123")
LONG = "One long caption with many words that stands here for a photograph of a street. " * 4


def jpeg(color):
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, color).save(buffer, "JPEG")
    return buffer.getvalue()


def row(name, caption, image, boxes=(), chosen=(), scores=(), best=0):
    """A row as `fastgoal pairs` writes it; `chosen` are indices of the sentences' regions, the default ones first."""
    regions = [
        {"box": list(region.box), "score": 1.0, "label": region.label, "source": "default"}
        for region in default_regions(SIZE)
    ]
    regions += [
        {"box": list(map(float, box)), "score": 0.5, "label": "thing", "source": "ultralytics"} for box in boxes
    ]
    sentences = split_sentences(caption)
    return {
        "image": {"bytes": image, "path": name},
        "file_name": name,
        "caption": caption,
        "width": SIZE[0],
        "height": SIZE[1],
        "regions": regions,
        "sentences": [{"start": sentence.start, "end": sentence.end} for sentence in sentences],
        "pairs": [
            {"sentence": index, "region": region, "score": score, "best": index == best}
            for index, (region, score) in enumerate(zip(chosen, scores, strict=True))
        ],
    }


def rows():
    return [
        row("0.jpg", "A red square. A blue square.", jpeg("red"), [(10, 10, 30, 30)], (5, 0), (0.5, 0.1)),
        row("1.jpg", "a red square; A BLUE square!", jpeg("red"), [(0, 0, 70, 50), (5, 5, 25, 25)], (6,), (0.25,)),
        row(
            "2.jpg",
            LONG + "At its end there is a house.",
            jpeg("blue"),
            (),
            (4, 4, 4, 1, 2),
            (0.0, 0.1, 0.2, 0.3, 0.4),
            4,
        ),
        row("3.jpg", LONG + "At its end there is a tree.", jpeg("white"), [(1, 1, 9, 9)], (5, 5, 5, 5, 0), (0.1,) * 5),
        row("4.jpg", "Nothing of the kind <b>here</b>.", jpeg("green"), (), (3,), (-0.2,)),
    ]


def write(folder, rows, shards=2, schema=None):
    """Write a finished folder."""
    (folder / "data").mkdir(parents=True)
    size = -(-len(rows) // shards)
    for number in range(shards):
        table = pyarrow.Table.from_pylist(
            rows[number * size : (number + 1) * size], schema=schema or features().arrow_schema
        )
        pyarrow.parquet.write_table(table, folder / f"data/train-{number:05d}-of-{shards:05d}.parquet")
    skipped = [{"row": 7, "reason": "metadata.jsonl line 8 (7.jpg): it is broken."}]
    manifest = {
        "settings": {"model": "owner/clip@abc", "detector": asdict(DETECTOR)},
        "source": "/somewhere/photographs",
        "versions": {"fastgoal": "0.1.0"},
        "summary": {"images": len(rows), "skipped": skipped},
    }
    (folder / "fastgoal_pairs.json").write_text(json.dumps(manifest))
    return folder
