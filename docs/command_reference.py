"""The page commands.md: every command with its options, from the parsers."""

import argparse
import copy
import itertools
import re
import textwrap

from fastgoal.cli import build_parser
from fastgoal.trainer.run import run_parser

INTRODUCTION = """\
# Commands

`fastgoal COMMAND --help` prints the same in a terminal. `--quiet` shows no progress bars, and `--traceback` the Python
traceback of any error.
"""


def command_page() -> str:
    """Return the page in Markdown."""
    choices = next(
        action.choices for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    sections = [_section(name, run_parser("fastgoal train") if name == "train" else choices[name]) for name in choices]
    return "\n".join([INTRODUCTION, *sections])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    lines = [f"## fastgoal {name}", "", _escaped(parser.description or ""), ""]
    groups: dict[str, list[argparse.Action]] = {}
    for group in parser._action_groups:
        title = "" if group.title in ("options", "positional arguments") else str(group.title)
        groups.setdefault(title, []).extend(action for action in group._group_actions if _is_shown(action))
    for title, actions in groups.items():
        if title and actions:
            lines += [f"**{_escaped(title)}**", ""]
        if actions:
            lines += ["| argument | meaning |", "|---|---|"]
            lines += [f"| {_names(action, parser)} | {_help(action, parser)} |" for action in actions]
            lines.append("")
    return "\n".join([*lines, *_prose(parser.epilog or "")])


def _prose(epilog: str) -> list[str]:
    """Return lines of Markdown: paragraphs that wrap in the browser, and indented lists and examples as code."""
    lines, language = [], "text"
    for is_code, group in itertools.groupby(epilog.rstrip().splitlines(), lambda line: line.startswith(" ")):
        text = "\n".join(group)
        if is_code:
            lines += [f"```{language}", textwrap.dedent(text), "```", ""]
        else:
            is_example = text.splitlines()[-1] in ("example:", "examples:")
            lines += [_escaped(re.sub(r"example(s?:)$", r"Example\1", text), newline="\n"), ""]
            language = "sh" if is_example else "text"
    return lines


def _is_shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and action.dest not in ("help", "traceback", "progress")


def _has_long_choices(action: argparse.Action) -> bool:
    return len(action.choices or ()) > 8


def _names(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    formatter = parser._get_formatter()
    if not action.option_strings:
        return f"`{formatter._format_args(action, action.metavar or action.dest)}`"
    action = copy.copy(action)
    if action.metavar is None and (not action.choices or _has_long_choices(action)):
        action.metavar = "VALUE"
    value = "" if action.nargs == 0 else formatter._format_args(action, action.dest)
    return " ".join(f"`{name} {value}`".replace(" `", "`") for name in action.option_strings)


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = _escaped(parser._get_formatter()._expand_help(action)) if action.help else ""
    if _has_long_choices(action) and not all(str(choice) in text for choice in action.choices or ()):
        text = text.rstrip(".") + f"; one of {', '.join(f'`{choice}`' for choice in action.choices or ())}"
    return f"**required.** {text}" if action.required and action.option_strings else text


def _escaped(text: str, newline: str = " ") -> str:
    text = re.sub(r"(`[^`]*`)|(?<![\w-])(--\w[\w-]*)", lambda match: match[1] or f"`{match[2]}`", text)
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_") for part in parts[::2]]
    return "`".join(" ".join(part.split()) if i % 2 else part.replace("\n", newline) for i, part in enumerate(parts))
