"""`fastgoal inspect`: write a page of statistics and samples of a dataset."""

import argparse
from pathlib import Path
from typing import Any

from fastgoal.processing.names import check_hub

from .options import FORM_LIST, add, call, number, prepare

HELP = "write a page of statistics and samples of a dataset, with pairs or without"

EPILOG = f"""\
SOURCE is a folder that `fastgoal pairs` wrote, or images with captions in one of these forms, which --form names:
{FORM_LIST}

The page shows sample rows with their regions, matching scores, lengths of captions, and duplicates. It is one
self-contained file. Only the images on the page are decoded, so large datasets are quick. Images with captions have no
scores; boxes in the data are counted and drawn, and rows that cannot be used are listed.

The options from --split to --limit are for images with captions. --form parquet reads a folder of pairs as images with
captions.

The numbers of tokens are those that `fastgoal pairs` stored, with the tokenizer of its model. For other data, or with
--tokenizer or --model, tokens are counted with that tokenizer, or with that of OpenAI's CLIP models if it is in the
cache. If there is none, words are counted.

examples:
  fastgoal inspect pairs/
  fastgoal inspect pairs/ --output pairs.html --json pairs.json --rows 24
  fastgoal inspect pairs/ --model fast-goal --sample 1000
  fastgoal inspect coco/ --split val2017
  fastgoal inspect photographs/ --boxes-column objects --box-format xywh
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="pairs, or images with captions, see below")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="page.html",
        help="page to write (default: SOURCE-inspect.html in the current folder)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    parser.add_argument("--rows", type=number(0), default=12, metavar="N", help="number of sample rows to show")
    add(parser, "--seed", help="random seed of the sample rows")
    add(parser, "--form", "--split", "--image-column", "--caption-column", "--image-folder")
    add(parser, "--captions", default=None)
    parser.add_argument(
        "--boxes-column", metavar="NAME", help="column with the boxes (default: boxes or objects, if it exists)"
    )
    add(parser, "--box-format")
    add(parser, "--box-units", default=None)
    add(parser, "--language", "--limit", "--allow-outside-files")
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
    prepare(args, data=["source"], models=["model"])
    check_hub(args.tokenizer or "", "tokenizer")

    from fastgoal.pages.inspection import inspect_dataset, page_name
    from fastgoal.processing.files import prepare_output, write_json, write_text

    output = args.output or Path(f"{page_name(Path(args.source))}-inspect.html")
    prepare_output(output)
    if args.json is not None:
        prepare_output(args.json, "json")
    facts, page = call(inspect_dataset, args)
    if facts["tokenizer"] is None and args.tokenizer is None:
        print("Words are counted, not tokens. Name a model to count with its tokenizer: --tokenizer FOLDER_OR_HUB_ID.")
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
    matched = facts["matched"]
    in_shards = f" in {count(facts['shards'], 'shard')}, {count(pairs['count'], 'pair')}" if matched else ""
    lines = [
        f"{count(facts['rows'], 'row')}{in_shards}, {captions['sentences']['mean']:.1f} sentences and"
        f" {captions['words']['mean']:.0f} words per caption"
    ]
    if captions["tokens"]:
        cut = captions["tokens"]["truncated"]
        of_sentences = (
            f", {captions['sentence_tokens']['mean']:.0f} per sentence" if "sentence_tokens" in captions else ""
        )
        lines.append(
            f"{captions['tokens']['mean']:.0f} tokens per caption{of_sentences}; "
            + ", ".join(f"{100 * value['share']:.1f} % truncated at {limit}" for limit, value in cut.items())
            + f"; a text length of {captions['tokens']['fitting']} holds 99 %"
        )
    sources = [
        f"from {source}: {count(row['candidates'], 'candidate')}, {row['best']:,} best"
        for source, row in regions.items()
    ]
    undetected = facts["no_detection"]["rows"]
    if matched:
        lines.append(f"regions {'; '.join(sources)}; {count(undetected, 'image')} with default regions only")
    elif facts["regions"]["count"]:
        boxes = count(facts["regions"]["count"], "box", "boxes")
        lines.append(f"{boxes} in {count(facts['rows'] - undetected, 'image')}")
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
        reason = "rows that were skipped when the pairs were made" if matched else "rows that cannot be used"
        more = "" if matched else f", the first: {facts['skipped'][0]['reason']}"
        lines.append(f"{reason}: {len(facts['skipped']):,}{more}")
    lines += [f"broken image: {message}" for message in facts["broken_images"]]
    if facts["problems"]["count"]:
        lines.append(f"invalid rows: {facts['problems']['count']:,}, the first: {facts['problems']['first'][0]}")
    return "\n".join(lines)
