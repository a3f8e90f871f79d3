"""Options that several commands share: each has one name, one help text and one check.

`add(parser, "--batch-size", default=8)` declares an option, with the arguments that differ in this command.
"""

import argparse
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastgoal.processing.data.forms.registry import FORMS
from fastgoal.processing.data.sources import CAPTIONS
from fastgoal.processing.names import check_data_name, check_detector_name, check_hub, check_model_name, check_path
from fastgoal.trainer.cli.terminal import quiet_libraries
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
            arguments.setdefault("metavar", "NAME")
        flags[f"--{field.name.replace('_', '-')}"] = arguments
    return flags


FORM_LIST = "\n".join(
    textwrap.fill(form.about, 78, initial_indent=f"  {name:<22}", subsequent_indent=" " * 24)
    for name, form in FORMS.items()
)
"""The forms of data as lines of help text."""

SHARED: dict[str, dict[str, Any]] = {
    **flags_of(EvaluationOptions),
    "--model": {
        "required": True,
        "metavar": "MODEL",
        "help": "CLIP, MetaCLIP 2, SigLIP or SigLIP 2 model, or an adapter: a folder or a Hub id",
    },
    "--against": {"metavar": "MODEL", "help": "second model to compare with"},
    "--data": {
        "required": True,
        "metavar": "DATA",
        "help": "dataset of the protocol; for `folder`: images with captions in a form that --form names, such as a "
        "folder that `fastgoal pairs` wrote, or a Hub dataset",
    },
    "--output": {"required": True, "metavar": "DIR", "help": "output folder; an interrupted run in it continues"},
    "--captions": {
        "choices": CAPTIONS,
        "default": "join",
        "help": "with several captions per image: join them, use the longest and keep the others as short captions, "
        "or use each in a row of its own (default: join)",
    },
    "--box-format": {
        "choices": ("xyxy", "xywh"),
        "help": "format of the boxes in the data: x1 y1 x2 y2, or x1 y1 width height (default: xyxy; xywh for COCO)",
    },
    "--box-units": {
        "choices": ("pixels", "fractions"),
        "default": "pixels",
        "help": "unit of the boxes in the data: pixels, or fractions of the image's width and height (default: pixels)",
    },
    "--language": {
        "metavar": "CODE",
        "help": "language of the captions, used to split them into sentences: de, fr, zh, ar, ... (default: en)",
    },
    "--max-text-length": {
        "type": number(1, 1024),
        "metavar": "N",
        "help": "maximum text length in tokens, from that of the model to 1024 (default: 248, or 256 for SigLIP; "
        "a model that was stretched before keeps its length)",
    },
    "--workers": {
        "type": number(1),
        "metavar": "N",
        "help": "number of processes that share the work, one per GPU if there are GPUs; requires fastgoal[ray] "
        "(default: this process, or with --ray one per GPU of the cluster, or one per machine)",
    },
    "--ray": {
        "metavar": "HOST:PORT",
        "help": "address of a Ray cluster that shares the work; auto for the cluster on this machine; requires "
        "fastgoal[ray]",
    },
    "--to": {"help": "format to write"},
    "--shard-size": {"type": number(1), "metavar": "N", "help": "number of images per output file"},
    "--top-k": {"type": number(1), "default": 5, "metavar": "N", "help": "number of results to show"},
    "--html": {"metavar": "out.html", "help": "write a self-contained HTML page to this file"},
    "folder": {"metavar": "DIR", "help": "folder that `fastgoal pairs` wrote"},
    "repo": {"metavar": "REPO", "help": "Hub repository, OWNER/NAME; it is created if it does not exist"},
    "--dry-run": {"action": "store_true", "help": "list the files, but send and write nothing"},
    "--recode": {
        "action": "store_true",
        "help": "send images whose metadata cannot be removed, such as TIFF, as PNG copies",
    },
    "--private": {"action": "store_true", "default": None, "help": "make the repository private if it is created"},
    "--message": {"default": "Upload with fastgoal", "metavar": "TEXT", "help": "commit message"},
}


def add(parser: argparse._ActionsContainer, *names: str, **changes: Any) -> None:
    """Declare shared options; `changes` replace arguments of `add_argument`."""
    for name in names:
        flags = ["-k", name] if name == "--top-k" else [name]
        parser.add_argument(*flags, **{**SHARED[name], **changes})


def call(function: Callable[..., Any], args: argparse.Namespace, **more: Any) -> Any:
    """Call a function with the parsed arguments that have the names of its parameters."""
    parameters = inspect.signature(function).parameters
    return function(**{name: value for name, value in vars(args).items() if name in parameters}, **more)


def prepare(
    args: argparse.Namespace,
    models: Sequence[str] = (),
    detectors: Sequence[str] = (),
    data: Sequence[str] = (),
    paths: Sequence[str] = (),
) -> None:
    """Check the names in arguments before anything heavy is imported; then switch off the bars of the libraries.

    Args:
        args: The parsed arguments; those that are None are not checked.
        models: Names of arguments that take a model or adapter.
        detectors: Names of arguments that take a detector.
        data: Names of arguments that take images with captions.
        paths: Names of arguments that take a file or folder on this machine.

    Raises:
        ValueError: An argument names something that does not exist, or that is on the Hub, which cannot be reached;
            or there is no access token for a push.
    """
    checks = (
        (models, check_model_name, "model"),
        (detectors, check_detector_name, "model"),
        (data, check_data_name, "dataset"),
        (paths, check_path, None),
    )
    given = [
        (str(value), name, check, repo_type)
        for names, check, repo_type in checks
        for name in names
        if (value := getattr(args, name)) is not None
    ]
    for value, name, check, _ in given:
        check(value, name)
    for value, name, _, repo_type in given:
        if repo_type is not None:
            check_hub(value, name, repo_type)
    if hasattr(args, "repo"):
        from fastgoal.hub_cards.access import check_repo_name, require_token

        check_repo_name(args.repo)
        if not args.dry_run:
            require_token()
    quiet_libraries(show_downloads=args.progress)


def evaluation_options(args: argparse.Namespace) -> EvaluationOptions:
    """Return the options of an evaluation that a command has; others keep their defaults."""
    names = [field.name for field in dataclasses.fields(EvaluationOptions) if hasattr(args, field.name)]
    return EvaluationOptions(**{name: getattr(args, name) for name in names})


def prepare_outputs(args: argparse.Namespace) -> None:
    """Check before the work that the figure and the page that are asked for can be written."""
    from fastgoal.processing.files import prepare_output

    for argument in ("output", "html"):
        if getattr(args, argument) is not None:
            prepare_output(getattr(args, argument), argument)
