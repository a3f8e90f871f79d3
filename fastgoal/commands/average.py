"""`fastgoal average`: average the weights of a base model and a tuned one, or measure several averages."""

import argparse
from pathlib import Path

from .options import add, call, evaluation_options, number, prepare

HELP = "average the weights of a base model and a tuned one, to keep more of what the base could do"

EPILOG = """\
The weights are (1 - ALPHA) base + ALPHA tuned (WiSE-FT). Use it if the fine-tuning made a model better on your data
and worse elsewhere. If the base reads fewer tokens than the tuned model, its text positions are stretched first.

--alpha writes one model. --alphas measures several on --data and on the protocols of --also, and writes the curve of
what is gained against what is kept: curve.png, curve.html and curve.json.

examples:
  fastgoal average fast-goal --base openai/clip-vit-base-patch16 --alpha 0.6 --output fast-goal-0.6
  fastgoal average fast-goal --base openai/clip-vit-base-patch16 --alphas 0 0.25 0.5 0.75 1 \\
      --data test/ --also short=coco-5k:coco/ --output curve
"""

# Options of the evaluation of --data.
OPTIONS = (
    *("--also", "--protocol", "--form", "--split", "--image-column", "--caption-column", "--image-folder", "--limit"),
    *("--allow-outside-files", "--batch-size", "--num-workers", "--device", "--dtype", "--resamples", "--seed"),
    *("--templates", "--classnames", "--label-column"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    share = number(0, 1, float)
    parser.add_argument("tuned", metavar="TUNED", help="tuned model or adapter: a folder or a Hub id")
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="model that TUNED was trained from; required unless TUNED is an adapter, which names its base",
    )
    alpha = parser.add_mutually_exclusive_group(required=True)
    alpha.add_argument(
        "--alpha", type=share, metavar="ALPHA", help="share of the tuned weights, from 0 to 1; writes this model"
    )
    alpha.add_argument(
        "--alphas", type=share, nargs="+", metavar="ALPHA", help="shares of the tuned weights to measure on --data"
    )
    add(parser, "--output", help="output folder, new or empty")
    add(
        parser,
        "--data",
        required=False,
        help="with --alphas, required: test data like the data that TUNED was trained on",
    )
    add(parser, *OPTIONS)


def run(args: argparse.Namespace) -> int:
    if args.alpha is not None:
        if args.data is not None or args.also:
            raise ValueError("`data` and `also` must be left out with `alpha`, which measures nothing. Use `alphas`.")
        prepare(args, models=["tuned", "base"])

        from fastgoal.export.average import average

        tokens = call(average, args)
        print(f"{args.output}: a model with a text length of {tokens} tokens; load it with transformers")
        return 0
    if args.data is None:
        raise ValueError("`data` is required with `alphas`. Name the data to measure on.")
    options = evaluation_options(args)
    prepare(args, models=["tuned", "base"], data=["data"])

    from fastgoal.export.model_folder import new_folder, require_new_folder
    from fastgoal.pages.average import average_curve, curve_figure, curve_page

    output = require_new_folder(args.output)
    result = call(average_curve, args, options=options)
    with new_folder(output) as draft:
        (draft / "curve.json").write_text(result.to_json(), encoding="utf-8")
        (draft / "curve.html").write_text(curve_page(result), encoding="utf-8")
        curve_figure(result).save(draft / "curve.png")
    print(f"\n{result.to_text()}")
    print(f"Curve: {Path(args.output) / 'curve.png'}, curve.html, curve.json")
    return 0
