"""Writing what a command was asked for: whole or not at all, and refused before the work where it cannot be."""

import json
import os
from pathlib import Path
from typing import Any


def prepare_output(path: Path) -> None:
    """Find out before the work, not after it, that a file cannot be written.

    Raises:
        ValueError: The path is a folder, or its folder is not writable.
    """
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder; name a file, such as {path / 'report.json'}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--output {path}: the folder {path.parent} is not writable.")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write all of a file or nothing of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
