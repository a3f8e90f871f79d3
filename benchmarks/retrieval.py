"""Time and memory of the retrieval metrics, compared with the algorithm of clip-benchmark.

    python -m benchmarks.retrieval                      # 5,000 images and 25,000 captions
    python -m benchmarks.retrieval --images 100000 --captions-each 1 --ours-only

clip-benchmark computes the whole similarity matrix in float32, the top k of every row, and a one-hot tensor of them
that it multiplies with the matrix of right answers. Both get the same random embeddings and must give the same recalls.
"""

import argparse
import platform
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from benchmarks.timing import timed
from fastgoal.trainer.evaluation.measures.retrieval import retrieval_metrics

Metrics = dict[str, float]


def random_embeds(images: int, captions_each: int, width: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings of images and captions, and the image of each caption."""
    generator = torch.Generator().manual_seed(0)
    image_embeds = torch.randn(images, width, generator=generator)
    owner = torch.arange(images * captions_each) % images
    return image_embeds, image_embeds[owner] + noise * torch.randn(len(owner), width, generator=generator), owner


def top_k_recall(images: Tensor, texts: Tensor, owner: Tensor, ks: list[int], batch_size: int = 64) -> Metrics:
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


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the best time in seconds, the peak memory of this process in GiB, and the metrics of one way."""
    compute = retrieval_metrics if name == "fastgoal" else top_k_recall
    embeds = random_embeds(args.images, args.captions_each, args.width, args.noise)
    metrics: list[Metrics] = []
    repeats = args.repeats if name == "fastgoal" else 1
    seconds = min(timed(lambda: metrics.append(compute(*embeds, args.ks)))[0] for _ in range(repeats))
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {"seconds": float(seconds), "gib": gib, "metrics": metrics[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="(default: 5000)")
    parser.add_argument("--captions-each", type=int, default=5, help="captions per image (default: 5)")
    parser.add_argument("--width", type=int, default=512, help="width of the embeddings (default: 512)")
    parser.add_argument("--noise", type=float, default=1.5, help="1.5: a good model, 4: a poor one (default: 1.5)")
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 5, 10], help="values of k (default: 1 5 10)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of fastgoal; the other runs once (default: 3)")
    parser.add_argument("--ours-only", action="store_true", help="do not run clip-benchmark's algorithm")
    args = parser.parse_args()

    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{args.images:,} images, {args.images * args.captions_each:,} captions, width {args.width}, k {args.ks}")
    results = {}
    for name in ("fastgoal",) if args.ours_only else ("fastgoal", "clip-benchmark"):
        # Each runs in a process of its own, so that its peak memory can be read.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            results[name] = pool.submit(measure, name, args).result()
        print(f"  {name:<18}{results[name]['seconds']:>9.3f} s {results[name]['gib']:>8.2f} GiB", flush=True)
    if not args.ours_only:
        ours, theirs = results.values()
        difference = max(abs(ours["metrics"][key] - value) for key, value in theirs["metrics"].items())
        print(f"  {theirs['seconds'] / ours['seconds']:.1f} times as fast; largest difference {difference:.1e}")
        if difference > 1e-9:
            sys.exit("The numbers differ.")


if __name__ == "__main__":
    main()
