"""`fastgoal export`: export a model to ONNX."""

import argparse
from pathlib import Path

from .options import add

HELP = "export both towers of a model to ONNX and compare them with PyTorch"

EPILOG = """\
Writes vision_model.onnx and text_model.onnx. Embeddings are normalized, and the numbers of rows and tokens are dynamic.
Requires `pip install 'fastgoal[onnx]'`.

example:
  fastgoal export --onnx --model outputs/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--onnx", action="store_true", required=True, help="export to ONNX, the only format")
    add(parser, "--model")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="output folder (default: onnx/ in the model's folder)"
    )


def run(args: argparse.Namespace) -> int:
    output = args.output
    if output is None:
        if not Path(args.model).is_dir():
            raise ValueError(f"`output` is required, because {args.model} is not a folder on this machine.")
        output = Path(args.model) / "onnx"

    from fastgoal.export.export_onnx import export_onnx

    for name, difference in export_onnx(args.model, output).items():
        print(f"{output / name}: differs from PyTorch by at most {difference:.1e}")
    return 0
