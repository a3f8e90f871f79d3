"""GOAL's pairs (datasets/*_segment_sim_bbox_del_org.json in PerceptualAI-Lab/GOAL): boxes of sentences."""

from pathlib import Path
from typing import Any

from fastgoal.processing.data.sources import Source

from .files import (
    Rows,
    as_object,
    begins_with,
    find_file,
    image_base,
    image_name,
    last_part,
    load_rows,
    matching_files,
    objects,
    read_json,
    text_of,
)
from .form import Form, SourceOptions
from .goal_lists import SUBFOLDERS

FILES = ("*_segment_sim_bbox*.json",)
CORNERS = ("x1", "y1", "x2", "y2")


def fits(path: Path) -> bool:
    return bool(matching_files(path, FILES)) if path.is_dir() else begins_with(path, '"original_filename"')


def load(path: Path, options: SourceOptions) -> Source:
    return load_rows(path, read(find_file(path, FILES), image_base(path, options)), options)


def read(file: Path, base: Path) -> Rows:
    """Yield the rows with their local pairs, in the columns of `fastgoal pairs`, and the boxes in `boxes`.

    Each entry has `original_filename` and `original_caption`, and a `segment` for each sentence: `caption` (without its
    full stop), `similarity_score` and `bbox_coordinates` with the corners of the crop. Its `width` and `height` are
    those of the crop, and are not used. Images without a segment are left out, with a warning.
    """
    left_out = 0
    for label, row in objects(read_json(file), str(file)):
        caption = text_of(row, "original_caption", label)
        columns: dict[str, list[Any]] = {"regions": [], "sentences": [], "pairs": [], "boxes": []}
        until = 0
        for name, segment in objects(row.get("segment"), f"{label} 'segment'"):
            if "bbox_coordinates" not in segment:  # the crop was not found in the image
                continue
            sentence, box = text_of(segment, "caption", name), _corners(segment["bbox_coordinates"], name)
            start = caption.find(sentence, until)
            start = caption.find(sentence) if start < 0 else start
            if start < 0:
                raise ValueError(f"{name}: the sentence {sentence!r} is not in 'original_caption'.")
            until = start + len(sentence)
            if box not in columns["boxes"]:
                columns["boxes"].append(box)
                columns["regions"].append({"box": box, "score": 1.0, "label": "", "source": "sam"})
            pair = {"sentence": len(columns["sentences"]), "region": columns["boxes"].index(box)}
            columns["sentences"].append({"start": start, "end": until})
            columns["pairs"].append({**pair, "score": _number(segment, "similarity_score", name), "best": False})
        if not columns["pairs"]:
            left_out += 1
            continue
        max(columns["pairs"], key=lambda pair: pair["score"])["best"] = True
        image = image_name(base, last_part(text_of(row, "original_filename", label)), *SUBFOLDERS)
        yield label, {"image": image, "caption": caption, **columns}
    if left_out:
        from transformers.utils import logging  # takes long to import, and the help of the commands lists the forms

        logging.get_logger(__name__).warning(f"{file}: {left_out:,} images without a box are left out.")


def _corners(box: Any, label: str) -> list[float]:
    x1, y1, x2, y2 = (_number(as_object(box, f"{label} 'bbox_coordinates'"), corner, label) for corner in CORNERS)
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"{label}: the box {[x1, y1, x2, y2]} has no area.")
    return [x1, y1, x2, y2]


def _number(row: dict[str, Any], key: str, label: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{label}: {key!r} must be a number, got {value!r}.")
    return float(value)


FORM = Form(
    "goal",
    "GOAL's pairs: *_segment_sim_bbox_del_org.json in the folder of its images, to train on without a detector",
    fits,
    load,
    has_image_folder=True,
)
