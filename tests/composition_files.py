"""Small datasets in the forms of composition benchmarks: drawn scenes, and captions that name one object of each.

The quickstart's small CLIP finds most of the objects: 60 to 90 % of the answers are right.
"""

import json
from pathlib import Path

from fastgoal.quickstart.scenes import draw_scenes
from tests.published_files import write, write_lines


def draw_objects(folder: Path, count: int, margin: int = 4) -> list[tuple[str, list[int], str]]:
    """Draw scenes, and return the file, the box (x, y, width, height) and the name of one object of each.

    Two neighbors in the list differ in both words of the name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    objects: list[tuple[str, list[int], str]] = []
    for index, scene in enumerate(draw_scenes(3 * count // 2 + 2, seed=11, split="test")):
        color, shape = scene.labels[0].split()
        last = objects[-1][2].split() if objects else ["", ""]
        if len(objects) == count or color == last[0] or shape == last[1]:
            continue
        left, top, right, bottom = scene.boxes[0]
        left, top = max(0, left - margin), max(0, top - margin)
        name = f"{index:04d}.png"
        scene.image.save(folder / name)
        objects.append((name, [left, top, right + margin - left, bottom + margin - top], f"{color} {shape}"))
    return objects


def named_scenes(folder: Path, count: int) -> list[tuple[str, str]]:
    """Draw scenes, and return the file and the name of an object of each."""
    return [(name, label) for name, _, label in draw_objects(folder, count)]


def changed(label: str, other: str, change: str) -> str:
    """Return the name of an object with the word of another one: `att` changes the color, `obj` the shape."""
    (color, shape), (other_color, other_shape) = label.split(), other.split()
    return f"{other_color} {shape}" if change == "att" else f"{color} {other_shape}"


def write_sugarcrepe(folder: Path, **counts: int) -> None:
    """Write SugarCrepe's files of these subsets, and val2017/. The keys have gaps, as those of the published files."""
    objects = named_scenes(folder / "val2017", max(counts.values()))
    for subset, count in counts.items():
        entries = {}
        for index, (name, label) in enumerate(objects[:count]):
            wrong = changed(label, objects[index - 1][1], subset.rsplit("_", 1)[-1].replace("rel", "obj"))
            caption, negative = f"a picture of a {label}", f"a picture of a {wrong}"
            entries[str(2 * index)] = {"filename": name, "caption": caption, "negative_caption": negative}
        write(folder / f"{subset}.json", entries)


def write_aro(folder: Path, count: int) -> None:
    """Write ARO's files of attributes and relations, and images/. Every fourth case has a rare pair or relation."""
    attribution, relation = [], []
    objects = draw_objects(folder / "images", count)
    for index, (name, (x, y, width, height), label) in enumerate(objects):
        other = objects[index - 1][2]
        case = {"image_path": name, "bbox_x": x, "bbox_y": y, "bbox_w": width, "bbox_h": height}
        rare = index % 4 == 3
        wrong = changed(label, other, "att")
        captions = {"true_caption": f"a {label}", "false_caption": f"a {wrong}"}
        pair = [label.split()[0], other.split()[0]] if rare else [["blue", "red"], ["big", "round"]][index % 2]
        attribution.append({**case, **captions, "attributes": pair, "obj1_name": "a", "obj2_name": "b"})
        wrong = changed(label, other, "obj")
        captions = {"true_caption": f"a {label}", "false_caption": f"a {wrong}"}
        name = "next to" if rare else ("on", "riding")[index % 2]
        relation.append({**case, **captions, "relation_name": name, "subject": "a", "object": "b"})
    write(folder / "visual_genome_attribution.json", attribution)
    write(folder / "visual_genome_relation.json", relation)


def order_cases(objects: list[tuple[str, str]]) -> list[dict]:
    """Return ARO's test cases of word order. The words of the shuffled captions are those of the caption."""
    cases = []
    for name, label in objects:
        color, shape = label.split()
        shuffled = (
            f"a {color} drawing of a {shape}",
            f"of a {color} {shape} a drawing",
            f"drawing a a of {shape} {color}",
            f"{shape} {color} of a a drawing",
        )
        cases.append({"image": name, "caption_options": [f"a drawing of a {color} {shape}", *shuffled]})
    return cases


def winoground_rows(objects: list[tuple[str, str]]) -> list[dict]:
    """Return examples of two objects each; every third changes the shapes alone."""
    rows = []
    for index in range(len(objects) // 2):
        (first, one), (second, two) = objects[2 * index : 2 * index + 2]
        rows.append(
            {
                "id": index,
                **{"image_0": first.removesuffix(".png"), "image_1": second.removesuffix(".png")},
                **{"caption_0": f"a drawing of a {one}", "caption_1": f"a drawing of a {two}"},
                **{"tag": "Swap", "secondary_tag": "", "num_main_preds": 1},
                "collapsed_tag": ("Object", "Relation", "Both")[index % 3],
            }
        )
    return rows


def write_winoground(folder: Path, count: int) -> list[dict]:
    """Write Winoground's `examples.jsonl` and images/, with two objects each."""
    rows = winoground_rows(named_scenes(folder / "images", 2 * count))
    write_lines(folder / "examples.jsonl", rows)
    return rows


def read_entries(file: Path) -> list[dict]:
    """Return the entries of a JSON file with a list, an object, or a line for each."""
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    value = json.loads(file.read_text(encoding="utf-8"))
    return [*value.values()] if isinstance(value, dict) else value
