"""Time and memory of the joint test and of retrieval metrics, against a straightforward script.

    python -m benchmarks.retrieval                      # joint gallery of 4,000 x 4,000, both ways
    python -m benchmarks.retrieval --large 100000       # also recall@k of 100,000 x 100,000, in its own process

The straightforward script does what evaluation scripts usually do: it makes the whole matrix, sorts every row of it,
and walks through queries and rankings in Python. Both get the same random embeddings and must find equal numbers.
"""

import argparse
import platform
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import timed
from fastgoal.trainer.evaluation.measures.joint import joint_map
from fastgoal.trainer.evaluation.measures.retrieval import retrieval_metrics


def made_up(items: int, width: int, noise: float) -> tuple[Tensor, Tensor, list[int], list[bool]]:
    """Embeddings of a joint gallery: half of the items global, and one local item to each."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(items // 2, width, generator=generator)
    meaning = torch.cat([whole, whole + torch.randn(whole.shape, generator=generator)])
    images, texts = (meaning + noise * torch.randn(meaning.shape, generator=generator) for _ in range(2))
    group = [*range(items // 2), *range(items // 2)]
    return images, texts, group, [item < items // 2 for item in range(len(group))]


def straightforward(images: Tensor, texts: Tensor, group: list[int], is_global: list[bool], k: int) -> dict[str, float]:
    """mAP@k with the whole matrix sorted, and loops over queries, rankings and a list of rows as a JSON file gives."""
    rows = [
        {"file": f"{number:08d}.jpg" if whole else f"{number:08d}.jpg_crops/0.png", "whole": whole}
        for number, whole in zip(group, is_global, strict=True)
    ]
    images, texts = (torch.nn.functional.normalize(embeds.double(), dim=-1) for embeds in (images, texts))
    matrix = images @ texts.T
    metrics = {}
    for direction, similarity in (("text_to_image", matrix.T), ("image_to_text", matrix)):
        order = similarity.argsort(dim=1, descending=True)
        total, own_total = 0.0, 0.0
        for query, row in enumerate(rows):
            picture = row["file"].split("_crops")[0]
            relevant = [
                item
                for item, other in enumerate(rows)
                if other["file"] == row["file"]
                or (other["whole"] != row["whole"] and other["file"].split("_crops")[0] == picture)
            ]
            found, score, rank = 0, 0.0, 0
            for place, item in enumerate(order[query].tolist(), start=1):
                if item in relevant:
                    found += 1
                    if place <= k:
                        score += found / place
                if item == query:
                    rank = place
            total += score / len(relevant)
            own_total += 1 / rank if rank <= k else 0.0
        metrics[f"joint_{direction}_mAP@{k}"] = total / len(rows)
        metrics[f"joint_{direction}_own_mAP@{k}"] = own_total / len(rows)
    return metrics


def measure(which: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, the most memory that this process has held in GiB, and metrics of one of the rows."""
    run: Callable[[], dict[str, float]]
    if which == "large":
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(args.large, args.width, generator=generator)
        texts = images + 4 * torch.randn(images.shape, generator=generator)
        run = partial(retrieval_metrics, images, texts)
    else:
        function = joint_map if which == "ours" else straightforward
        run = partial(function, *made_up(args.items, args.width, args.noise), args.k)
    metrics: list[dict[str, float]] = []
    repeats = args.repeats if which == "ours" else 1
    seconds = min(timed(lambda: metrics.append(run()))[0] for _ in range(repeats))
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {"seconds": float(seconds), "gib": gib, "metrics": metrics[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=4000, help="items of the joint gallery (default: 4000)")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--noise", type=float, default=1.5, help="1.5: a good model, 4: a poor one (default: 1.5)")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="runs of ours; the script runs once (default: 5)")
    parser.add_argument("--large", type=int, metavar="N", help="also time recall@k of N images and N captions")
    args = parser.parse_args()

    results = {}
    for which in ("ours", "script", *(["large"] if args.large else [])):
        # Each in a process of its own, so that the memory that each has held can be told.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            results[which] = pool.submit(measure, which, args).result()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    ours, script = results["ours"], results["script"]
    print(f"joint gallery of {args.items:,} x {args.items:,}, width {args.width}, mAP@{args.k} both ways")
    for name, result in (("fastgoal", ours), ("straightforward script", script)):
        print(f"  {name:<24}{result['seconds']:>9.3f} s {result['gib']:>8.2f} GiB")
    difference = max(abs(ours["metrics"][key] - script["metrics"][key]) for key in script["metrics"])
    print(f"  {script['seconds'] / ours['seconds']:.0f} times as fast; greatest difference {difference:.1e}")
    for key, value in ours["metrics"].items():
        print(f"    {key:<36}{value:.6f}")
    if args.large:
        large = results["large"]
        print(f"recall@k of {args.large:,} x {args.large:,}: {large['seconds']:.0f} s, {large['gib']:.2f} GiB")
    if difference > 1e-9:
        sys.exit("The numbers differ.")


if __name__ == "__main__":
    main()
