"""Time and memory of the retrieval metrics and of the joint test, compared with the usual ways to compute them.

    python -m benchmarks.retrieval                      # 5,000 images and 25,000 captions; joint gallery of 4,000
    python -m benchmarks.retrieval --images 100000 --captions-each 1 --ours-only

Recall@k is compared with the algorithm of clip-benchmark: the whole similarity matrix in float32, the top k of every
row, and a one-hot tensor of them that is multiplied with the matrix of right answers. The joint test is compared with a
script that sorts every row of the matrix and loops over queries and rankings in Python. Both ways get the same random
embeddings and must give the same numbers.
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
from torch.nn.functional import normalize, one_hot

from benchmarks.timing import timed
from fastgoal.trainer.evaluation.measures.joint import joint_map
from fastgoal.trainer.evaluation.measures.retrieval import retrieval_metrics

Metrics = dict[str, float]


def random_retrieval(images: int, captions_each: int, width: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings of images and captions, and the image of each caption."""
    generator = torch.Generator().manual_seed(0)
    image_embeds = torch.randn(images, width, generator=generator)
    owner = torch.arange(images * captions_each) % images
    return image_embeds, image_embeds[owner] + noise * torch.randn(len(owner), width, generator=generator), owner


def random_gallery(items: int, width: int, noise: float) -> tuple[Tensor, Tensor, list[int], list[bool]]:
    """Return embeddings of a joint gallery: half of the items are global, each with one local item."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(items // 2, width, generator=generator)
    meaning = torch.cat([whole, whole + torch.randn(whole.shape, generator=generator)])
    images, texts = (meaning + noise * torch.randn(meaning.shape, generator=generator) for _ in range(2))
    group = [*range(items // 2), *range(items // 2)]
    return images, texts, group, [item < items // 2 for item in range(len(group))]


def top_k_recall(images: Tensor, texts: Tensor, owner: Tensor, ks: tuple[int, ...], batch_size: int = 64) -> Metrics:
    """Compute recall@k with the algorithm of clip-benchmark."""
    scores = normalize(texts, dim=-1) @ normalize(images, dim=-1).T
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[torch.arange(len(texts)), owner] = True
    metrics = {}
    for direction, similarity, answers in (("text_to_image", scores, right), ("image_to_text", scores.T, right.T)):
        for k in ks:
            hits = []
            for rows, wanted in zip(similarity.split(batch_size), answers.split(batch_size), strict=True):
                chosen = one_hot(rows.topk(k, dim=1).indices, rows.shape[1])  # (queries, k, candidates)
                hits.append((chosen * wanted[:, None]).sum((1, 2)) > 0)
            metrics[f"{direction}_R@{k}"] = float(torch.cat(hits).double().mean())
    return metrics


def sorted_map(images: Tensor, texts: Tensor, group: list[int], is_global: list[bool], k: int) -> Metrics:
    """Compute mAP@k by sorting the whole matrix, with loops over queries, rankings and rows as a JSON file has them."""
    rows = [
        {"file": f"{number:08d}.jpg" if whole else f"{number:08d}.jpg_crops/0.png", "whole": whole}
        for number, whole in zip(group, is_global, strict=True)
    ]
    matrix = normalize(images.double(), dim=-1) @ normalize(texts.double(), dim=-1).T
    metrics = {}
    for direction, similarity in (("text_to_image", matrix.T), ("image_to_text", matrix)):
        order = similarity.argsort(dim=1, descending=True)
        total, own_total = 0.0, 0.0
        for query, row in enumerate(rows):
            image = row["file"].split("_crops")[0]
            relevant = [
                item
                for item, other in enumerate(rows)
                if other["file"] == row["file"]
                or (other["whole"] != row["whole"] and other["file"].split("_crops")[0] == image)
            ]
            hits, score, own_rank = 0, 0.0, 0
            for rank, item in enumerate(order[query].tolist(), start=1):
                if item in relevant:
                    hits += 1
                    if rank <= k:
                        score += hits / rank
                if item == query:
                    own_rank = rank
            total += score / len(relevant)
            own_total += 1 / own_rank if own_rank <= k else 0.0
        metrics[f"joint_{direction}_mAP@{k}"] = total / len(rows)
        metrics[f"joint_{direction}_own_mAP@{k}"] = own_total / len(rows)
    return metrics


def measure(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the best time in seconds, the peak memory of this process in GiB, and the metrics of one way."""
    task, implementation = way.split()
    run: Callable[[], Metrics]
    if task == "recall":
        data = random_retrieval(args.images, args.captions_each, args.width, args.noise)
        run = partial(retrieval_metrics if implementation == "fastgoal" else top_k_recall, *data, ks=(1, 5, 10))
    else:
        gallery = random_gallery(args.items, args.width, args.noise)
        run = partial(joint_map if implementation == "fastgoal" else sorted_map, *gallery, k=args.k)
    metrics: list[Metrics] = []
    repeats = args.repeats if implementation == "fastgoal" else 1
    seconds = min(timed(lambda: metrics.append(run()))[0] for _ in range(repeats))
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {"seconds": float(seconds), "gib": gib, "metrics": metrics[-1]}


def compare(task: str, other: str, args: argparse.Namespace) -> float:
    """Print the time and the memory of both ways, each in a process of its own; return the largest difference."""
    results = {}
    for name in ("fastgoal",) if args.ours_only else ("fastgoal", other):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            results[name] = pool.submit(measure, f"{task} {name}", args).result()
        print(f"  {name:<18}{results[name]['seconds']:>9.3f} s {results[name]['gib']:>8.2f} GiB", flush=True)
    if args.ours_only:
        return 0.0
    ours, theirs = results["fastgoal"], results[other]
    difference = max(abs(ours["metrics"][key] - value) for key, value in theirs["metrics"].items())
    print(f"  {theirs['seconds'] / ours['seconds']:.1f} times as fast; largest difference {difference:.1e}")
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="images of the recall test (default: 5000)")
    parser.add_argument("--captions-each", type=int, default=5, help="captions per image (default: 5)")
    parser.add_argument("--items", type=int, default=4000, help="items of the joint gallery (default: 4000)")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--noise", type=float, default=1.5, help="1.5: a good model, 4: a poor one (default: 1.5)")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="runs of fastgoal; the other runs once (default: 3)")
    parser.add_argument("--ours-only", action="store_true", help="do not run the other ways")
    args = parser.parse_args()

    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"recall@k: {args.images:,} images, {args.images * args.captions_each:,} captions, width {args.width}")
    differences = [compare("recall", "clip-benchmark", args)]
    print(f"joint gallery of {args.items:,} x {args.items:,}, width {args.width}, mAP@{args.k}")
    differences.append(compare("joint", "script", args))
    if max(differences) > 1e-9:
        sys.exit("The numbers differ.")


if __name__ == "__main__":
    main()
