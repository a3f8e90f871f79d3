"""A YAML file of settings as command line flags, so that later flags overrule them."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fastgoal.processing.images import read_regular

from .parser import did_you_mean

LARGEST_FILE = 2**20  # bytes


def flags_of(path: Path, known: Collection[str], other_names: Mapping[str, str]) -> list[str]:
    """The settings of a file as flags.

    Args:
        path: Of the file: `key: value` lines.
        known: The names of all settings.
        other_names: Other names for some of them.

    Raises:
        ValueError: The file is no such YAML, has settings that are not known, or one of them twice; names the file.
        OSError: It cannot be read.
    """
    settings = _read(path)
    names = {*known, *other_names}
    unknown = sorted(key for key in settings if key.replace("-", "_") not in names)
    if unknown:
        named = ", ".join(key + did_you_mean(key, names) for key in unknown)
        raise ValueError(f"{path} has unknown settings (`fastgoal train --help` lists all): {named}")
    refuse_two_names(list(settings), other_names, str(path))
    flags: list[str] = []
    for key, value in settings.items():
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            # In one word, so that a value may begin with a dash; transformers reads dictionaries as JSON.
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def refuse_two_names(names: Sequence[str], other_names: Mapping[str, str], where: str) -> None:
    """Raise `ValueError` of a setting that one place gives under two of its names."""
    given: dict[str, str] = {}
    for name in names:
        spelled = name.replace("-", "_")
        own = other_names.get(spelled, spelled)
        if given.setdefault(own, name) != name:
            raise ValueError(f"{where} gives {given[own]} and {name}, two names of one setting; keep one of them.")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_regular(path)
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{path} has {len(content):,} bytes, which is too much for a file of settings.")
    try:
        text = content.decode("utf-8-sig")
        # Names for parts of the file may stand for each other so often that no memory holds what they mean.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError(f"{path} uses names for parts of itself (&name and *name); write the values out.")
        node = yaml.compose(text, yaml.SafeLoader)
        settings = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise ValueError(f"{path} is not YAML of settings: it has too many lists inside of each other.") from None
    if not isinstance(settings, dict) or not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path} must hold `key: value` lines, got {type(settings).__name__}.")
    if wrong := [key for key in settings if not isinstance(key, str)]:
        raise ValueError(f"{path} must hold `key: value` lines; the key {wrong[0]!r} is no text.")
    keys = [key.value for key, _ in node.value]
    if twice := [key for place, key in enumerate(keys) if key in keys[:place]]:
        raise ValueError(f"{path} gives {twice[0]} twice; keep one of them.")
    return settings
