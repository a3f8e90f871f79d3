"""Write a model folder, complete or not at all: weights, processor, card, and handler."""

import os
from pathlib import Path
from typing import Any

from fastgoal.hub_cards.cards import card_name
from fastgoal.hub_cards.model_card import ModelFacts, copy_handler, write_model_card
from fastgoal.processing.files import whole_folder


def require_new_folder(output: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder, or raise `ValueError` if it exists and is not empty."""
    path = Path(output).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"`output={path}` must be a new or empty folder. Choose another folder.")
    return path


def write_model_folder(output: Path, model: Any, processor: Any, **facts: Any) -> None:
    """Save a model and its processor with `handler.py` and a card with these facts."""
    with whole_folder(output) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
        write_model_card(draft, ModelFacts.of_folder(draft, name=card_name(output.name), **facts))
        copy_handler(draft)
