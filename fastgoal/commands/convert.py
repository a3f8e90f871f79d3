"""`fastgoal convert`: convert CLIP weights between transformers, GOAL, Long-CLIP, OpenAI and open_clip."""

import argparse

from .options import add, call, prepare

HELP = "convert CLIP weights from or to the files of GOAL, Long-CLIP, OpenAI and open_clip"

EPILOG = """\
--to transformers reads a file of GOAL (.pth), Long-CLIP (.pt), OpenAI or open_clip. Only tensors are read; code in a
pickle never runs. The configuration, the tokenizer and the image processor come from the base. It must be the model
that the weights were trained from, or one with the same shape and activation.

--to open_clip and --to original read a model and write open_clip's files, or the .pt file of OpenAI and Long-CLIP.

examples:
  fastgoal convert longclip-B.pt --output longclip-b \\
      --base openai/clip-vit-base-patch16
  fastgoal convert open_clip_pytorch_model.bin --output laion-b32-248 \\
      --base laion/CLIP-ViT-B-32-laion2B-s34B-b79K
  fastgoal convert fast-goal --to open_clip --output for-open-clip
"""

TRANSFORMERS = ("base", "max_text_length", "drop_unmatched")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="file with the weights; with --to open_clip or original: a model, as a folder or a Hub id",
    )
    add(
        parser,
        "--to",
        choices=["transformers", "open_clip", "original"],
        default="transformers",
        help="format to write (default: transformers)",
    )
    add(parser, "--output", help="output folder, new or empty")
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="CLIP model of the same shape: a folder or a Hub id; required with --to transformers",
    )
    add(
        parser,
        "--max-text-length",
        help="maximum text length in tokens, from that of the weights to 1024 (default: 248 for weights with 77 "
        "positions; others keep their length)",
    )
    parser.add_argument(
        "--drop-unmatched",
        action="store_true",
        help="drop and list tensors that a CLIP model does not have, instead of stopping",
    )


def run(args: argparse.Namespace) -> int:
    if args.to != "transformers":
        for name in TRANSFORMERS:
            if vars(args)[name]:
                raise ValueError(f"`{name}` must not be set with `to={args.to}`, which reads a whole model.")
        prepare(args, models=["source"])

        from fastgoal.export.convert_back import convert_back

        for file in call(convert_back, args):
            print(f"{args.output}/{file}")
        return 0
    if args.base is None:
        raise ValueError(
            "`base` is required with `to=transformers`. Name the model that the weights were trained from."
        )
    prepare(args, models=["base"], paths=["source"])

    from fastgoal.export.convert import convert

    done = call(convert, args)
    print(f"{args.output}: {done.tensors} tensors, {done.layout} layout, {done.positions} text positions")
    if done.max_text_length != done.positions:
        print(f"text positions stretched from {done.positions} to {done.max_text_length}")
    for title, names in (("skipped, because they are not weights", done.ignored), ("dropped", done.dropped)):
        if names:
            print(f"{title}: {', '.join(names)}")
    return 0
