"""`fastgoal evaluate`: evaluate a model with named protocols; print tables and write a report."""

import argparse
import textwrap
from pathlib import Path

from fastgoal.trainer.evaluation.options import EvaluationOptions
from fastgoal.trainer.evaluation.protocols.registry import ACCURACY_PROTOCOLS, PROTOCOLS

from .options import add, evaluation_options, flags_of, prepare

HELP = "evaluate image-text retrieval, zero-shot classification and composition with named protocols"

_ABOUT = {
    **{
        name: protocol.about + (f" ({protocol.images:,} images)" if protocol.images else "")
        for name, protocol in PROTOCOLS.items()
    },
    **{name: protocol.about for name, protocol in ACCURACY_PROTOCOLS.items()},
}
_LIST = "\n".join(
    textwrap.fill(about, 78, initial_indent=f"  {name:<16}", subsequent_indent=" " * 18)
    for name, about in _ABOUT.items()
)
EPILOG = f"""\
protocols: each reads its dataset as published, or as a table (parquet files, saved dataset, Hub id)
{_LIST}

Each caption of an image counts separately, truncated to the number of tokens that the model reads. Ties count
against the model, including ties between equal captions of two images. Intervals are the middle 95 % of bootstrap
resamples of the images. Published results are shown only for a complete protocol, and marked as published.

--also adds protocols to the same run. The options that select the data (--form, --split, --limit, the columns and
--image-folder) and the further tests (--joint, --robustness, --localization, --truncate-dim, --vectors, --check) hold
for --data alone. With --against, a table says which measures were gained, lost, or not told apart from 0, because the
95 % interval of the difference contains 0.

From Python: fastgoal.evaluate("fast-goal", "test/", EvaluationOptions(joint=True)).to_markdown()

examples:
  fastgoal evaluate --model fast-goal --data test/ --output report.json
  fastgoal evaluate --model fast-goal --against openai/clip-vit-base-patch16 \\
      --protocol docci --data docci/
  fastgoal evaluate --model fast-goal --against openai/clip-vit-base-patch16 \\
      --protocol docci --data docci/ --also imagenet=zero-shot:imagenet/val
  fastgoal evaluate --model fast-goal --data pairs/ --joint --localization
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model", "--data", "--against")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="report.json",
        help="write the report to this JSON file, and as Markdown to the .md file of the same name",
    )
    add(parser, *flags_of(EvaluationOptions))


def run(args: argparse.Namespace) -> int:
    from fastgoal.processing.files import prepare_output, write_text

    options = evaluation_options(args)
    if args.output is not None:
        prepare_output(args.output)
        if args.output.suffix == ".md":
            raise ValueError(
                f"`output` must be the name of the JSON file, got {args.output}. The report in Markdown is next to it."
            )
    prepare(args, models=["model", "against"], data=["data"])

    from fastgoal.trainer.evaluation.evaluate import evaluate

    report = evaluate(args.model, args.data, options, against=args.against, progress=args.progress)
    print(f"\n{report.to_text()}")
    if args.output is not None:
        markdown = args.output.with_suffix(".md")
        write_text(args.output, report.to_json())
        write_text(markdown, report.to_markdown())
        print(f"Report: {args.output}, {markdown}")
    return 0
