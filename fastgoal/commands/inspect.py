"""`fastgoal inspect`: write a page of statistics and samples of a pairs dataset."""

import argparse
from pathlib import Path
from typing import Any

from .options import add, call, number

HELP = "write a page of statistics and samples of a pairs dataset"

EPILOG = """\
The page shows sample rows with their regions, matching scores, lengths of captions, and duplicates. It is one
self-contained file. Only the images on the page are decoded, so large datasets are quick.

Tokens are counted with the tokenizer of --tokenizer or --model, of the model that matched the pairs, or of OpenAI's
CLIP models if it is in the cache. If there is none, words are counted.

examples:
  fastgoal inspect pairs/
  fastgoal inspect pairs/ --output pairs.html --json pairs.json --rows 24
  fastgoal inspect pairs/ --model outputs/ --sample 1000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that `fastgoal pairs` wrote")
    parser.add_argument(
        "--output", type=Path, metavar="page.html", help="page to write (default: NAME-inspect.html in this folder)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    parser.add_argument("--rows", type=number(0), default=12, metavar="N", help="number of sample rows to show")
    add(parser, "--seed", help="random seed of the sample rows")
    parser.add_argument("--tokenizer", metavar="MODEL", help="tokenizer that counts tokens: a folder or a Hub id")
    add(
        parser,
        "--model",
        required=False,
        help="also measure the mean cosine similarity of images and captions with this model",
    )
    parser.add_argument("--sample", type=number(1), default=1000, metavar="N", help="number of random rows for --model")
    add(parser, "--device")


def run(args: argparse.Namespace) -> int:
    from fastgoal.pages.inspection import inspect_dataset, page_name
    from fastgoal.processing.data.tokens import USUAL_TOKENIZERS
    from fastgoal.processing.files import prepare_output, write_json, write_text

    output = args.output or Path(f"{page_name(args.folder)}-inspect.html")
    prepare_output(output)
    if args.json is not None:
        prepare_output(args.json, "json")
    facts, page = call(inspect_dataset, args, progress=True)
    if facts["tokenizer"] is None and args.tokenizer is None:
        print(f"Words are counted, because no tokenizer is in the cache. Name one: --tokenizer {USUAL_TOKENIZERS[0]}.")
    write_text(output, page)
    if args.json is not None:
        write_json(args.json, facts)
    print(describe(facts))
    print(f"Page: {output}" + ("" if args.json is None else f", numbers: {args.json}"))
    return 0


def describe(facts: dict[str, Any]) -> str:
    """Return the most important statistics as lines of text."""
    from fastgoal.hub_cards.wording import count, number

    captions, pairs, regions = facts["captions"], facts["pairs"], facts["regions"]["by_source"]
    lines = [
        f"{count(facts['rows'], 'row')} in {count(facts['shards'], 'shard')}, {count(pairs['count'], 'pair')},"
        f" {captions['sentences']['mean']:.1f} sentences and {captions['words']['mean']:.0f} words per caption"
    ]
    if captions["tokens"]:
        cut = captions["tokens"]["truncated"]
        lines.append(
            f"{captions['tokens']['mean']:.0f} tokens per caption; "
            + ", ".join(f"{100 * value['share']:.1f} % truncated at {limit}" for limit, value in cut.items())
        )
    sources = [
        f"from {source}: {count(row['candidates'], 'candidate')}, {row['best']:,} best"
        for source, row in regions.items()
    ]
    undetected = facts["no_detection"]["rows"]
    lines.append(f"regions {'; '.join(sources)}; {count(undetected, 'image')} with default regions only")
    lines.append(
        f"duplicates: {count(facts['duplicate_captions']['rows'], 'row')} with equal captions,"
        f" {facts['near_duplicate_captions']['rows']:,} with nearly equal captions,"
        f" {facts['duplicate_images']['rows']:,} with equal image files"
    )
    if "cosine" in facts:
        cosine = facts["cosine"]
        interval = (
            "" if cosine["interval"] is None else " ({} to {})".format(*(number(x, 4) for x in cosine["interval"]))
        )
        measured = f"{number(cosine['mean'], 4)}{interval} on {count(cosine['rows'], 'row')}"
        lines.append(f"mean cosine similarity of images and captions {measured}")
    if facts["missing_shards"]:
        lines.append(f"incomplete: missing shards: {len(facts['missing_shards'])}")
    if facts["skipped"]:
        lines.append(f"rows that were skipped when the pairs were made: {len(facts['skipped']):,}")
    lines += [f"broken image: {message}" for message in facts["broken_images"]]
    if facts["problems"]["count"]:
        lines.append(f"invalid rows: {facts['problems']['count']:,}, the first: {facts['problems']['first'][0]}")
    return "\n".join(lines)
