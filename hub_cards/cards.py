"""What the cards of models and of data sets share: names for the public, and how a card is written and renamed.

The facts are gathered into dataclasses first (`ModelFacts`, `DataFacts`); the templates beside this file only lay them
out. A card names no folder of the machine that wrote it, and no secret.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CardData
from jinja2 import Environment, FileSystemLoader

from fastgoal.processing.files import write_text

from .pictures import pairs_sheet
from .wording import count, number, percent

HERE = Path(__file__).parent
CARD = "README.md"
EXAMPLES = "examples"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a name is OWNER/NAME on the Hub rather than something on this machine."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def public_name(name: str) -> str:
    """A model's or data set's name for the public: a Hub id as it is, of a folder or a file only the last name."""
    return name if is_hub_id(name) else Path(name).name or Path(name).resolve().name


def public_weights(mark: str) -> str:
    """The name of weights for the public: of `name#hash` of local ones the name, `name@revision` of the Hub's whole."""
    name, at, revision = mark.partition("#")[0].partition("@")
    return public_name(name) + at + revision


def write_card(folder: str | os.PathLike[str], template: str, data: CardData, facts: Any) -> Path:
    """Write `README.md` into a folder, all of it or nothing; returns its path.

    A template, a file beside this one, lays out the facts, which have a `name`, below the metadata.
    """
    layouts = Environment(loader=FileSystemLoader(HERE))
    layouts.filters.update(public_name=public_name, number=number, percent=percent, things=count)
    layout = layouts.get_template(template)
    text = layout.render(card_data=data.to_yaml(), facts=facts, title=facts.name.split("/")[-1])
    path = Path(folder) / CARD
    write_text(path, text)
    return path


def rename_card(text: str, repo: str) -> str:
    """A card's text with the Hub id in place of the folder's name: in the usage, the title's metadata, the widget."""
    old = re.search(r'^name = "(.*)"$', text, re.MULTILINE)
    text = re.sub(r'^name = ".*"$', lambda _: f'name = "{repo}"', text, flags=re.MULTILINE)
    address = f"https://huggingface.co/{repo}/resolve/main/{EXAMPLES}/"
    text = re.sub(rf"(src: )(?:https://huggingface\.co/\S+?/)?{EXAMPLES}/", lambda m: m[1] + address, text)
    if old:
        text = re.sub(rf"^- name: {re.escape(old[1])}$", lambda _: f"- name: {repo}", text, flags=re.MULTILINE)
        text = re.sub(rf"^# {re.escape(old[1].split('/')[-1])}$", f"# {repo.split('/')[-1]}", text, flags=re.MULTILINE)
    return text


def save_pairs_sheet(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw rows with their local pairs into a folder; returns the picture's path inside it."""
    path = folder / EXAMPLES / "pairs.jpg"
    path.parent.mkdir(exist_ok=True)
    pairs_sheet(rows).save(path, quality=88)
    return f"{EXAMPLES}/{path.name}"
