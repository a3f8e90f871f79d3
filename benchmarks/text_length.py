"""What longer captions cost: a step of the global objective by caption length.

    python -m benchmarks.text_length --model b16 --lengths 77 248 512 1024

All captions of a batch have the same length: a CLIP pads to the longest caption of the batch, a SigLIP to its own
length. Operations and memory are counted. Each round times every length, in a new order, on noise.
"""

import argparse
import random
import statistics
import sys

import torch

from benchmarks.random_clip import SHAPES, build_model
from benchmarks.timing import Rounds, timed
from benchmarks.train_step import Batch, count_flops, kept_bytes

REFERENCE = 248


def global_step(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The loss of whole images and captions."""
    loss: torch.Tensor = model(**batch.ours, return_loss=True).loss
    return loss


def make_batch(size: int, side: int, length: int) -> Batch:
    """Noise for pictures and captions of so many tokens."""
    ids = torch.randint(1, 49000, (size, length))
    ids[:, 0], ids[:, -1] = 49406, 49407
    return Batch({"input_ids": ids, "pixel_values": torch.randn(size, 3, side, side)}, {}, [], [], [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SHAPES), default="b16", help="a shape of OpenAI's CLIPs")
    parser.add_argument("--lengths", type=int, nargs="+", default=[77, REFERENCE, 512, 1024], help="with 248")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="0 times nothing")
    parser.add_argument("--thin", action="store_true", help="two thin layers, to try the script")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(args.model, args.thin, max(args.lengths)).train()
    side = model.config.vision_config.image_size
    batches = {length: make_batch(args.batch_size, side, length) for length in args.lengths}
    work = {length: count_flops(model, global_step, batch) / args.batch_size for length, batch in batches.items()}
    kept = {length: kept_bytes(model, global_step, batch) / args.batch_size for length, batch in batches.items()}
    rounds = Rounds()
    for turn in range(args.rounds + 1):  # the first one warms up
        for length in random.sample(args.lengths, len(args.lengths)):
            seconds = timed(lambda length=length: global_step(model, batches[length]).backward())
            model.zero_grad()
            if turn:
                rounds.add(str(length), seconds)
                print(f"round {turn}: {length} tokens {seconds[0]:.2f} s, {seconds[1]:.2f} CPU s", file=sys.stderr)
    print(f"| tokens | TFLOP per pair | activations, MB per pair | step, as a multiple of {REFERENCE} tokens |")
    print("|---|---|---|---|")
    for length in args.lengths:
        ratio = ""
        if args.rounds:
            ratio = f"{statistics.median(rounds.ratios(str(length), str(REFERENCE))[:, 1]):.2f}"
        print(f"| {length} | {work[length] / 1e12:.3f} | {kept[length] / 1e6:.0f} | {ratio} |")


if __name__ == "__main__":
    main()
