"""Read a YAML file of settings as command-line flags, so that flags given after the file override it."""

import json
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml

from fastgoal.processing.images import read_regular

from .parser import Parser, did_you_mean

LARGEST_FILE = 2**16  # bytes
DEEPEST_VALUE = 8


def flags_of(path: Path, parser: Parser, mappings: Collection[str] = ()) -> list[str]:
    """Return the settings in a YAML file as flags.

    Args:
        path: File of `key: value` lines.
        parser: The parser that declares the settings.
        mappings: Settings that take a mapping.

    Raises:
        ValueError: The file is not such YAML, or a setting is unknown, repeated or nested; the message names the file.
        OSError: The file cannot be read.
    """
    settings = read_yaml(path)
    known = {key: action for key in settings if (action := parser.option(key)) is not None}
    if unknown := sorted(settings.keys() - known):
        names = [option[2:] for option in parser._option_string_actions]
        listed = ", ".join(key[:80] + did_you_mean(key[:80], names) for key in unknown[:5])
        raise ValueError(f"{path}: unknown settings {listed}. `fastgoal train --help` lists all settings.")
    refuse_two_names(list(settings), parser, str(path))
    flags: list[str] = []
    for key, value in settings.items():
        if isinstance(value, dict) and known[key].dest in mappings:
            value = json.dumps(value, default=str)  # transformers reads it as JSON
        items = value if isinstance(value, list) and known[key].nargs == "+" else [value]
        if any(isinstance(item, list | dict | set | bytes) for item in items):
            raise ValueError(f"{path}: {key} must be a single value, got a {type(value).__name__}.")
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, items)]
        elif value is not None:
            flags.append(f"--{key}={value}")  # one word, because a value may start with a dash
    return flags


def refuse_two_names(names: Iterable[str], parser: Parser, source: str) -> None:
    """Raise `ValueError` if one source gives a setting under two of its names."""
    given: dict[str, str] = {}
    for name in names:
        action = parser.option(name)
        if action is not None and given.setdefault(action.dest, name) != name:
            raise ValueError(
                f"{source}: {given[action.dest]} and {name} are two names of the same setting. Keep one of them."
            )


class _SettingsLoader(yaml.SafeLoader):
    """Load plain YAML: no aliases, no repeated keys and no deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        # Aliases can refer to each other so often that the value does not fit into memory.
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (&name and *name) are not supported; write the values out")
        self.depth += 1
        if self.depth > DEEPEST_VALUE:
            raise yaml.YAMLError(f"values are nested more than {DEEPEST_VALUE} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if repeated := [key for key, count in counts.items() if count > 1]:
            raise yaml.YAMLError(f"the key {repeated[0][:80]} appears twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = read_regular(path)
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{path}: a settings file has at most {LARGEST_FILE:,} bytes, got {len(content):,}.")
    try:
        settings = yaml.load(content.decode("utf-8-sig"), _SettingsLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file is not text in UTF-8: {error}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: invalid YAML: {' '.join(str(error).split())[:500]}.") from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{path}: a settings file has `key: value` lines with names as keys.")
    return settings
