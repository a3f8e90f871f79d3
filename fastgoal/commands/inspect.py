"""`fastgoal inspect`: a page about a dataset of local pairs."""

import argparse
from pathlib import Path
from typing import Any

from .options import add, number

HELP = "look at a dataset of local pairs: a page with sample rows, scores, lengths, repetitions"

EPILOG = """\
The page is one file that needs no other and asks the network for nothing. Columns are read a batch at a time, and only
the images shown are decoded, so 100,000 rows are no trouble.

Tokens are counted with --tokenizer, else with that of --model, else with that of the model that matched the pairs or
the one that OpenAI's CLIPs share, where one of them has been downloaded before. Without any, words are counted instead.

examples:
  fastgoal inspect pairs/
  fastgoal inspect pairs/ --output pairs.html --json pairs.json --rows 24
  fastgoal inspect pairs/ --model outputs/ --sample 1000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `fastgoal pairs` wrote")
    parser.add_argument("--output", type=Path, metavar="page.html", help="the page (default: NAME-inspect.html here)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    parser.add_argument("--rows", type=number(0), default=12, metavar="N", help="rows to show")
    add(parser, "--seed", help="of the rows drawn")
    parser.add_argument("--tokenizer", metavar="NAME", help="counts tokens: a folder or a Hub id")
    add(parser, "--model", required=False, help="also measure the mean cosine of images and captions under this CLIP")
    parser.add_argument("--sample", type=number(1), default=1000, metavar="N", help="rows for --model, drawn at random")
    add(parser, "--device")


def run(args: argparse.Namespace) -> int:
    from fastgoal.pages.inspection import inspection_page, page_name, shown_rows
    from fastgoal.processing.checkpoints.load import load_model
    from fastgoal.processing.data.pairs_dataset import PairsFolder
    from fastgoal.processing.data.statistics import inspect_pairs
    from fastgoal.processing.data.tokens import USUAL_TOKENIZERS, find_counter
    from fastgoal.processing.files import prepare_output, write_json, write_text

    folder = PairsFolder(args.folder)
    name = page_name(args.folder)
    output = args.output or Path(f"{name}-inspect.html")
    prepare_output(output)
    if args.json is not None:
        prepare_output(args.json, "json")
    counter = find_counter(args.tokenizer or args.model, folder.manifest, Path(args.folder))
    if counter is None and args.tokenizer is None:
        print(
            "No CLIP tokenizer is at hand, so words are counted, not tokens; name one with --tokenizer, for example"
            f" {USUAL_TOKENIZERS[0]}."
        )
    model = None if args.model is None else load_model(args.model, args.device)

    facts: dict[str, Any] = {"name": name, "seed": args.seed, "tokenizer": None if counter is None else counter.name}
    facts.update(inspect_pairs(folder, counter, args.rows, args.seed, progress=True))
    if model is not None:
        from fastgoal.trainer.evaluation.measures.caption_quality import mean_cosine

        facts["cosine"] = mean_cosine(folder, *model, args.model, args.sample, args.seed, progress=True)
    rows = dict(folder.read(shown_rows(facts)))
    broken: list[str] = []
    page = inspection_page(name, facts, rows, broken, None if counter is None else counter.ends)
    facts["broken_images"] = broken
    write_text(output, page)
    if args.json is not None:
        write_json(args.json, facts)
    print(describe(facts))
    print(f"Page: {output}" + ("" if args.json is None else f", numbers: {args.json}"))
    return 0


def describe(facts: dict[str, Any]) -> str:
    """The most important numbers as a few lines to read."""
    from fastgoal.hub_cards.wording import count, number

    captions, pairs, regions = facts["captions"], facts["pairs"], facts["regions"]["by_source"]
    lines = [
        f"{count(facts['rows'], 'row')} in {count(facts['shards'], 'shard')}, {count(pairs['count'], 'pair')},"
        f" {captions['sentences']['mean']:.1f} sentences and {captions['words']['mean']:.0f} words a caption"
    ]
    if captions["tokens"]:
        cut = captions["tokens"]["truncated"]
        lines.append(
            f"{captions['tokens']['mean']:.0f} tokens a caption; "
            + ", ".join(f"{100 * value['share']:.1f} % cut at {limit}" for limit, value in cut.items())
        )
    sources = [
        f"from {source}: {count(row['candidates'], 'candidate')}, {row['best']:,} best"
        for source, row in regions.items()
    ]
    undetected = facts["no_detection"]["rows"]
    lines.append(f"regions {'; '.join(sources)}; {count(undetected, 'image')} with default regions only")
    lines.append(
        f"repetitions: {count(facts['duplicate_captions']['rows'], 'row')} with equal captions,"
        f" {facts['near_duplicate_captions']['rows']:,} with nearly equal ones,"
        f" {facts['duplicate_images']['rows']:,} with equal image files"
    )
    if "cosine" in facts:
        found = facts["cosine"]
        interval = "" if found["interval"] is None else " ({} to {})".format(*(number(x, 4) for x in found["interval"]))
        lines.append(f"mean image-caption cosine {number(found['mean'], 4)}{interval} on {count(found['rows'], 'row')}")
    if facts["missing_shards"]:
        lines.append(f"not complete, shards missing: {len(facts['missing_shards'])}")
    if facts["skipped"]:
        lines.append(f"rows left out when the pairs were made: {len(facts['skipped']):,}")
    lines += [f"broken image: {message}" for message in facts["broken_images"]]
    if facts["problems"]["count"]:
        lines.append(
            f"rows that are not sound: {facts['problems']['count']:,}, the first: {facts['problems']['first'][0]}"
        )
    return "\n".join(lines)
