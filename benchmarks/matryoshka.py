"""Recall with the first dimensions of the embeddings, after training with and without `matryoshka_dims`.

    python -m benchmarks.matryoshka --seeds 0 1 2 3

It uses the drawn scenes, the base and the sizes of the study (benchmarks/study), and measures on scenes drawn from a
seed that no table of the study has. Each row has the mean R@1 of both directions, and its range over the seeds.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from fastgoal.processing.embedding import embed_texts
from fastgoal.quickstart.train_base import embed_pixels
from fastgoal.trainer.evaluation.measures.compression import FORMATS, RESCORED, measure_compression
from fastgoal.trainer.evaluation.measures.embeddings import EncodedSource

from .study.arms import Arm, Sizes
from .study.runs import Seed

HERE = Path(__file__).resolve().parent
FRESH = "3011"
PLAIN = Arm("fast_goal")


def recalls(seed: Seed, arm: Arm, widths: list[int]) -> dict[tuple[int, str], float]:
    """Return R@1 in percent, the mean of both directions and of all galleries, by width and format of the vectors."""
    model, _ = seed.model(arm)
    gallery = seed.gallery
    with torch.no_grad():
        images = F.normalize(embed_pixels(model, gallery.pixels).float(), dim=-1)
    texts = embed_texts(model, seed.processor, gallery.captions)
    found: dict[tuple[int, str], list[float]] = {}
    for image_part, text_part in zip(images.split(gallery.size), texts.split(gallery.size), strict=True):
        rows = list(range(len(image_part)))
        encoded = EncodedSource(image_part, text_part, [""] * len(rows), rows, rows)
        original = encoded.ranks()
        summary = original.summary((1,))
        values = {(images.shape[1], "float32"): (summary["text_to_image_R@1"], summary["image_to_text_R@1"])}
        for entry in measure_compression(encoded, original, widths, FORMATS, (1,), resamples=0):
            both = (entry.differences[f"{side}_R@1"].ours for side in ("text_to_image", "image_to_text"))
            values[entry.width, entry.vectors] = tuple(both)
        for key, both in values.items():
            found.setdefault(key, []).append(50 * sum(both))
    return {key: statistics.mean(values) for key, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matryoshka", description=__doc__.split("\n")[0])
    base = HERE / "study" / "base_clip"
    parser.add_argument("--base", type=Path, default=base, help="folder of the base CLIP (default: that of the study)")
    parser.add_argument(
        "--work", type=Path, default=Path("study-work"), help="folder for finished trainings (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="seeds of the trainings (default: 0 1 2 3)"
    )
    args = parser.parse_args()
    width = 96  # of the study's base
    widths = [width // 2, width // 4, width // 8]
    arms = {
        "plain": PLAIN,
        "matryoshka": replace(PLAIN, name="matryoshka", settings=(("matryoshka_dims", widths),)),
    }
    table: dict[tuple[int, str], dict[str, list[float]]] = {}
    for number in args.seeds:
        seed = Seed(number, Sizes(), "test", FRESH, args.base, args.work)
        for name, arm in arms.items():
            for key, value in recalls(seed, arm, widths).items():
                table.setdefault(key, {}).setdefault(name, []).append(value)
            print(f"seed {number}, {name}: done", flush=True)
    print("| vectors | bytes | without | with `matryoshka_dims` | difference in each seed |\n|---|--:|--:|--:|---|")
    bits = {"float32": 32, "int8": 8, "binary": 1, RESCORED: 1}
    for (dims, vectors), values in sorted(table.items(), key=lambda item: (-item[0][0], item[0][1])):
        cells = [
            f"{statistics.mean(values[name]):.1f} ({min(values[name]):.1f} to {max(values[name]):.1f})" for name in arms
        ]
        differences = ", ".join(f"{b - a:+.1f}" for a, b in zip(values["plain"], values["matryoshka"], strict=True))
        print(f"| {dims} x {vectors} | {(dims * bits[vectors] + 7) // 8} | {' | '.join(cells)} | {differences} |")


if __name__ == "__main__":
    main()
