"""`fastgoal export`: export a model to the formats of other programs."""

import argparse

from .options import SHARED, add, call

HELP = "export a model to ONNX"

EPILOG = """\
onnx writes both towers and the whole model in the layout of transformers.js, for any number of rows and tokens, and
compares them with PyTorch. It requires `pip install 'fastgoal[onnx]'`.

examples:
  fastgoal export outputs/ --to onnx --output web/
  fastgoal export outputs/ --to onnx --output web/ \\
      --precision fp32 fp16 int8 --data test/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=SHARED["--model"]["help"])
    parser.add_argument("--to", required=True, choices=["onnx"], help="format")
    add(parser, "--output", help="output folder, new or empty")
    onnx = parser.add_argument_group("onnx")
    onnx.add_argument(
        "--precision",
        nargs="+",
        default=["fp32"],
        metavar="NAME",
        help="fp32, fp16 or int8, or several; their files end in nothing, _fp16 and _quantized (default: fp32)",
    )
    add(
        onnx,
        "--data",
        required=False,
        help="dataset to measure the recall of each precision on",
    )
    onnx.add_argument("--opset", type=int, default=18, metavar="N", help="ONNX operator set (default: 18)")


def run(args: argparse.Namespace) -> int:
    from fastgoal.export.export_onnx import export_onnx

    done = call(export_onnx, args)
    for name, difference in done.differences.items():
        print(f"{args.output}/onnx/{name}: differs from PyTorch by at most {difference:.1e}")
    for name, cost in done.precisions.items():
        sizes = ", ".join(f"{file} {size / 1e6:.1f} MB" for file, size in cost.files.items())
        print(f"{name}: {sizes}")
        print(f"  lowest cosine to fp32: images {cost.image_cosine:.6f}, texts {cost.text_cosine:.6f}")
        if cost.metrics:
            print("  " + ", ".join(f"{metric} {value:.4f}" for metric, value in cost.metrics.items()))
    return 0
