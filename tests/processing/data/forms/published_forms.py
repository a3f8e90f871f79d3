"""Writes the same images and captions in every form of published datasets, for tests."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tests.published_files import write, write_lines

Row = tuple[str, Image.Image, str]
"""The file name of an image, the image and its caption."""


def _save(folder: Path, name: str, image: Image.Image) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, "PNG")  # whatever the name says, so that the pixels stay the same


def write_coco(folder: Path, rows: Sequence[Row]) -> Path:
    images, captions = [], []
    for number, (name, image, caption) in enumerate(rows):
        _save(folder / "train2017", name, image)
        images.append({"id": number, "file_name": name})
        captions.append({"id": number, "image_id": number, "caption": caption})
    write(folder / "annotations" / "captions_train2017.json", {"images": images, "annotations": captions})
    return folder


def write_karpathy(folder: Path, rows: Sequence[Row]) -> Path:
    images = []
    for number, (name, image, caption) in enumerate(rows):
        _save(folder / "val2014", name, image)
        entry = {"filepath": "val2014", "sentids": [number], "filename": name, "split": "train"}
        images.append({**entry, "sentences": [{"raw": caption}]})
    write(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return folder


def write_docci(folder: Path, rows: Sequence[Row]) -> Path:
    for name, image, _ in rows:
        _save(folder / "images", name, image)
    lines = [{"split": "train", "image_file": name, "description": caption} for name, _, caption in rows]
    write_lines(folder / "docci_descriptions.jsonlines", lines)
    return folder


def write_dci(folder: Path, rows: Sequence[Row]) -> Path:
    root = folder / "densely_captioned_images"
    for number, (name, image, caption) in enumerate(rows):
        _save(root / "photos", name, image)
        entry = {"image": name, "short_caption": "Two squares.", "mask_data": {}, "extra_caption": caption}
        write(root / "annotations" / f"{number:04d}.json", entry)
    return folder


def write_sharegpt4v(folder: Path, rows: Sequence[Row]) -> Path:
    entries = []
    for name, image, caption in rows:
        _save(folder / "data" / "sam" / "images", name, image)
        turns = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": caption}]
        entries.append({"image": f"sam/images/{name}", "conversations": turns})
    write(folder / "share-captioner_coco_lcs_sam_1246k_1107.json", entries)
    return folder


def write_urban1k(folder: Path, rows: Sequence[Row]) -> Path:
    for number, (_, image, caption) in enumerate(rows):
        _save(folder / "image", f"{number}.jpg", image)
        write(folder / "caption" / f"{number}.txt", caption + "\n")
    return folder


def write_localized_narratives(folder: Path, rows: Sequence[Row]) -> Path:
    lines = []
    for name, image, caption in rows:
        _save(folder / "images", f"{Path(name).stem}.jpg", image)
        line = {"dataset_id": "open_images_train", "image_id": Path(name).stem, "annotator_id": 1, "caption": caption}
        lines.append({**line, "traces": []})
    write_lines(folder / "open_images_train_v6_localized_narratives-00000-of-00010.jsonl", lines)
    return folder


def write_goal(folder: Path, rows: Sequence[Row]) -> Path:
    entries = []
    for name, image, caption in rows:
        _save(folder / "images", name, image)
        box = {"x1": 18, "y1": 4, "x2": 30, "y2": 16, "width": 12, "height": 12}
        segment = {"caption": caption.split(".")[0], "similarity_score": 20.5, "bbox_coordinates": box}
        entries.append({"original_filename": f"../a/{name}", "original_caption": caption, "segment": [segment]})
    write(folder / "DCI_segment_sim_bbox_del_org.json", entries)
    return folder


def write_goal_list(folder: Path, rows: Sequence[Row]) -> Path:
    for name, image, _ in rows:
        _save(folder / "images", name, image)
    write(
        folder / "docci_train_del_org.json", [{"filename": f"../a/{name}", "caption": text} for name, _, text in rows]
    )
    return folder / "docci_train_del_org.json"


PUBLISHED_WRITERS = {
    "coco": write_coco,
    "karpathy": write_karpathy,
    "docci": write_docci,
    "dci": write_dci,
    "sharegpt4v": write_sharegpt4v,
    "urban1k": write_urban1k,
    "localized-narratives": write_localized_narratives,
    "goal": write_goal,
    "goal-list": write_goal_list,
}
