"""One row of a source on its way to one row of local pairs: read and checked first, written down last."""

import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fastgoal.processing.data.boxes import regions_from_boxes
from fastgoal.processing.data.sources import Source
from fastgoal.processing.images import load_image
from fastgoal.processing.matching import LocalPair
from fastgoal.processing.regions import Region
from fastgoal.processing.sentences import Sentence


def features() -> Any:
    """The columns of the data set as `datasets.Features`; boxes are in pixels of the upright image."""
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    region = {
        "box": List(Value("float32"), length=4),
        "score": Value("float32"),
        "label": Value("string"),
        "source": Value("string"),
    }
    pair = {
        "sentence": Value("int32"),
        "region": Value("int32"),
        "score": Value("float32"),
        "best": Value("bool"),
    }
    return Features(
        {
            "image": ImageFeature(),
            "file_name": Value("string"),
            "caption": Value("string"),
            "width": Value("int32"),
            "height": Value("int32"),
            "regions": List(region),
            "sentences": List({"start": Value("int32"), "end": Value("int32")}),
            "pairs": List(pair),
        }
    )


@dataclass(frozen=True)
class LoadedRow:
    """A row that can be used. `stored` is the image as the data set keeps it, `regions` the boxes of its column,
    `prepared` the image as the detector wants it, where there is one and the image has something to look for."""

    image: Image.Image
    stored: dict[str, Any]
    name: str
    caption: str
    sentences: list[Sentence]
    regions: list[Region] | None
    prepared: Any = None


@dataclass(frozen=True)
class RowError:
    """A row that cannot be used, and why; the reason names the row and its file."""

    row: int
    reason: str


def load_row(source: Source, index: int, processor: Any, box_column: str | None) -> LoadedRow | RowError:
    """Read, decode and check one row. Runs in a thread; what is wrong with the row is returned, not raised."""
    try:
        row = source[index]
        stored = _stored_image(row.image, row.name)
        image = load_image(stored["bytes"], name=row.name)
        sentences = processor.split_sentences(row.caption)
        if not sentences:
            raise ValueError(f"the caption {row.caption!r} has no sentence.")
        regions = None if box_column is None else _column_regions(row.columns, box_column, image.size, row.name)
    except (ValueError, OSError) as error:
        where, reason = source.where(index), str(error)
        return RowError(index, reason if reason.startswith(where) else f"{where}: {reason}")
    detector = None if box_column is not None else processor.detector
    prepared = None if detector is None else detector.prepare(image, row.caption)
    return LoadedRow(image, stored, row.name, row.caption, sentences, regions, prepared)


def output_row(row: LoadedRow, regions: list[Region], pairs: list[LocalPair]) -> dict[str, Any]:
    """The row in the columns of `features`."""
    return {
        "image": row.stored,
        "file_name": row.name,
        "caption": row.caption,
        "width": row.image.width,
        "height": row.image.height,
        "regions": [asdict(region) | {"box": list(region.box)} for region in regions],
        "sentences": [{"start": sentence.start, "end": sentence.end} for sentence in row.sentences],
        "pairs": [
            {"sentence": pair.sentence_index, "region": pair.region_index, "score": pair.score, "best": pair.best}
            for pair in pairs
        ],
    }


def _stored_image(image: Any, name: str) -> dict[str, Any]:
    """The image as `datasets` stores it: the bytes of the original file, so that nothing is lost by coding it again."""
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": f"{Path(name).stem}.png"}
    if isinstance(image, Mapping):
        content = image.get("bytes") or Path(image["path"]).read_bytes()
    else:
        content = Path(image).read_bytes()
    return {"bytes": content, "path": os.path.basename(name)}


def _column_regions(columns: dict[str, Any], column: str, size: tuple[int, int], name: str) -> list[Region]:
    """Boxes that came with the row: lists of four numbers (labels in the column `labels`) or dicts with `bbox`."""
    if column not in columns:
        raise ValueError(f"there is no column '{column}' with boxes; the row has {sorted(columns)}.")
    values = columns[column] or []
    forms = "a list of [x1, y1, x2, y2], or a list of dicts with 'bbox' and perhaps 'label' and 'score'"
    if not isinstance(values, list):
        raise ValueError(f"the column '{column}' is a {type(values).__name__}; expected {forms}.")
    if not any(isinstance(value, dict) for value in values):
        labels = columns.get("labels")
        if labels is not None and not isinstance(labels, list):
            raise ValueError(f"the column 'labels' is {labels!r}; expected a list with a label for each box.")
        return regions_from_boxes(values, size, labels=labels, name=name)
    for number, value in enumerate(values):
        if not isinstance(value, dict) or "bbox" not in value:
            raise ValueError(f"box {number} of the column '{column}' is {value!r}; expected {forms}.")
        if not isinstance(value.get("score") or 1.0, int | float):
            raise ValueError(f"box {number} of the column '{column}' has the score {value['score']!r}, not a number.")
    scores = [1.0 if value.get("score") is None else value["score"] for value in values]
    labels = [value.get("label") for value in values]
    return regions_from_boxes([value["bbox"] for value in values], size, labels=labels, scores=scores, name=name)
