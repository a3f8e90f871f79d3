"""Options that several commands share: one name, one explanation and one check each.

`add(parser, "--batch-size", default=8)` declares one, with what differs in this command. In `args` they are
`batch_size`, `top_k` and so on.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastgoal.processing.checkpoints.devices import DTYPES
from fastgoal.trainer.evaluation.protocols.registry import PROTOCOLS


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


SHARED: dict[str, dict[str, Any]] = {
    "--model": {"required": True, "metavar": "CLIP", "help": "any CLIP, MetaCLIP 2 or SigLIP, a folder or a Hub id"},
    "--against": {"metavar": "CLIP", "help": "compare with this checkpoint"},
    "--data": {
        "required": True,
        "metavar": "DATA",
        "help": "the protocol's data; for 'folder' one with metadata.jsonl (file_name and caption or captions), a saved"
        " dataset, a folder of parquet files as `fastgoal pairs` writes, or a Hub dataset",
    },
    "--output": {"required": True, "metavar": "DIR", "help": "folder to write, new or to be continued"},
    "--protocol": {
        "choices": tuple(PROTOCOLS),
        "default": "folder",
        "metavar": "NAME",
        "help": "what is tested how, see `fastgoal evaluate --help`",
    },
    "--allow-outside-files": {
        "action": "store_true",
        "help": "read image files that rows or links name outside of the data's folder, too",
    },
    "--split": {"metavar": "NAME", "help": "split of the dataset, where it has several"},
    "--image-column": {"metavar": "NAME", "help": "column with the image (default: found by itself)"},
    "--caption-column": {"metavar": "NAME", "help": "column with the caption (default: found by itself)"},
    "--limit": {"type": number(1), "metavar": "N", "help": "only the first N rows"},
    "--language": {
        "metavar": "CODE",
        "help": "of the captions, for splitting them into sentences: de, fr, zh, ar... (default: en)",
    },
    "--batch-size": {"type": number(1), "default": 32, "metavar": "N", "help": "images in a forward"},
    "--num-workers": {
        "type": number(0),
        "metavar": "N",
        "help": "processes that read images (default: 4, and none beside a model on the CPU)",
    },
    "--workers": {
        "type": number(1),
        "metavar": "N",
        "help": "processes that share the work, each with a GPU where there are GPUs (needs fastgoal[ray]; default: "
        "this process, or with --ray as many as the cluster has GPUs, or machines)",
    },
    "--ray": {"metavar": "HOST:PORT", "help": "share the work in this Ray cluster; 'auto': the one of this machine"},
    "--top-k": {"type": number(1), "default": 5, "metavar": "N", "help": "how many answers to show"},
    "--device": {
        "default": "auto",
        "help": "cpu, cuda, cuda:1, mps ... (default: auto, the accelerator if there is one)",
    },
    "--dtype": {
        "choices": DTYPES,
        "default": "float32",
        "metavar": "TYPE",
        "help": f"number format of the model: {', '.join(DTYPES)}",
    },
    "--seed": {"type": int, "default": 0, "metavar": "N", "help": "of the random numbers"},
    "--on-error": {
        "choices": ("stop", "skip"),
        "default": "stop",
        "help": "at a row that cannot be used: stop, or leave it out and list it",
    },
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
