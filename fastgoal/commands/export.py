"""`fastgoal export`: export a model to the formats of other programs."""

import argparse

from .options import SHARED, add, prepare

HELP = "export a model to ONNX, or its text encoder for diffusion models"

EPILOG = """\
onnx writes both towers and the whole model in the layout of transformers.js, for any number of rows and tokens, and
compares them with PyTorch. It requires `pip install 'fastgoal[onnx]'`.

diffusion writes the text encoder of a CLIP and its tokenizer for diffusers and ComfyUI, and measures how far it is from
that of its base on prompts of up to 77 tokens.

examples:
  fastgoal export fast-goal --to onnx --output web/
  fastgoal export fast-goal --to onnx --output web/ \\
      --precision fp32 fp16 int8 --data test/
  fastgoal export fast-goal --to diffusion --output encoder/ --dtype fp16
"""

OPTIONS = {"onnx": ("precision", "data", "opset"), "diffusion": ("dtype", "positions", "base")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=SHARED["--model"]["help"])
    add(parser, "--to", required=True, choices=[*OPTIONS])
    add(parser, "--output", help="output folder, new or empty")
    onnx = parser.add_argument_group("onnx")
    onnx.add_argument(
        "--precision",
        nargs="+",
        metavar="NAME",
        help="fp32, fp16 or int8, or several; the file names get _fp16 for fp16 and _quantized for int8 "
        "(default: fp32)",
    )
    add(onnx, "--data", required=False, help="images with captions to measure the recall of each precision on")
    onnx.add_argument("--opset", type=int, metavar="N", help="ONNX operator set (default: 18)")
    diffusion = parser.add_argument_group("diffusion")
    diffusion.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], help="data type (default: fp32)")
    diffusion.add_argument(
        "--positions", type=int, metavar="N", help="keep the first N text positions, such as 77 (default: all)"
    )
    diffusion.add_argument(
        "--base",
        metavar="MODEL",
        help="model to compare the text encoder with (default: the base that the model's card names)",
    )


def run(args: argparse.Namespace) -> int:
    given = {name: vars(args)[name] for names in OPTIONS.values() for name in names if vars(args)[name] is not None}
    for name in given:
        if name not in OPTIONS[args.to]:
            raise ValueError(f"`{name}` must not be set with `to={args.to}`. It is an option of the other format.")
    prepare(args, models=["model", "base"], data=["data"])
    if args.to == "diffusion":
        from fastgoal.export.export_diffusion import export_diffusion

        encoder = export_diffusion(args.model, args.output, **given)
        print(f"{args.output}: {encoder.slot.name} with {encoder.positions} tokens, for {encoder.slot.pipelines}")
        if drift := encoder.drift:
            print(f"drift from {drift.base} on {drift.prompts} prompts of up to 77 tokens, as cosine similarity:")
            print(f"  hidden states: {drift.hidden_states:.4f} on average, {drift.lowest_hidden_state:.4f} at least")
            print(f"  pooled output: {drift.pooled:.4f} on average, {drift.lowest_pooled:.4f} at least")
        return 0

    from fastgoal.export.export_onnx import export_onnx
    from fastgoal.trainer.evaluation.report import metric_text

    done = export_onnx(args.model, args.output, **given)
    for name, difference in done.differences.items():
        print(f"{args.output}/onnx/{name}: differs from PyTorch by at most {difference:.1e}")
    for name, cost in done.precisions.items():
        sizes = ", ".join(f"{file} {size / 1e6:.1f} MB" for file, size in cost.files.items())
        print(f"{name}: {sizes}")
        print(f"  lowest cosine to fp32: images {cost.image_cosine:.6f}, texts {cost.text_cosine:.6f}")
        recalls = [metric_text(key, value) for key, value in cost.metrics.items() if "R@" in key]
        for line in (recalls[: len(recalls) // 2], recalls[len(recalls) // 2 :]):
            if line:
                print(f"  {'; '.join(line)}")
    return 0
