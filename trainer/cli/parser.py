"""Parse command lines: suggest the nearest name for a typo, accept `_` and `-`, and name parameters as flags.

This module imports nothing heavy: every `fastgoal` command and the run script use it.
"""

import argparse
import ast
import difflib
import itertools
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

LONGEST_ERROR = 1000  # characters; the value of an argument can be long
_NUMBER = re.compile(r"-\.?\d.*")
_PARAMETER = re.compile(r"`([a-z]\w*)(?:=([^`]*))?`")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `: did you mean X?` with the closest of `names`, or an empty string if none is close."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f": did you mean {near[0]}?" if near else ""


class HelpText(argparse.HelpFormatter):
    """Wrap paragraphs at the width of the terminal, keep indented lines, and show defaults."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for is_paragraph, group in itertools.groupby(
            text.strip("\n").splitlines(), lambda line: line[:1].strip() != ""
        ):
            block = list(group)
            lines += textwrap.wrap(" ".join(block), width) if is_paragraph else block
        return "\n".join(indent + line for line in lines)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default is None or action.default is False or action.default == argparse.SUPPRESS:
            return text
        return text if "(default" in text else f"{text} (default: %(default)s)".lstrip()


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviations that treats `--batch_size` and `--batch-size` as the same option.

    On an error it prints the usage line and one line with the error, and exits with code 2.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpText, "allow_abbrev": False, **kwargs})

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        """Declare an argument; of two spellings that differ in `_` and `-` alone, the first one is in the help."""
        spellings = {name.replace("-", "_"): name for name in reversed(names)}
        return super().add_argument(*(name for name in names if name in spellings.values()), **kwargs)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse like argparse, but treat unknown arguments as an error here, where the sub-command's usage is known."""
        arguments = list(sys.argv[1:] if args is None else args)
        for index, argument in enumerate(arguments):
            if argument == "--" or (self._subparsers is not None and not argument.startswith("-")):
                break  # the rest are values, or belong to the parser of the sub-command
            arguments[index] = self._declared_spelling(argument)
        parsed, rest = super().parse_known_args(arguments, namespace)
        # Before Python 3.13, argparse misses an optional positional argument after an option: IMAGES --model M TEXT.
        for action in self._get_positional_actions():
            if rest and action.nargs == "?" and getattr(parsed, action.dest) is action.default and rest[0][:1] != "-":
                setattr(parsed, action.dest, self._get_value(action, rest.pop(0)))
        if rest:
            self.error(f"unexpected {' '.join(map(repr, rest))}")
        return parsed, rest

    def _declared_spelling(self, argument: str) -> str:
        """Return an option with the name under which it was declared; return other arguments unchanged."""
        name, equals, value = argument.partition("=")
        known = self._option_string_actions
        if name in known or not argument.startswith("-") or argument == "-" or " " in name or _NUMBER.match(name):
            return argument
        if not name.startswith("--") and name[:2] in known:  # a short option with its value attached
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
            way_out = did_you_mean(str(value), names) or f"; `{self.prog} --help` lists all commands"
            self.error(f"unknown command {value}{way_out}")
        text = f"must be one of {', '.join(names)}, got {str(value)!r}{did_you_mean(str(value), names)}"
        raise argparse.ArgumentError(action, text)

    def option(self, name: str) -> argparse.Action | None:
        """Return the option that takes a value under a name, spelled with `_` or `-`; None if there is none."""
        spellings = (name, name.replace("-", "_"), name.replace("_", "-"))
        actions = (self._option_string_actions.get(f"--{spelling}") for spelling in spellings)
        return next((action for action in actions if action is not None and action.nargs != 0), None)

    def error(self, message: str) -> NoReturn:
        """Print the usage line and the message, and exit with code 2."""
        if len(message) > LONGEST_ERROR:
            message = f"{message[:LONGEST_ERROR]} ..."
        message = re.sub(r"^argument (?:-\w/)?([^\s/:]+)\S*: (?=must )", r"\1 ", message)
        super().error(self.with_flags(message))

    def with_flags(self, message: str) -> str:
        """Replace the parameters of Python functions in a message by the arguments of this command.

        `` `batch_size` `` becomes `--batch-size`, `` `batch_size=8` `` becomes `--batch-size 8`, and
        `` `hard_negatives=False` `` becomes `--hard_negatives false`. Names that this command does not have stay.
        """
        return _PARAMETER.sub(self._as_argument, message)

    def _as_argument(self, match: re.Match[str]) -> str:
        name, text = match.groups()
        action = next((action for action in self._actions if action.dest == name), None)
        if action is None:
            return match[0]
        spellings = [option for option in action.option_strings if option.startswith("--")]
        argument = f"--{name}" if f"--{name}" in spellings else (*spellings, str(action.metavar or name))[0]
        if text is None:
            return argument
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if action.nargs == 0 or value is None:
            return argument if value is True else match[0]
        values = value if isinstance(value, list | tuple) else [value]
        return " ".join(
            [argument, *(str(one).lower() if isinstance(one, bool) else shlex.quote(str(one)) for one in values)]
        )

    def format_usage(self) -> str:
        self.usage = self.usage or self._usage_line()
        return super().format_usage()

    def format_help(self) -> str:
        self.usage = self.usage or self._usage_line()
        return super().format_help()

    def _usage_line(self) -> str:
        """Return the required arguments in one line; `--help` explains the options."""
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
