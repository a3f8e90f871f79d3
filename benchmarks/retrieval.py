"""Time and memory of the joint test and of retrieval metrics, against a straightforward script.

    python benchmarks/evaluate.py                      # joint gallery of 4,000 x 4,000, both ways
    python benchmarks/evaluate.py --large 100000       # also recall@k of 100,000 x 100,000, in its own process

The straightforward script does what evaluation scripts usually do: it makes the whole matrix, sorts every row of it,
and walks through queries and rankings in Python. Both get the same random embeddings and must find equal numbers.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from typing import Any

# This folder must not stand before the libraries: a file in it is called like one of them.
sys.path = [path for path in sys.path if os.path.abspath(path or ".") != os.path.dirname(os.path.abspath(__file__))]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from fastgoal.trainer.evaluation.joint import joint_map  # noqa: E402
from fastgoal.trainer.evaluation.retrieval import retrieval_metrics  # noqa: E402


def made_up(items: int, width: int, noise: float) -> tuple[Tensor, Tensor, list[int], list[bool]]:
    """Embeddings of a joint gallery: half of the items global, and one local item to each."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(items // 2, width, generator=generator)
    local = whole + torch.randn(items // 2, width, generator=generator)
    meaning = torch.cat([whole, local])
    images = meaning + noise * torch.randn(meaning.shape, generator=generator)
    texts = meaning + noise * torch.randn(meaning.shape, generator=generator)
    group = [*range(items // 2), *range(items // 2)]
    return images, texts, group, [item < items // 2 for item in range(len(group))]


def straightforward(images: Tensor, texts: Tensor, group: list[int], is_global: list[bool], k: int) -> dict[str, float]:
    """mAP@k with the whole matrix sorted, and loops over queries, rankings and a list of rows as a JSON file gives."""
    rows = [
        {"file": f"{number:08d}.jpg" if whole else f"{number:08d}.jpg_crops/0.png", "whole": whole}
        for number, whole in zip(group, is_global, strict=True)
    ]
    images = torch.nn.functional.normalize(images.double(), dim=-1)
    texts = torch.nn.functional.normalize(texts.double(), dim=-1)
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


def best_time(function: Any, repeats: int) -> tuple[float, Any]:
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def peak_gib() -> float:
    """The most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=4000, help="items of the joint gallery (default: 4000)")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--noise", type=float, default=1.5, help="1.5: a good model, 4: a poor one (default: 1.5)")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="runs of ours; the script runs once (default: 5)")
    parser.add_argument("--large", type=int, metavar="N", help="also time recall@k of N images and N captions")
    parser.add_argument("--only", choices=("ours", "script", "large"), help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.only is None:
        # Each in a process of its own, so that the memory that each has held can be told.
        results = {}
        for which in ("ours", "script", *(["large"] if args.large else [])):
            command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--only", which]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[which] = json.loads(output.splitlines()[-1])
        print(
            f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads,"
            f" torch {torch.__version__}"
        )
        ours, script = results["ours"], results["script"]
        print(f"joint gallery of {args.items:,} x {args.items:,}, width {args.width}, mAP@{args.k} both ways")
        for name, result in (("fastgoal", ours), ("straightforward script", script)):
            print(f"  {name:<24}{result['seconds']:>9.3f} s {result['gib']:>8.2f} GiB")
        difference = max(abs(ours["metrics"][key] - script["metrics"][key]) for key in script["metrics"])
        print(f"  {script['seconds'] / ours['seconds']:.0f} times as fast; greatest difference {difference:.1e}")
        for key, value in ours["metrics"].items():
            print(f"    {key:<36}{value:.6f}")
        if "large" in results:
            large = results["large"]
            print(f"recall@k of {args.large:,} x {args.large:,}: {large['seconds']:.0f} s, {large['gib']:.2f} GiB")
        if difference > 1e-9:
            sys.exit("The numbers differ.")
        return

    if args.only == "large":
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(args.large, args.width, generator=generator)
        texts = images + 4 * torch.randn(images.shape, generator=generator)
        seconds, metrics = best_time(lambda: retrieval_metrics(images, texts), repeats=1)
    else:
        images, texts, group, is_global = made_up(args.items, args.width, args.noise)
        if args.only == "ours":
            seconds, metrics = best_time(lambda: joint_map(images, texts, group, is_global, args.k), args.repeats)
        else:
            seconds, metrics = best_time(lambda: straightforward(images, texts, group, is_global, args.k), repeats=1)
    print(json.dumps({"seconds": seconds, "gib": peak_gib(), "metrics": metrics}))


if __name__ == "__main__":
    main()
