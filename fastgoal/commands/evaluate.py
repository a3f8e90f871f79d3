"""`fastgoal evaluate`: retrieval of a CLIP checkpoint by a named protocol, as a table and a report."""

import argparse
import textwrap
from pathlib import Path

from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS

from .options import add, number

HELP = "measure retrieval (recall@k both ways) of a CLIP by a named protocol"

_LIST = "\n".join(
    textwrap.fill(
        protocol.about + (f" ({protocol.images:,} images)" if protocol.images else ""),
        78,
        initial_indent=f"  {name:<15}",
        subsequent_indent=" " * 17,
    )
    for name, protocol in PROTOCOLS.items()
)
EPILOG = f"""\
protocols: each takes the dataset as it is published, or a table (parquet, saved dataset, Hub id) of it
{_LIST}

Every caption of an image is a text of its own, cut at the number of tokens that the model reads. Ties count against
the model, those between equal captions of two images too. Intervals are the middle 95 % of bootstrap resamples of the
images. Published results are shown beside ours only for the whole protocol, and marked.

From Python: fastgoal.evaluate("outputs/", "test/", joint=True).to_markdown()

examples:
  fastgoal evaluate --model outputs/ --data test/ --output report.json
  fastgoal evaluate --model outputs/ --against openai/clip-vit-base-patch16 \\
      --protocol docci --data docci/
  fastgoal evaluate --model outputs/ --data pairs/ --joint --localization
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model", "--data")
    add(parser, "--protocol", help="what is tested how, see below")
    add(parser, "--against", help="compare with this checkpoint on the same queries")
    for name, text in (
        ("--joint", "also GOAL's joint test, mAP@10 (needs data that `fastgoal pairs` wrote)"),
        ("--robustness", "also with a false sentence in each caption, sentences shuffled or dropped, cut at 77 tokens"),
        ("--localization", "also how often a sentence finds its boxes (top 5, 10, 15 patches)"),
        ("--check", "compute recalls and ranks again with a second implementation, and stop if they differ"),
    ):
        parser.add_argument(name, action="store_true", help=text)
    parser.add_argument(
        "--output", type=Path, metavar="report.json", help="write the report here as JSON, and beside it as report.md"
    )
    add(parser, "--split", "--image-column", "--caption-column", "--allow-outside-files")
    parser.add_argument("--boxes-column", metavar="NAME", default="boxes", help="for --localization")
    add(parser, "--limit", "--on-error", "--batch-size", "--num-workers", "--device", "--dtype")
    parser.add_argument(
        "--resamples", type=number(0), default=1000, metavar="N", help="for the 95 %% intervals; 0: none"
    )
    add(parser, "--seed", help="of resamples and changes")


def run(args: argparse.Namespace) -> int:
    from fastgoal.processing.files import prepare_output, write_text

    if args.output is not None:
        prepare_output(args.output)
        if args.output.suffix == ".md":
            raise ValueError(f"--output {args.output}: name the JSON file; the text goes beside it with .md.")

    from fastgoal.trainer.evaluation.evaluate import evaluate

    ours = ("command", "run", "traceback", "output")
    report = evaluate(**{name: value for name, value in vars(args).items() if name not in ours}, progress=True)
    print(f"\n{report.to_text()}")
    if args.output is not None:
        markdown = args.output.with_suffix(".md")
        write_text(args.output, report.to_json())
        write_text(markdown, report.to_markdown())
        print(f"Report: {args.output}, {markdown}")
    return 0
