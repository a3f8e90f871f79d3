"""Write a folder that is complete or does not exist, such as one of a model with its processor, card, and handler."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fastgoal.hub_cards.cards import card_name
from fastgoal.hub_cards.model_card import ModelFacts, copy_handler, write_model_card
from fastgoal.processing.checkpoints.errors import first_line
from fastgoal.processing.files import whole_folder


def require_new_folder(output: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder, or raise `ValueError` if it exists and is not empty."""
    path = Path(output).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"`output={path}` must be a new or empty folder. Choose another folder.")
    return path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create a folder that gets its name when the block ends; raise an `OSError` of one line if the disk is full."""
    with whole_folder(path) as draft:
        try:
            yield draft
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"`output={path}` could not be written: {first_line(error)} Nothing was written. Make room, or choose"
                " another folder."
            ) from error


def write_model_folder(output: Path, model: Any, processor: Any, **facts: Any) -> None:
    """Save a model and its processor with `handler.py` and a card with these facts."""
    with new_folder(output) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
        write_model_card(draft, ModelFacts.of_folder(draft, name=card_name(output.name), **facts))
        copy_handler(draft)
