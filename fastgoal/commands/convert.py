"""`fastgoal convert`: convert weights of GOAL, Long-CLIP or open_clip to a folder that transformers loads."""

import argparse

from .options import add, call, number

HELP = "convert weights of GOAL, Long-CLIP or open_clip to a folder that transformers loads"

EPILOG = """\
Only tensors are read; code in a pickle never runs. The configuration, the tokenizer and the image processor come from
the base. It must be the model that the weights were trained from, or one with the same shape and activation.

examples:
  fastgoal convert longclip-B.pt --output longclip-b \\
      --base openai/clip-vit-base-patch16
  fastgoal convert open_clip_pytorch_model.bin --output laion-b32-248 \\
      --base laion/CLIP-ViT-B-32-laion2B-s34B-b79K
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="weights: .pth of GOAL, .pt of Long-CLIP, an open_clip file or .safetensors"
    )
    parser.add_argument(
        "--base", required=True, metavar="MODEL", help="CLIP model of the same shape: a folder or a Hub id"
    )
    add(parser, "--output", help="output folder, new or empty")
    parser.add_argument(
        "--max-text-length",
        type=number(77, 248),
        default=248,
        metavar="N",
        help="maximum text length in tokens, 77 to 248; weights with more than 77 positions keep their length",
    )
    parser.add_argument(
        "--drop-unmatched",
        action="store_true",
        help="drop and list tensors that a CLIP model does not have, instead of stopping",
    )


def run(args: argparse.Namespace) -> int:
    from fastgoal.export.convert import convert

    done = call(convert, args)
    print(f"{args.output}: {done.tensors} tensors, {done.layout} layout, {done.positions} text positions")
    if done.max_text_length != done.positions:
        print(f"text positions stretched from {done.positions} to {done.max_text_length}")
    for title, names in (("skipped, because they are not weights", done.ignored), ("dropped", done.dropped)):
        if names:
            print(f"{title}: {', '.join(names)}")
    return 0
