"""Options that several commands share: one name, one explanation and one check each.

`add(parser, "--batch-size", default=8)` declares one, with what differs in this command. In `args` they are
`batch_size`, `top_k` and so on.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastgoal.trainer.evaluation.options import EvaluationOptions


def number(lowest: float, highest: float | None = None, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """Return the argparse type of an integer (or a float, with `kind`) in a range that includes both ends."""
    allowed = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            name = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {name} {allowed}, got {text!r}") from None
        if not (lowest <= value and (highest is None or value <= highest)):
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text}")
        return value

    return parse


def text_file(name: str) -> str:
    """Return the text of a file; an argparse type."""
    try:
        text = Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"must be a text file in UTF-8, got {name}: {error}") from None
    if not text:
        raise argparse.ArgumentTypeError(f"must be a text file, got {name}, which is empty")
    return text


def flags_of(options: type) -> dict[str, dict[str, Any]]:
    """Return the flag of each field of a dataclass such as `EvaluationOptions`, with its arguments for argparse."""
    flags = {}
    for field in dataclasses.fields(options):
        arguments: dict[str, Any] = {"default": field.default, **field.metadata}
        lowest = arguments.pop("lowest", None)
        if field.type is bool:
            arguments["action"] = "store_true"
        elif "int" in str(field.type):
            arguments |= {"metavar": "N", "type": int if lowest is None else number(lowest)}
        elif not 0 < len(arguments.get("choices", ())) < 4:  # otherwise the choices stand in the help
            arguments["metavar"] = "NAME"
        flags[f"--{field.name.replace('_', '-')}"] = arguments
    return flags


SHARED: dict[str, dict[str, Any]] = {
    **flags_of(EvaluationOptions),
    "--model": {"required": True, "metavar": "CLIP", "help": "any CLIP, MetaCLIP 2 or SigLIP, a folder or a Hub id"},
    "--against": {"metavar": "CLIP", "help": "compare with this checkpoint"},
    "--data": {
        "required": True,
        "metavar": "DATA",
        "help": "the protocol's data; for 'folder' one with metadata.jsonl (file_name and caption or captions), a saved"
        " dataset, a folder of parquet files as `fastgoal pairs` writes, or a Hub dataset",
    },
    "--output": {"required": True, "metavar": "DIR", "help": "folder to write, new or to be continued"},
    "--language": {
        "metavar": "CODE",
        "help": "of the captions, for splitting them into sentences: de, fr, zh, ar... (default: en)",
    },
    "--workers": {
        "type": number(1),
        "metavar": "N",
        "help": "processes that share the work, each with a GPU where there are GPUs (needs fastgoal[ray]; default: "
        "this process, or with --ray as many as the cluster has GPUs, or machines)",
    },
    "--ray": {"metavar": "HOST:PORT", "help": "share the work in this Ray cluster; 'auto': the one of this machine"},
    "--top-k": {"type": number(1), "default": 5, "metavar": "N", "help": "how many answers to show"},
    "--html": {"metavar": "out.html", "help": "write a page here; it needs no other file"},
    "folder": {"metavar": "DIR", "help": "what `fastgoal pairs` wrote"},
    "repo": {"metavar": "REPO", "help": "OWNER/NAME on the Hub; made if it does not exist"},
    "--dry-run": {"action": "store_true", "help": "list what would be sent, and send nothing"},
    "--recode": {
        "action": "store_true",
        "help": "send images whose metadata cannot be removed, such as TIFF, as PNG copies",
    },
    "--private": {"action": "store_true", "default": None, "help": "make a new repository private"},
    "--message": {"default": "Upload with fastgoal", "metavar": "TEXT", "help": "message of the commit"},
}


def add(parser: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Declare shared options; `changes` are arguments of `add_argument` in place of the shared ones."""
    for name in names:
        flags = ["-k", name] if name == "--top-k" else [name]
        parser.add_argument(*flags, **{**SHARED[name], **changes})


def prepare_pictures(args: argparse.Namespace) -> None:
    """Refuse before the work that neither --output nor --html is given, or that one cannot be written."""
    from fastgoal.processing.files import prepare_output

    if args.output is None and args.html is None:
        raise ValueError("there is nothing to write; give --output out.png, --html out.html, or both.")
    for argument in ("output", "html"):
        if getattr(args, argument) is not None:
            prepare_output(getattr(args, argument), argument)


def load_contestants(args: argparse.Namespace) -> Iterator[tuple[str, Any, Any]]:
    """Name, model and processor of --model and, where it is given, of --against, one after the other."""
    from fastgoal.processing.checkpoints.load import load_model

    for argument, name in (("model", args.model), ("against", args.against)):
        if name is not None:
            yield name, *load_model(name, args.device, argument=argument)
