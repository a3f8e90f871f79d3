"""`fastgoal convert`: weights of GOAL, Long-CLIP or open_clip as a folder that transformers loads."""

import argparse

from .options import add, number

HELP = "turn weights of GOAL, Long-CLIP or open_clip into a folder that transformers loads"

EPILOG = """\
Reads tensors only: a pickle is never executed. The base gives configuration, tokenizer and image processor, so it
must be the CLIP that the weights were trained from, or one of the same shape and activation.

examples:
  fastgoal convert longclip-B.pt --output longclip-b \\
      --base openai/clip-vit-base-patch16
  fastgoal convert open_clip_pytorch_model.bin --output laion-b32-248 \\
      --base laion/CLIP-ViT-B-32-laion2B-s34B-b79K
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="GOAL's .pth, Long-CLIP's .pt, an open_clip file, .safetensors")
    parser.add_argument("--base", required=True, metavar="CLIP", help="folder or Hub id of the CLIP of that shape")
    add(parser, "--output", help="folder to write, new or empty")
    parser.add_argument(
        "--max-text-length",
        type=number(77, 248),
        default=248,
        metavar="N",
        help="tokens the model shall read, 77 to 248; weights of more than 77 positions keep theirs",
    )
    parser.add_argument(
        "--drop-unmatched",
        action="store_true",
        help="leave tensors out that have no place in a CLIP, instead of stopping; they are listed",
    )


def run(args: argparse.Namespace) -> int:
    from fastgoal.export.convert import convert

    done = convert(args.file, args.base, args.output, args.max_text_length, args.drop_unmatched)
    print(f"{args.output}: {done.tensors} tensors, {done.layout} layout, {done.positions} text positions")
    if done.max_text_length != done.positions:
        print(f"text positions stretched from {done.positions} to {done.max_text_length}")
    for title, names in (("no weights, not needed", done.ignored), ("left out, as you asked", done.dropped)):
        if names:
            print(f"{title}: {', '.join(names)}")
    return 0
