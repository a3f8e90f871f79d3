"""Command lines that say in one line what is wrong: the nearest name for a mistyped one, `_` as good as `-`.

Imports nothing heavy: every command of `fastgoal` is parsed with it, and so is the run script.
"""

import argparse
import difflib
import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

_NUMBER = re.compile(r"-\.?\d.*")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`: did you mean X?` with the nearest of some names; nothing where none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f": did you mean {near[0]}?" if near else ""


class HelpText(argparse.HelpFormatter):
    """Fills paragraphs to the width of the terminal, leaves indented lines as they are, and tells defaults."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for running, group in itertools.groupby(text.strip("\n").splitlines(), lambda line: line[:1].strip() != ""):
            block = list(group)
            lines += textwrap.wrap(" ".join(block), width) if running else block
        return "\n".join(indent + line for line in lines)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default is None or action.default is False or action.default == argparse.SUPPRESS:
            return text
        return text if "(default" in text else f"{text} (default: %(default)s)".lstrip()


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviations that takes `--batch_size` and `--batch-size` alike.

    An error is the command's usage in one line and what is wrong in another; the exit code is 2.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpText, "allow_abbrev": False, **kwargs})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but what is not known is an error here, where this command's own usage is at hand."""
        arguments = list(sys.argv[1:] if args is None else args)
        for place, argument in enumerate(arguments):
            if argument == "--" or (self._subparsers is not None and not argument.startswith("-")):
                break  # what follows are values, or is another parser's
            arguments[place] = self._spelled(argument)
        found, rest = super().parse_known_args(arguments, namespace)
        # Before Python 3.13 argparse gives up an optional argument that an option stands before: IMAGES --model M TEXT.
        for action in self._get_positional_actions():
            if rest and action.nargs == "?" and getattr(found, action.dest) is action.default and rest[0][:1] != "-":
                setattr(found, action.dest, self._get_value(action, rest.pop(0)))
        if rest:
            self.error(f"unexpected {' '.join(map(repr, rest))}")
        return found, rest

    def _spelled(self, argument: str) -> str:
        """An option under the name that is declared; other arguments as they are."""
        name, equals, value = argument.partition("=")
        known = self._option_string_actions
        if name in known or not argument.startswith("-") or argument == "-" or " " in name or _NUMBER.match(name):
            return argument
        if not name.startswith("--") and name[:2] in known:  # a value right behind a short option
            return argument
        for spelling in (name.replace("_", "-"), f"--{name[2:].replace('-', '_')}"):
            if spelling in known:
                return spelling + equals + value
        self.error(f"unknown option {name}{did_you_mean(name, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            near = did_you_mean(str(value), names) or f"; `{self.prog} --help` lists them"
            self.error(f"unknown command {value}{near}")
        text = f"is {value!r}; it must be one of {', '.join(names)}{did_you_mean(str(value), names)}"
        raise argparse.ArgumentError(action, text)

    def error(self, message: str) -> NoReturn:
        """Print the usage line and the message, and exit with 2."""
        super().error(re.sub(r"^argument (?:-\w/)?([^\s/:]+)\S*: (?=is )", r"\1 ", message))

    def format_usage(self) -> str:
        self.usage = self.usage or self._usage_line()
        return super().format_usage()

    def format_help(self) -> str:
        self.usage = self.usage or self._usage_line()
        return super().format_help()

    def _usage_line(self) -> str:
        """What the command needs, in one line; `--help` explains the options."""
        either = [group for group in self._mutually_exclusive_groups if group.required]
        needed = [
            action
            for action in self._get_optional_actions()
            if action.required or any(action in group._group_actions for group in either)
        ]
        parts = [self.prog.replace("%", "%%")]
        for actions, groups in ((self._get_positional_actions(), []), (needed, either)):
            formatter = argparse.HelpFormatter("", width=1000)
            formatter.add_usage(None, actions, groups, "")
            parts.append(formatter.format_help().strip())
        return " ".join([*filter(None, parts), "[options]"])
