"""The `fastgoal` command: run a sub-command, and print an error as one line with exit code 2.

Nothing heavy is imported here, or by a module of `fastgoal.commands` before its `run`.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from fastgoal.trainer.cli.parser import Parser
from fastgoal.trainer.cli.terminal import run_cleanly

COMMANDS = (
    "caption",
    "pairs",
    "inspect",
    "config",
    "train",
    "evaluate",
    "explain",
    "gallery",
    "embed",
    "search",
    "demo",
    "quickstart",
    "reproduce",
    "convert",
    "merge",
    "average",
    "export",
    "push",
    "push-data",
    "push-space",
)

EPILOG = """\
examples:
  fastgoal quickstart
  fastgoal pairs photographs/ --output pairs/ --model openai/clip-vit-base-patch16
  fastgoal train --model openai/clip-vit-base-patch16 --train_data pairs/ --output_dir fast-goal
  fastgoal evaluate --model fast-goal --data test/ --output report.json
  fastgoal push fast-goal OWNER/NAME

Run `fastgoal COMMAND --help` for the options of a command.
"""


class _Version(argparse.Action):
    """Look up the version only if it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        import fastgoal

        print(f"fastgoal {fastgoal.__version__}")
        parser.exit()


def build_parser() -> Parser:
    """Return the parser of `fastgoal` with all sub-commands."""
    # SUPPRESS: the option may come before or after the sub-command, and one position must not reset the other.
    common = Parser(add_help=False)
    common.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the Python traceback of an error",
    )
    common.add_argument(
        "--quiet",
        dest="progress",
        action="store_false",
        default=argparse.SUPPRESS,
        help="show no progress bars",
    )
    about = "Fine-tune CLIP for long, detailed captions (FAST-GOAL, GOAL)."
    usage = "%(prog)s COMMAND [options]"
    parser = Parser(prog="fastgoal", usage=usage, description=about, epilog=EPILOG, parents=[common])
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="show the version and exit"
    )
    subparsers = parser.add_subparsers(dest="command", prog="fastgoal", metavar="COMMAND", title="commands")
    for name in COMMANDS:
        module = importlib.import_module(f"fastgoal.commands.{name.replace('-', '_')}")
        subparser = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            epilog=getattr(module, "EPILOG", None),
            parents=[common],
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run, parser=subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fastgoal` with `argv` (`sys.argv[1:]` if None) and return the exit code.

    The exit code is that of the command, 2 for invalid arguments or input, and 130 after an interrupt. `--help` and
    `--version` raise `SystemExit`, as in argparse.
    """
    parser = build_parser()
    args = argparse.Namespace(command=None, progress=True)

    def work() -> int:
        parser.parse_args(argv, args)
        if args.command is None:
            parser.print_help(sys.stderr)
            return 2
        code: int = args.run(args)
        return code

    return run_cleanly(lambda: getattr(args, "parser", parser), work, lambda: getattr(args, "traceback", False))
