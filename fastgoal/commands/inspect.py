"""`fastgoal inspect`: a page about a data set of local pairs."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .options import add, number

HELP = "look at a data set of local pairs: a page with sample rows, scores, lengths, repetitions"

# All of OpenAI's CLIPs, and most others, share one tokenizer.
USUAL_TOKENIZER = "openai/clip-vit-base-patch32"

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
    from fastgoal.processing.data.figures import inspect_pairs, mean_cosine
    from fastgoal.processing.data.pairs_dataset import PairsFolder
    from fastgoal.tools.files import prepare_output, write_json, write_text
    from fastgoal.trainer.evaluation.models import load_model

    folder = PairsFolder(args.folder)
    name = page_name(args.folder)
    output = args.output or Path(f"{name}-inspect.html")
    for path in (output, args.json):
        if path is not None:
            prepare_output(path)
    tokenizer_name, tokenizer = find_tokenizer(args.tokenizer, args.model, folder.manifest)
    model = None if args.model is None else load_model(args.model, args.device)

    count = None if tokenizer is None else token_counter(tokenizer)
    facts: dict[str, Any] = {"name": name, "seed": args.seed, "tokenizer": tokenizer_name}
    facts.update(inspect_pairs(folder, count, args.rows, args.seed, progress=True))
    if model is not None:
        facts["cosine"] = mean_cosine(folder, *model, args.model, args.sample, args.seed, progress=True)
    rows = dict(folder.read(shown_rows(facts)))
    broken: list[str] = []
    page = inspection_page(name, facts, rows, broken, None if tokenizer is None else token_ends(tokenizer))
    facts["broken_images"] = broken
    write_text(output, page)
    if args.json is not None:
        write_json(args.json, facts)
    print(describe(facts))
    print(f"Page: {output}" + ("" if args.json is None else f", numbers: {args.json}"))
    return 0


def find_tokenizer(asked: str | None, model: str | None, manifest: dict[str, Any]) -> tuple[str | None, Any]:
    """The tokenizer that counts, and its name; (None, None) where none can be had.

    Raises:
        ValueError: A tokenizer was asked for by name and cannot be loaded.
    """
    from transformers import AutoTokenizer

    settings = manifest.get("settings")
    matcher = str(settings.get("model", "")) if isinstance(settings, dict) else ""
    # The manifest names local weights `name#hash`, without their folder; only an OWNER/NAME can be found again.
    matcher = "" if "#" in matcher or "/" not in matcher else matcher.partition("@")[0]
    wanted = asked or model
    for name in [wanted] if wanted else [matcher, USUAL_TOKENIZER]:
        if not name:
            continue
        try:
            # What nobody asked for is not worth the network.
            return name, AutoTokenizer.from_pretrained(name, local_files_only=not wanted)
        except (OSError, ValueError) as error:
            if wanted:
                option, reason = "--tokenizer" if asked else "--model", str(error).strip().splitlines()[0]
                raise ValueError(f"{option} {name}: its tokenizer cannot be loaded: {reason}") from None
    print(
        "No CLIP tokenizer is at hand, so words are counted, not tokens; name one with --tokenizer, for example"
        f" {USUAL_TOKENIZER}."
    )
    return None, None


def token_counter(tokenizer: Any) -> Callable[[list[str]], list[int]]:
    """Gives the number of tokens of captions, start and end marks included."""

    def count(captions: list[str]) -> list[int]:
        encoded = tokenizer(captions, truncation=False, padding=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    return count


def token_ends(tokenizer: Any) -> Callable[[str], list[tuple[int, int]]] | None:
    """Gives, for a caption, (limit, end in characters of what is read) for the limits that cut it."""
    from fastgoal.processing.data.figures import TOKEN_LIMITS

    if not getattr(tokenizer, "is_fast", False):
        return None

    def ends(caption: str) -> list[tuple[int, int]]:
        encoded = tokenizer(caption, truncation=False, return_offsets_mapping=True, verbose=False)
        places = [end for _, end in encoded["offset_mapping"]]
        # The last token read is the end mark, which takes the place of a word.
        return [(limit, places[limit - 2]) for limit in TOKEN_LIMITS if len(places) > limit]

    return ends


def describe(facts: dict[str, Any]) -> str:
    """The most important numbers as a few lines to read."""
    captions, pairs, regions = facts["captions"], facts["pairs"], facts["regions"]["by_source"]
    lines = [
        f"{facts['rows']:,} rows in {facts['shards']:,} shards, {pairs['count']:,} pairs,"
        f" {captions['sentences']['mean']:.1f} sentences and {captions['words']['mean']:.0f} words a caption"
    ]
    if captions["tokens"]:
        cut = captions["tokens"]["truncated"]
        lines.append(
            f"{captions['tokens']['mean']:.0f} tokens a caption; "
            + ", ".join(f"{100 * value['share']:.1f} % cut at {limit}" for limit, value in cut.items())
        )
    lines.append(
        "regions, best pairs': "
        + ", ".join(f"{source} {row['candidates']:,}, {row['best']:,}" for source, row in regions.items())
        + f"; {facts['no_detection']['rows']:,} images with default regions only"
    )
    lines.append(
        f"repetitions: {facts['duplicate_captions']['rows']:,} rows with equal captions,"
        f" {facts['near_duplicate_captions']['rows']:,} with nearly equal ones,"
        f" {facts['duplicate_images']['rows']:,} with equal image files"
    )
    if "cosine" in facts:
        found = facts["cosine"]
        interval = "" if found["interval"] is None else " ({:.4f} to {:.4f})".format(*found["interval"])
        lines.append(f"mean image-caption cosine {found['mean']:.4f}{interval} on {found['rows']:,} rows")
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
