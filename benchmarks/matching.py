"""Measure how often FLISM pairs a sentence with the right region, on data with known regions.

    python -m benchmarks.matching --tuned OUT/fast-goal                      # drawn scenes of the quickstart
    python -m benchmarks.matching --photographs DIR --detector yolo11n.pt    # true boxes that the candidates cover

In drawn scenes the object of every sentence is known. A region is right if it overlaps the object's box with an IoU of
at least 0.5 or contains it. `--tuned` is a model that the quickstart wrote, to see whether matching again with it is
better. On photographs with true boxes (`metadata.jsonl` with `file_name` and `boxes`, a list of dicts with `bbox` as
x1, y1, x2, y2 in pixels) the second command reports how many objects a candidate region covers, by source.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastgoal import FastGoalCLIPModel, FastGoalProcessor
from fastgoal.processing.checks import MIN_AREA
from fastgoal.processing.data.boxes import regions_from_boxes
from fastgoal.processing.detectors.load import load_detector
from fastgoal.processing.images import load_image
from fastgoal.processing.matching import LocalPair
from fastgoal.processing.regions import Region, default_regions, find_regions
from fastgoal.quickstart.drawing import Scene
from fastgoal.quickstart.scenes import draw_scenes
from fastgoal.quickstart.tour import BASE, COLORS, SHAPES


def overlap(box: Sequence[float], true: Sequence[float]) -> tuple[bool, bool]:
    """Return whether two boxes have an IoU of at least 0.5, and whether the first contains the second."""
    width = min(box[2], true[2]) - max(box[0], true[0])
    height = min(box[3], true[3]) - max(box[1], true[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, true)]
    return shared / (sum(areas) - shared) >= 0.5, shared >= 0.99 * areas[1]


def right_share(scenes: Sequence[Scene], matches: Sequence[Sequence[LocalPair]], best: bool) -> float:
    """Return the share of sentences about one object with the right region, among all pairs or the best ones only."""
    hits = [
        any(overlap(pair.region.box, scene.boxes[thing]))
        for scene, pairs in zip(scenes, matches, strict=True)
        for pair in pairs
        if pair.best or not best
        for thing in scene.sentence_things[pair.sentence_index]
    ]
    return sum(hits) / max(len(hits), 1)


def report_scenes(count: int, tuned: str | None) -> None:
    """Print a table for drawn scenes, by model and source of regions."""
    scenes = draw_scenes(count, 0, "validation", shapes=SHAPES, colors=COLORS)
    images, captions = [scene.image for scene in scenes], [scene.caption for scene in scenes]
    processor = FastGoalProcessor.from_base(str(BASE))
    boxes = [regions_from_boxes(scene.boxes, scene.image.size) for scene in scenes]
    sources: dict[str, Callable[[int], list[Region]]] = {
        "five default regions": lambda i: default_regions(images[i].size),
        "objects' boxes": lambda i: boxes[i],
        "both": lambda i: processor.propose_regions([images[i]], boxes=[boxes[i]])[0],
    }
    print(f"{count} drawn scenes; sentences about one object with the right region (IoU >= 0.5 or box contained):\n")
    print("| model | regions | best pair | all pairs | best pairs from a default region |\n|---|---|---|---|---|")
    for name, path in {"base": str(BASE), **({"fine-tuned": tuned} if tuned else {})}.items():
        model = FastGoalCLIPModel.from_base(path)
        for source, regions in sources.items():
            matches = processor.match(images, captions, model, regions=[regions(i) for i in range(count)])
            shares = [right_share(scenes, matches, best) for best in (True, False)]
            default = [pair.region.source == "default" for pairs in matches for pair in pairs if pair.best]
            print(f"| {name} | {source} | {shares[0]:.1%} | {shares[1]:.1%} | {sum(default) / len(default):.1%} |")


def report_photographs(folder: Path, detector_name: str) -> None:
    """Print the shares of true objects that a candidate covers: the detector's, the default ones, or both."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines() if line]
    detector: Any = load_detector(detector_name)
    if detector is None:
        raise ValueError("`detector` must name a detector, got none.")
    covered: dict[str, list[tuple[bool, bool]]] = {"detector": [], "five default regions": [], "both": []}
    counts = {"detector": 0, "five default regions": 0}
    for row in rows:
        image = load_image(folder / row["file_name"])
        candidates = {
            "detector": find_regions(detector, [image])[0],
            "five default regions": default_regions(image.size),
        }
        counts = {name: counts[name] + len(regions) for name, regions in candidates.items()}
        candidates["both"] = [*candidates["detector"], *candidates["five default regions"]]
        for thing in row["boxes"]:
            x1, y1, x2, y2 = thing["bbox"]
            if thing.get("iscrowd") or (x2 - x1) * (y2 - y1) < MIN_AREA * image.width * image.height:
                continue
            for name, regions in candidates.items():
                tests = [overlap(region.box, thing["bbox"]) for region in regions]
                covered[name].append((any(tight for tight, _ in tests), any(tight or held for tight, held in tests)))
    total = len(covered["both"])
    print(f"{len(rows)} photographs, {total} true objects of at least {MIN_AREA:.0%} of the image.\n")
    print("| regions | per image | objects with IoU >= 0.5 | or contained |\n|---|---|---|---|")
    for name, hits in covered.items():
        per_image = sum(counts.values()) if name == "both" else counts[name]
        tight, held = (sum(column) / total for column in zip(*hits, strict=True))
        print(f"| {name} | {per_image / len(rows):.1f} | {tight:.1%} | {held:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=500, help="drawn scenes (default: 500)")
    parser.add_argument("--tuned", metavar="DIR", help="model of the quickstart to match with too")
    parser.add_argument("--photographs", type=Path, metavar="DIR", help="photographs with true boxes instead of scenes")
    parser.add_argument("--detector", metavar="NAME", help="detector, as for `fastgoal pairs`; needs --photographs")
    args = parser.parse_args()
    if bool(args.photographs) != bool(args.detector):
        parser.error("--photographs and --detector go together.")
    if args.photographs:
        report_photographs(args.photographs, args.detector)
    else:
        report_scenes(args.scenes, args.tuned)


if __name__ == "__main__":
    main()
