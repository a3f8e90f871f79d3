"""`fastgoal train`: fine-tune a model; the same program as `trainer/run.py`.

The options are the fields of the training arguments, hundreds with those of transformers, so all arguments, including
`--help`, are passed on unparsed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fastgoal.processing.names import check_data_name, check_hub, check_model_name
from fastgoal.trainer.cli.parser import Parser, did_you_mean
from fastgoal.trainer.cli.usage import ABOUT, USAGE

HELP = "fine-tune a model on the pairs that `fastgoal pairs` wrote"

# The settings that are checked before anything heavy is imported, with all their names in `RunArguments`.
CHECKED = {
    "model": ("--model", "--model_name_or_path"),
    "train_data": ("--train_data", "--dataset_name"),
    "eval_data": ("--eval_data",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def pass_on(arguments: list[str], namespace: object) -> tuple[argparse.Namespace, list[str]]:
        rest = [argument for argument in arguments if argument not in ("--traceback", "--quiet")]
        given = {"traceback": True} if "--traceback" in arguments else {}
        rest += ["--disable_tqdm", "true"] if "--quiet" in arguments and rest else []
        return argparse.Namespace(run=run, arguments=rest, **given), []

    parser.parse_known_args = pass_on  # type: ignore[method-assign, assignment]


def run(args: argparse.Namespace) -> int:
    arguments: list[str] = args.arguments
    wants_all = "--help-all" in arguments or "--help_all" in arguments
    if wants_all or "-h" in arguments or "--help" in arguments:
        print(ABOUT.format(prog="fastgoal train"), flush=True)  # the options follow in a few seconds

        from fastgoal.trainer.run import run_parser

        print(run_parser("fastgoal train").format_options(is_complete=wants_all), end="")
        return 0
    args.parser = _checked_parser()
    check_settings(arguments, args.parser)

    from fastgoal.trainer.run import main, run_parser

    args.parser = run_parser("fastgoal train")
    return main(arguments, args.parser)


def check_settings(arguments: Sequence[str], parser: Parser) -> None:
    """Refuse the most common mistakes: no arguments, and a file, model or dataset that is missing.

    Raises:
        SystemExit: A required argument is missing; two lines are printed.
        ValueError: A model or dataset does not exist, the Hub cannot be reached, or the settings file is invalid.
        OSError: The settings file cannot be read.
    """
    if not arguments:
        parser.error(
            "a settings file, or --model and --train_data, are required; `fastgoal train --help` explains them"
        )
    given, others = argparse.ArgumentParser.parse_known_args(parser, [_with_underscores(word) for word in arguments])
    settings = vars(given)
    if arguments[0].endswith((".yaml", ".yml")):
        from fastgoal.trainer.cli.settings_file import read_yaml

        content = read_yaml(Path(arguments[0]))
        for name, spellings in CHECKED.items():
            of_file = (content.get(spelling[2:]) for spelling in spellings)
            settings[name] = settings[name] or next((value for value in of_file if value is not None), None)
        others += [f"--{name}" for name in content]
    missing = [spellings[0] for name, spellings in CHECKED.items() if name != "eval_data" and not settings[name]]
    # A misspelled one is reported as such by the parser of all settings.
    if missing and not any(did_you_mean(name, others) for name in missing):
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    for name, value in settings.items():
        if isinstance(value, str):
            check_model_name(value, name) if name == "model" else check_data_name(value, name)
    for name, value in settings.items():
        if isinstance(value, str):
            check_hub(value, name, "model" if name == "model" else "dataset")


def _checked_parser() -> Parser:
    parser = Parser(prog="fastgoal train", usage=USAGE, add_help=False)
    for name, spellings in CHECKED.items():
        parser.add_argument(*spellings, dest=name)
    return parser


def _with_underscores(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else word
