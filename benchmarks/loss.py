"""Memory and time that the contrastive losses of a large batch take in one process of several.

    python -m benchmarks.loss --rows 8192 --processes 8

Compares the whole matrix of logits in every process, as CLIP's reference has it, with what the trainer does: each
process's own rows against all, in parts. Both have the global and the local loss. Each runs in a process of its own; on
a CPU the memory is the growth of the process at its peak, on a GPU that of the tensors.
"""

import argparse
import json
import resource
import subprocess
import sys

import torch
import torch.nn.functional as F

from benchmarks.timing import add_device_option, timed
from fastgoal.modeling_fastgoal import clip_loss

WHOLE, OWN = "the whole matrix", "own rows against all"
NAMES = ("image_embeds", "text_embeds", "local_image_embeds", "local_text_embeds")


def whole_matrix(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """CLIP's loss over one matrix of all logits."""
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def measure(way: str, rows: int, processes: int, dim: int, device: str) -> dict[str, float]:
    """Seconds and bytes of a loss with its backward pass, and the gradient of the first process's rows."""
    generator = torch.Generator().manual_seed(0)
    embeds = [torch.randn(rows, dim, generator=generator).to(device).requires_grad_() for _ in NAMES]
    scale = torch.tensor(50.0, device=device, requires_grad=True)
    own = rows // processes

    def step() -> None:
        losses = []
        for images, texts in (embeds[:2], embeds[2:]):
            if way == WHOLE:
                losses.append(whole_matrix(images, texts, scale))
            else:
                losses.append(clip_loss(images[:own], texts[:own], scale, images, texts, 0))
        (losses[0] + losses[1] / 2).backward()

    def peak() -> int:
        return (
            torch.cuda.max_memory_allocated()
            if device != "cpu"
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )

    for embed in embeds:
        embed.grad = torch.zeros_like(embed)
    before = peak()
    step()
    memory = peak() - before
    return {"seconds": float(timed(step, device)[0]), "bytes": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="rows of the batch over all processes")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--dim", type=int, default=512)
    add_device_option(parser)
    parser.add_argument("--way", choices=(WHOLE, OWN), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.rows, args.processes, args.dim, args.device)))
        return
    found = {}
    for way in (WHOLE, OWN):
        command = [sys.executable, "-m", "benchmarks.loss", "--way", way, "--device", args.device]
        command += ["--rows", str(args.rows), "--processes", str(args.processes), "--dim", str(args.dim)]
        found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"A batch of {args.rows:,} rows over {args.processes} processes, {args.dim} dimensions, {args.device}\n")
    print("| logits in each process | memory | seconds | memory against the whole |\n|---|---|---|---|")
    for way, value in found.items():
        share = value["bytes"] / found[WHOLE]["bytes"]
        print(f"| {way} | {value['bytes'] / 2**30:.2f} GiB | {value['seconds']:.3f} | {share:.3f} |")


if __name__ == "__main__":
    main()
